"""The reports of a cross-test and of what came after deployment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from report.conftest import FEW, GROUPS
from report.pages import Page
from report.samples import config, predictions, report_of, write_evaluation

from fairtune.comparison.crosstest import judge
from fairtune.errors import GateRefusedError, InputError
from fairtune.report import write_report
from fairtune.tracking.monitor import monitor
from fairtune.tracking.runs import open_run, runs_nested_in

NAME = "skin"


def page_of(run_id: str, folder: Path) -> Page:
    page = Page(write_report(run_id, folder, n_resamples=FEW).read_text(encoding="utf-8"))
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))
    return page


def sections(page: Page) -> list[str | None]:
    return [attrs["id"] for attrs in page.all("section")]


def note(run_id: str) -> str:
    return str(MlflowClient().get_run(run_id).data.tags["mlflow.note.content"])


def make_crosstest(folder: Path, folds: int = 3) -> str:
    """Log a cross-test of made-up folds, judged as a real one is."""
    with open_run("crosstest", "cross-test made up", experiment="fairtune") as log:
        log.text("config.yaml", config(GROUPS))
        log.log(
            tags={
                "fairtune.command": "finetune",
                "fairtune.bits": "1-0-1",
                "fairtune.dataset": "made up",
                "fairtune.objective": "worst_group_auroc",
            }
        )
        runs = []
        for fold in range(folds):
            with (
                runs_nested_in(log, {"fairtune.fold": fold}),
                open_run("finetune", f"fold {fold}", experiment="fairtune") as own,
            ):
                tables = {s: predictions(s, GROUPS, seed=fold) for s in ("val", "test")}
                for table in tables.values():
                    table["image"] = f"{fold}-" + table["image"]
                    table["patient"] = f"{fold}-" + table["patient"]
                write_evaluation(own, tables, folder)
                own.log(metrics={"threshold": 0.5}, params={"mask": "101", "learning_rate": 0.01})
                own.text("config.yaml", f"data: {{fold: {fold}}}")
                own.json("facts.json", {"classes": ["well", "ill"]})
                runs.append(own.run_id)
        judge(log, tuple(runs), 0)
    return log.run_id


def test_a_crosstest_has_a_report(mlflow_store: str, tmp_path: Path) -> None:
    run_id = make_crosstest(tmp_path)
    page = page_of(run_id, tmp_path / "out")
    metrics = MlflowClient().get_run(run_id).data.metrics
    assert sections(page) == ["answer", "groups", "folds", "data", "excluded", "reproduce"]
    assert "On the test split of made up (480 images of 240 patients), the models of 3" in page.text
    assert f"a worst-group AUROC of {metrics['test/worst_group_auroc']:.3f} (95%" in page.text
    assert f"worst group AUROC {metrics['test/worst_group_auroc_fold_mean']:.3f}" in page.text
    assert "ill (positive)" in page.text
    assert "fairtune finetune --config config.yaml --bits 1-0-1" in page.text
    assert "architecture: vit_made_up" in page.text  # of them all, not that of one fold
    assert "fold: 0" not in page.text
    for run in MlflowClient().search_runs(["1"], "tags.`fairtune.fold` != 'none'"):
        assert f"{run.data.metrics['test/auroc']:.3f}" in page.text
        assert run.info.run_id in page.text
    files = {file.path for file in MlflowClient().list_artifacts(run_id, "figures")}
    assert "figures/roc-ward.svg" in files
    # The common scale of the folds holds no probabilities: a calibration of them would say nothing.
    assert not any("calibration" in file for file in files)
    assert "| a&emsp; |" in note(run_id)


def test_an_unfinished_crosstest_has_nothing_to_tell(mlflow_store: str) -> None:
    with open_run("crosstest", "cut off", experiment="fairtune") as log:
        pass
    with pytest.raises(InputError, match="no result to report yet"):
        write_report(log.run_id)


@pytest.fixture
def champion(mlflow_store: str) -> str:
    """Register a version with the figures of the test split of made-up predictions."""
    client = MlflowClient()
    with open_run("finetune", "registered", experiment="fairtune") as log:
        log.log(metrics={"threshold": 0.5})
    client.create_registered_model(NAME)
    version = client.create_model_version(NAME, "nowhere", log.run_id).version
    for name, value in report_of(predictions("test", GROUPS), 0.5).headline.items():
        client.set_model_version_tag(NAME, version, f"test/{name}", f"{value:.6g}")
    client.set_registered_model_alias(NAME, "champion", version)
    return str(version)


def logged(table: pd.DataFrame, folder: Path) -> Path:
    path = folder / "week-12.parquet"
    table.to_parquet(path)
    return path


def test_a_monitored_batch_has_a_report(champion: str, tmp_path: Path) -> None:
    table = predictions("test", GROUPS)
    table["label"] = table["label"].astype(float).where(np.arange(len(table)) < 150)
    path = logged(table, tmp_path)
    found = monitor(path, NAME, n_resamples=FEW)
    page = page_of(found.run_id, tmp_path / "out")
    assert sections(page) == ["answer", "groups", "data", "gate", "excluded", "reproduce"]
    assert f"On logged predictions of {NAME} version {champion} (150 images of" in page.text
    assert f"a worst-group AUROC of {found.watches[1].now:.3f} (95% interval" in page.text
    assert "Of 4 limits 4 are kept and 0 broken." in page.text
    watch = found.watches[0]
    row = f"auroc {watch.registered:.3f} {watch.now:.3f} {watch.bound:.3f} {watch.limit:.3f} kept"
    assert row in page.text
    assert "Registered Now" in page.text
    assert "10 logged predictions have no outcome yet." in page.text
    assert f"fairtune monitor --name {NAME} --predictions {path} --margin 0.05" in page.text
    assert f"**Monitor** on **logged predictions of {NAME} version 1**" in note(found.run_id)


def test_what_is_kept_of_a_batch_names_no_patient(champion: str, tmp_path: Path) -> None:
    found = monitor(logged(predictions("test", GROUPS), tmp_path), NAME, n_resamples=FEW)
    kept = pd.read_parquet(
        MlflowClient().download_artifacts(found.run_id, "predictions/monitor.parquet")
    )
    assert len(kept) == 160
    assert kept["patient"].nunique() == 80
    assert all(pd.api.types.is_integer_dtype(kept[name]) for name in ("image", "patient"))


def test_without_outcomes_the_report_shows_the_limits_alone(champion: str, tmp_path: Path) -> None:
    table = predictions("test", GROUPS).drop(columns="label")
    table["probability_1"] = np.where(table["ward"] == "a", 0.9, 0.1)  # all of one group
    table["probability_0"] = 1 - table["probability_1"]
    with pytest.raises(GateRefusedError, match="report: fairtune report ") as refused:
        monitor(logged(table, tmp_path), NAME, n_resamples=FEW)
    page = page_of(str(refused.value).split()[-1], tmp_path / "out")
    assert sections(page) == ["answer", "gate", "excluded", "reproduce"]
    assert "None of the 160 logged predictions has an outcome yet" in page.text
    assert "1 broken: demographic parity difference." in page.text
    assert page.text.count("not judged") == 3
