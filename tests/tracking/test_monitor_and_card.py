from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from test_gate import GOOD, NAME, predictions, store, version  # noqa: F401

from fairtune.cli import main
from fairtune.errors import GateRefusedError, InputError
from fairtune.fairness import evaluate
from fairtune.tracking.gate import promote
from fairtune.tracking.model_card import CardTexts, model_card, write_model_card
from fairtune.tracking.monitor import monitor
from fairtune.tracking.predictions import groups_of, probabilities_of


@pytest.fixture
def champion(store: MlflowClient, tmp_path: Path) -> str:  # noqa: F811
    table = predictions(GOOD)
    number = version(store, table, tmp_path)
    figures = evaluate(table["label"], probabilities_of(table), groups_of(table), threshold=0.5)
    for key, value in figures.headline.items():
        store.set_model_version_tag(NAME, number, f"test/{key}", f"{value:.6g}")
    promote(NAME, number)
    return number


def saved(table: pd.DataFrame, folder: Path, ending: str = "parquet") -> Path:
    path = folder / f"logged.{ending}"
    table.to_parquet(path) if ending == "parquet" else table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_same_data_break_no_limit(
    store: MlflowClient,  # noqa: F811
    champion: str,
    tmp_path: Path,
    ending: str,
) -> None:
    report = monitor(saved(predictions(GOOD), tmp_path, ending), NAME, experiment="e")
    assert report.version == champion
    assert report.broken == []
    assert all(watch.now == pytest.approx(watch.registered, abs=1e-4) for watch in report.watches)
    run = store.get_run(report.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["monitor/worst_group_auroc"] == pytest.approx(report.watches[1].now)
    assert run.data.tags["fairtune.model"] == f"{NAME}/{champion}"


def test_a_group_that_got_worse_breaks_a_limit(
    store: MlflowClient,  # noqa: F811
    champion: str,
    tmp_path: Path,
) -> None:
    worse = saved(predictions({"north": 2.5, "south": 1.0}), tmp_path)
    with pytest.raises(GateRefusedError, match="worst_group_auroc") as caught:
        monitor(worse, NAME, experiment="e")
    assert caught.value.exit_code == 3
    (run,) = store.search_runs(
        [store.get_experiment_by_name("e").experiment_id], "tags.`fairtune.broken` != ''"
    )
    assert "worst_group_auroc" in run.data.tags["fairtune.broken"]


def test_the_command_line_says_whether_a_limit_is_broken(champion: str, tmp_path: Path) -> None:
    def run(table: pd.DataFrame, *options: str) -> Result:
        path = str(saved(table, tmp_path))
        return CliRunner().invoke(
            main, ["monitor", "--name", NAME, "--predictions", path, *options]
        )

    kept = run(predictions(GOOD))
    assert kept.exit_code == 0, kept.stderr
    assert json.loads(kept.stdout.splitlines()[-1])["broken"] == []
    worse = predictions({"north": 2.5, "south": 1.0})
    broken = run(worse)
    assert (broken.exit_code, broken.stdout) == (3, "")
    assert "broken: auroc, worst_group_auroc" in broken.stderr
    assert run(worse, "--margin", "0.5").exit_code == 0


def test_a_small_sample_is_no_alarm(champion: str, tmp_path: Path) -> None:
    few = predictions({"north": 2.5, "south": 1.6}).iloc[:60]
    report = monitor(saved(few, tmp_path), NAME, experiment="e")
    watch = {item.metric: item for item in report.watches}["worst_group_auroc"]
    assert watch.now < watch.limit < watch.bound
    assert report.broken == []
    assert watch.state == "kept"


def test_without_outcomes_only_the_selection_is_judged(champion: str, tmp_path: Path) -> None:
    table = predictions(GOOD, shift=3.0).drop(columns="label")
    with pytest.raises(GateRefusedError, match="demographic_parity_difference") as caught:
        monitor(saved(table, tmp_path), NAME, experiment="e")
    assert "0 with an outcome" in str(caught.value)
    assert str(caught.value).count("not judged") == 3


def test_rows_whose_outcome_is_not_known_yet_wait(champion: str, tmp_path: Path) -> None:
    table = predictions(GOOD)
    table["label"] = table["label"].astype(float).where(np.arange(len(table)) < 600)
    report = monitor(saved(table, tmp_path), NAME, experiment="e")
    assert (report.n, report.n_judged) == (1200, 600)


def test_files_that_cannot_be_used(champion: str, tmp_path: Path) -> None:
    table = predictions(GOOD)
    with pytest.raises(InputError, match="cannot read"):
        monitor(tmp_path / "none.parquet", NAME)
    with pytest.raises(InputError, match="no column 'probability_1'"):
        monitor(saved(table.drop(columns="probability_1"), tmp_path), NAME)
    with pytest.raises(InputError, match="sensitive attribute"):
        monitor(saved(table.drop(columns="site"), tmp_path), NAME)
    with pytest.raises(InputError, match="no registered model"):
        monitor(saved(table, tmp_path), "nobody")


def test_card_says_what_was_measured(store: MlflowClient, champion: str) -> None:  # noqa: F811
    texts = CardTexts(data="Photographs <of> moles.", contact="a@b.example")
    card = write_model_card(NAME, champion, texts=texts)
    report = evaluate(
        predictions(GOOD)["label"],
        probabilities_of(predictions(GOOD)),
        groups_of(predictions(GOOD)),
        threshold=0.5,
    )
    markdown, page = card.markdown(), card.html()
    for text in (markdown, page):
        assert "1200 images" in text
        assert "400 patients" in text
        assert f"{report.headline['worst_group_auroc']:.3f} (" in text
        assert "debias" not in text
        assert "AUC score" not in text
    assert "<of>" not in page
    assert html.escape("<of>") in page
    assert [row.group for row in card.groups] == list(report.groups["site"])
    for row in card.groups:
        cell = report.groups["site"][row.group]
        assert row.n == cell.n
        assert row.auroc.value == pytest.approx(cell.values["auroc"])
        assert row.auroc.low < row.auroc.value < row.auroc.high
    run_id = store.get_model_version(NAME, champion).run_id
    names = {item.path for item in store.list_artifacts(run_id)}
    assert {"model_card.md", "model_card.html"} <= names
    assert "promoted" in markdown


def test_card_names_what_is_not_defined(store: MlflowClient, tmp_path: Path) -> None:  # noqa: F811
    table = predictions(GOOD)
    table.loc[table["site"] == "south", "label"] = 0
    card = model_card(NAME, version(store, table, tmp_path), n_resamples=50)
    (south,) = [row for row in card.groups if row.group == "south"]
    assert str(south.auroc) == "not defined"
    assert any("south" in line and "auroc" in line for line in card.undefined)
    assert "not defined" in card.html()
