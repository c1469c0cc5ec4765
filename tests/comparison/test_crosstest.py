"""A search and a fine-tune in every fold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from search.samples import tiny_config

from fairtune.cli import main
from fairtune.comparison.crosstest import cross_test
from fairtune.config import Config
from fairtune.errors import InputError
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.tracking.predictions import read_predictions
from fairtune.tracking.runs import RunLog, existing_run
from fairtune.workspace import open_workspace

TINY = {"train__epochs": 1, "train__batch_size": 50, "search__space": "fullft"}


def config_of(folds: int | None = 3, **changes: object) -> Config:
    return tiny_config(**TINY, data__folds=folds, **changes)


class StopAfter(StopRequest):
    """Asks to stop when a fold is asked for the n-th time whether to go on."""

    def __init__(self, n: int) -> None:
        self.left, self.reason = n, "stopped by Ctrl-C"

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise InterruptedSearchError(self.reason)

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return False


def pooled(log: RunLog, folder: Path) -> list[str]:
    table = read_predictions(log.download("predictions/test.parquet", folder))
    assert table["image"].is_unique
    return sorted(table["image"])


def test_a_finetune_in_every_fold(mlflow_store: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(config_of(None).to_yaml())
    arguments = ["finetune", "--config", str(path), "--source", source, "--folds", "3"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "mean of the folds" in result.stdout
    said = json.loads(result.stdout.splitlines()[-1])
    log = existing_run(said["run_id"])
    folds = log.children()
    assert [run.data.tags["fairtune.fold"] for run in folds] == ["0", "1", "2"]
    assert {run.info.status for run in folds} == {"FINISHED"}
    assert said["fold_runs"] == [run.info.run_id for run in folds]
    assert len(pooled(log, tmp_path)) == 200  # every image is tested, once
    metrics = log.data().data.metrics
    own = [run.data.metrics["test/auroc"] for run in folds]
    assert metrics["test/auroc_fold_mean"] == pytest.approx(sum(own) / 3)
    assert metrics["test/auroc"] == pytest.approx(sum(own) / 3, abs=0.1)
    assert 0 < metrics["test/worst_group_auroc_standard_error"] < 0.2
    assert metrics["test/n"] == 200
    assert "report.html" in {file.path for file in log.client.list_artifacts(log.run_id)}
    report = Path(log.download("report.html", tmp_path)).read_text(encoding="utf-8")
    assert f"--source {source}" in report
    assert all(run.info.run_id in report for run in folds)


def test_one_fold_alone_is_an_ordinary_run(mlflow_store: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(config_of(None).to_yaml())
    command = ["finetune", "--config", str(path), "--source", source, "--folds", "3"]
    result = CliRunner().invoke(main, [*command, "-o", "data.fold=1"])
    assert result.exit_code == 0, result.output
    log = existing_run(json.loads(result.stdout.splitlines()[-1])["run_id"])
    assert log.data().data.tags["fairtune.kind"] == "finetune"
    assert log.children() == []
    refused = CliRunner().invoke(main, [*command, "-o", "data.fold=3"])
    assert refused.exit_code == 2
    assert "fold 3 needs folds above it, not 3" in refused.output


def test_a_stopped_crosstest_keeps_the_folds_that_are_done(mlflow_store: str, source: str) -> None:
    import mlflow

    with pytest.raises(InterruptedSearchError):
        cross_test(config_of(), source, StopAfter(2), "finetune")
    runs = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.`fairtune.kind` = 'crosstest'"
    )
    log = existing_run(runs["run_id"][0])
    before = [run.info.run_id for run in log.children()]
    with pytest.raises(InputError, match=f"one fold of a cross-test: resume {log.run_id}"):
        cross_test(config_of(), source, StopRequest(), "finetune", resume=before[0])
    done = cross_test(config_of(), source, StopRequest(), "finetune", resume=log.run_id)
    assert done.run_id == log.run_id
    assert list(done.fold_runs[:2]) == before
    assert len(log.children()) == 3


def test_a_search_in_every_fold_registers_nothing(mlflow_store: str, source: str) -> None:
    final = {"candidates": 1, "seeds": 1}
    config = config_of(search__trials=1, search__final=final, register__name="nothing")
    done = cross_test(config, source, StopRequest(), "search")
    log = existing_run(done.run_id)
    kinds = {run.data.tags["fairtune.kind"] for run in log.children()}
    assert kinds == {"search"}
    assert log.client.search_registered_models() == []
    for run_id in done.fold_runs:
        assert "winners_curse" in existing_run(run_id).data().data.metrics


def test_what_cannot_be_crosstested_is_one_line(
    mlflow_store: str, source: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="cross-testing needs data.folds"):
        cross_test(config_of(None), source, StopRequest(), "search")
    with pytest.raises(InputError, match="fold by fold, with --folds"):
        open_workspace(config_of(), source)
    path = tmp_path / "tiny.yaml"
    path.write_text(config_of(None).to_yaml())
    result = CliRunner().invoke(main, ["search", "--config", str(path), "--folds", "2"])
    assert result.exit_code == 2
    assert "data.folds" in result.stderr
    assert result.stderr.count("\n") == 1
    with pytest.raises(InputError, match="fold 3 needs folds above it, not 3"):
        config_of(data__fold=3)
