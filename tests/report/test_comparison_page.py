"""The page of a comparison, from the tables and figures that its run holds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image
from report.pages import Page

from fairtune.errors import InputError
from fairtune.report import write_report
from fairtune.tracking.runs import open_run

ROWS = pd.DataFrame(
    {
        "task": ["skin"] * 2 + ["eyes <b>"],
        "method": ["full", "searched", "full"],
        "n": [3, 3, 3],
        "worst group": ["0.700 ± 0.010", "0.730 ± 0.020", "0.900"],
        "trains": ["100%", "12%", "100%"],
    }
)
THRESHOLDS = pd.DataFrame(
    {
        "task": ["skin"],
        "method": ["full"],
        "n": [3],
        "equalized odds difference": ["0.400 ± 0.010"],
        "equalized odds difference, by group": ["0.050 ± 0.020"],
    }
)
CLAIM = {
    "task": "skin",
    "metric": "worst_group_auroc",
    "method": "searched",
    "reference": "full",
    "mean": 0.03,
    "n": 3,
    "low": -0.01,
    "high": 0.07,
    "patient_low": -0.02,
    "patient_high": 0.08,
    "p": 0.21,
    "patient_p": float("nan"),
    "hedges_g": 0.84,
    "verdict": "not decided",
}


def test_a_comparison_has_a_page(mlflow_store: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "critical-difference.png")
    with open_run("compare", "compare mine", experiment="fairtune") as log:
        log.text("table.csv", ROWS.to_csv(index=False))
        log.text("claim.csv", pd.DataFrame([CLAIM]).to_csv(index=False))
        log.text("thresholds.csv", THRESHOLDS.to_csv(index=False))
        log.text("comparison.yaml", "name: mine")
        log.file(tmp_path / "critical-difference.png", "figures")
    path = write_report(log.run_id, tmp_path / "out")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))
    assert not page.all("script")
    assert not page.all("b")
    assert "On skin, 2 methods were compared over 3 seeds." in page.text
    assert "searched has a higher worst-group AUROC" in page.text
    assert "is not decided" in page.text
    assert "On eyes <b>, 1 methods" not in page.text
    assert "0.730 ± 0.020" in page.text
    assert "-0.010 to +0.070 -0.020 to +0.080 0.210" in page.text
    assert "Hedges' g" in page.text
    assert "+0.84" in page.text
    assert "Thresholds by group, a reference" in page.text
    assert "skin full 3 0.400 ± 0.010 0.050 ± 0.020" in page.text
    (image,) = page.all("img")
    assert str(image["alt"]).startswith("Critical difference")
    assert str(image["src"]).startswith("data:image/png;base64,")
    files = {file.path for file in MlflowClient().list_artifacts(log.run_id)}
    assert "report.html" in files


def test_an_interval_that_is_not_defined_is_left_empty(mlflow_store: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    alone = CLAIM | dict.fromkeys(("low", "high", "p", "hedges_g"), float("nan")) | {"n": 1}
    with open_run("compare", "compare mine", experiment="fairtune") as log:
        log.text("table.csv", ROWS.to_csv(index=False))
        log.text("claim.csv", pd.DataFrame([alone]).to_csv(index=False))
    page = Page(write_report(log.run_id).read_text(encoding="utf-8"))
    assert "nan" not in page.text
    assert "+0.030 1 -0.020 to +0.080" in page.text
    with pytest.raises(InputError, match="cannot make the folder .*file: File exists"):
        write_report(log.run_id, tmp_path / "file")


def test_without_a_claim_the_tables_stand(mlflow_store: str, tmp_path: Path) -> None:
    with open_run("compare", "compare mine", experiment="fairtune") as log:
        log.text("table.csv", ROWS.to_csv(index=False))
        log.text("claim.csv", "\n")
    page = Page(write_report(log.run_id).read_text(encoding="utf-8"))
    assert page.problems == []
    assert "Differences that were asked about" not in page.text
    assert "Thresholds by group" not in page.text
