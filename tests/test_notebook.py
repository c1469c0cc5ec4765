"""The notebook runs from top to bottom, with a budget of seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(
    tmp_path: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install 'fairtune[dev]'")
    nbclient = pytest.importorskip("nbclient", reason="pip install 'fairtune[dev]'")
    monkeypatch.setenv("FAIRTUNE_NOTEBOOK_TRIALS", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs"
    nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": tmp_path}}
    ).execute()
    text = "".join(
        str(output.get("text", output.get("data", {}).get("text/markdown", "")))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "of the parameters" in text
    assert "worst-group AUROC" in text
    assert "%|" in text  # bars
