from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities import Run
from test_gate import GOOD, NAME, predictions, store, version  # noqa: F401

from fairtune.cli import main
from fairtune.errors import GateRefusedError, InputError
from fairtune.fairness import evaluate
from fairtune.tracking.gate import promote
from fairtune.tracking.model_card import (
    CHOSEN,
    FITTED,
    INTENDED_USE,
    model_card,
    write_model_card,
)
from fairtune.tracking.monitor import monitor
from fairtune.tracking.predictions import groups_of, probabilities_of
from fairtune.tracking.runs import KIND


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
    table = predictions(GOOD).assign(threshold=0.5, model_version="moles/1")  # as a server says
    report = monitor(saved(table, tmp_path, ending), NAME, experiment="e")
    assert report.version == champion
    assert report.broken == []
    assert all(watch.now == pytest.approx(watch.registered, abs=1e-4) for watch in report.watches)
    run = store.get_run(report.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["monitor/worst_group_auroc"] == pytest.approx(report.watches[1].now)
    assert run.data.tags["fairtune.model"] == f"{NAME}/{champion}"
    assert not [name for name in run.data.metrics if "threshold." in name or "model_ver" in name]


def test_a_group_that_got_worse_breaks_a_limit(
    store: MlflowClient,  # noqa: F811
    champion: str,
    tmp_path: Path,
) -> None:
    worse = saved(predictions({"north": 2.5, "south": 1.0}), tmp_path)
    with pytest.raises(GateRefusedError, match="worst_group_auroc") as caught:
        monitor(worse, NAME, experiment="e")
    assert caught.value.exit_code == 3
    assert "worst_group_auroc" in the_run(store).data.tags["fairtune.broken"]


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


def test_without_outcomes_only_the_selection_is_judged(
    store: MlflowClient,  # noqa: F811
    champion: str,
    tmp_path: Path,
) -> None:
    table = predictions(GOOD, shift=3.0).drop(columns="label")
    with pytest.raises(GateRefusedError, match="demographic_parity_difference") as caught:
        monitor(saved(table, tmp_path), NAME, experiment="e")
    assert "0 with an outcome" in str(caught.value)
    assert str(caught.value).count("not judged") == 3
    run = the_run(store)
    assert run.data.metrics["monitor/n"] == 1200
    assert run.data.metrics["monitor/n_by_group/site.south"] > 0
    assert run.data.metrics["monitor/selection_rate_by_group/site.south"] > 0.5
    assert not [name for name in run.data.metrics if "accuracy" in name or "log_loss" in name]


@pytest.mark.parametrize("known", [1, 3, 600])
def test_selection_is_judged_on_all_rows_whatever_outcomes_are_known(
    store: MlflowClient,  # noqa: F811
    champion: str,
    tmp_path: Path,
    known: int,
) -> None:
    table = predictions(GOOD, shift=3.0)
    everyone = evaluate(table["label"], probabilities_of(table), groups_of(table), threshold=0.5)
    table["label"] = table["label"].astype(float).where(np.arange(len(table)) < known)
    with pytest.raises(GateRefusedError, match=r"broken: .*demographic_parity_difference"):
        monitor(saved(table, tmp_path), NAME, experiment="e")
    metrics = the_run(store).data.metrics
    name = "demographic_parity_difference"
    assert metrics[f"monitor/{name}"] == pytest.approx(everyone.headline[name])
    assert metrics["monitor/n"] == metrics["monitor/n_judged"] == known


def the_run(client: MlflowClient) -> Run:
    """The one run of monitoring."""
    (run,) = client.search_runs(
        [client.get_experiment_by_name("e").experiment_id], "tags.`fairtune.broken` != ''"
    )
    return run


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
    for column, value, text in (
        ("label", "benign", "'benign' is not a class number"),
        ("label", 0.5, "class numbers are whole"),
        ("probability_1", "high", "'high' is not a probability"),
    ):
        wrong = table.astype({column: object})
        wrong.loc[3, column] = value
        with pytest.raises(InputError, match=text):
            monitor(saved(wrong, tmp_path, "csv"), NAME)


def test_card_says_what_was_measured(store: MlflowClient, champion: str) -> None:  # noqa: F811
    run_id = store.get_model_version(NAME, champion).run_id
    texts = {"data": "Photographs <of> moles.", "contact": "a@b.example", "licence": ""}
    store.log_text(run_id, yaml.safe_dump({"register": {"card": texts}}), "config.yaml")
    card = write_model_card(NAME, champion)
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
    assert "a@b.example" in markdown
    assert INTENDED_USE in markdown
    names = {item.path for item in store.list_artifacts(run_id)}
    assert {"model_card.md", "model_card.html"} <= names
    assert "promoted" in markdown


def test_card_says_what_holds_for_its_model(store: MlflowClient, tmp_path: Path) -> None:  # noqa: F811
    number = version(store, predictions(GOOD), tmp_path)
    run_id = store.get_model_version(NAME, number).run_id
    assert CHOSEN not in write_model_card(NAME, number, n_resamples=50).markdown()
    store.set_tag(run_id, KIND, "search")
    card = write_model_card(NAME, number, n_resamples=50)
    assert CHOSEN in card.markdown()
    assert FITTED in card.markdown()
    assert "| Gate |" not in card.markdown()
    promote(NAME, number)  # which writes the card anew
    text = Path(store.download_artifacts(run_id, "model_card.md")).read_text(encoding="utf-8")
    assert "| Gate | promoted " in text


def test_card_names_what_is_not_defined(store: MlflowClient, tmp_path: Path) -> None:  # noqa: F811
    table = predictions(GOOD)
    table.loc[table["site"] == "south", "label"] = 0
    card = model_card(NAME, version(store, table, tmp_path), n_resamples=50)
    (south,) = [row for row in card.groups if row.group == "south"]
    assert str(south.auroc) == "not defined"
    assert any("south" in line and "auroc" in line for line in card.undefined)
    assert "not defined" in card.html()
