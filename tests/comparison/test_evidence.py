"""`benchmarks/evidence.py`: the page of results from a store, and nothing else of the page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from comparison.test_folds import table
from stores import mlflow_at

from fairtune.fairness import bootstrap_report
from fairtune.tracking.predictions import groups_of, probabilities_of
from fairtune.tracking.runs import RunLog, open_run

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence.py"
PAGE = """# Results
Written by hand, on {name}.

<!-- begin {name} -->
of an earlier run
<!-- end {name} -->

Between <!-- the parts -->.

<!-- begin never_run -->
Not run: it takes long.
<!-- end never_run -->
After.
"""


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "docs" / "page.md"
    path.parent.mkdir()
    path.write_text(PAGE.format(name="tiny"))
    return path


def test_a_part_is_what_its_run_says(
    evidence: ModuleType, whole: tuple[str, RunLog], page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, log = whole
    with mlflow_at(log.tracking_uri):
        evidence.main(["--page", str(page)])
    text = page.read_text()
    before, part, after = split(text, "tiny")
    assert [before, after] == split(PAGE.format(name="tiny"), "tiny")[::2]  # the rest as it was
    assert "of an earlier run" not in text
    assert said.strip().replace("\n### ", "\n#### ") in part  # under the heading that the page has
    assert "Run: 8 of 8 units, " in part
    figures = ["critical-difference", "generalisation-gap-spots", "trade-off-spots"]
    there = sorted(path.name for path in (page.parent / "evidence").iterdir())
    assert there == [f"tiny-{name}.svg" for name in figures]
    for name in there:
        assert f"](evidence/{name})" in part
        assert (page.parent / "evidence" / name).read_text().rstrip().endswith("</svg>")
    told = capsys.readouterr().err
    assert "tiny: written" in told
    assert "never_run: no run in sqlite" in told


def test_running_it_twice_changes_nothing(
    evidence: ModuleType, whole: tuple[str, RunLog], page: Path
) -> None:
    with mlflow_at(whole[1].tracking_uri):
        evidence.main(["--page", str(page)])
        once = contents(page.parent)
        evidence.main(["--page", str(page)])
    assert contents(page.parent) == once


def test_a_comparison_without_a_model_and_an_empty_store_leave_the_page(
    evidence: ModuleType, mlflow_store: str, page: Path
) -> None:
    with open_run("compare", "compare tiny", experiment="fairtune") as log:
        log.log(tags={"fairtune.comparison": "tiny"}, metrics={"units_finished": 0})
    evidence.main(["--page", str(page)])
    assert contents(page.parent) == {"page.md": PAGE.format(name="tiny").encode()}


def test_the_noise_is_that_of_the_latest_run_of_each_protocol(
    evidence: ModuleType, mlflow_store: str, page: Path
) -> None:
    page.write_text(PAGE.format(name="noise"))
    tables = {kind: table(seed, 0.0, 1.0) for seed, kind in enumerate(evidence.PROTOCOLS)}
    finetune(tables["finetune"].assign(label=0), "finetune")  # an earlier one
    evidence.main(["--page", str(page)])
    assert "of an earlier run" in page.read_text()  # one protocol alone says nothing
    for kind, predictions in tables.items():
        finetune(predictions, kind)
    evidence.main(["--page", str(page)])
    _, part, _ = split(page.read_text(), "noise")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in part.split("\n") if "|" in line
    ]
    assert [row[0] for row in rows[2:]] == list(evidence.PROTOCOLS.values())
    for row, predictions in zip(rows[2:], tables.values(), strict=True):
        own = dict(list(predictions.groupby("site")))
        assert row[1] == "400"
        assert int(row[3]) == len(own[row[2]])
        assert int(row[4]) == own[row[2]]["label"].sum()
        found = bootstrap_report(
            predictions["label"], probabilities_of(predictions), groups_of(predictions),
            predictions["patient"],
        )["worst_group_auroc"]  # fmt: skip
        assert row[5:7] == [f"{found.estimate:.3f}", f"{found.standard_error:.3f}"]


def finetune(predictions: pd.DataFrame, kind: str) -> None:
    with open_run(kind, kind, experiment="fairtune") as log:
        path = Path("test.parquet")
        predictions.to_parquet(path)
        log.file(path, "predictions")
        log.log(tags={"fairtune.dataset": "ham10000"}, metrics={"test/auroc": 0.8})


def split(text: str, name: str) -> list[str]:
    """Cut a page into what is before a part, the part, and what is after it."""
    before, _, rest = text.partition(f"<!-- begin {name} -->\n")
    part, _, after = rest.partition(f"<!-- end {name} -->\n")
    return [before, part, after]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
