from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from search.samples import tiny_config, write_data
from stores import mlflow_at

from fairtune.interrupt import StopRequest
from fairtune.report import write_report

FEW = 40
GROUPS = {"ward": ["a", "b"]}
HOSTILE = {
    "ward <i>&\"'": [
        "<script>alert(1)</script>",
        "$x_1$ and {{ 7*7 }}",
        "_hidden | `code`",
        "a name that goes on and on " * 6,
    ]
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@pytest.fixture(scope="module")
def real_search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a whole search of a tiny data set, in a store of the module's own; gives its run id."""
    from fairtune.search.search import search

    folder = tmp_path_factory.mktemp("real")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        uri = f"sqlite:///{folder}/mlflow.db"
        patch.chdir(folder)
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        settings = tiny_config(register={"name": "tiny"})
        with mlflow_at(uri):
            outcome = search(settings, str(write_data(folder)), StopRequest())
            yield outcome.run_id
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def written(real_search: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of the real search once, for the tests that only read it."""
    return write_report(real_search, tmp_path_factory.mktemp("written"), n_resamples=FEW)
