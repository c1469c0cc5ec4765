from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST
from stores import mlflow_at

from fairtune.cli import main
from fairtune.errors import GateRefusedError, InputError
from fairtune.tracking import aliases
from fairtune.tracking.aliases import LOCK_SUFFIX, alias_lock, alias_version, replace_champion
from fairtune.tracking.gate import GateLimits, decisions, promote, rollback

NAME = "moles"


@pytest.fixture
def store(mlflow_store: str, tmp_path: Path) -> MlflowClient:
    client = MlflowClient()
    client.create_experiment("e", (tmp_path / "artifacts").as_uri())
    client.create_registered_model(NAME)
    return client


def predictions(
    skill: dict[str, float], *, n: int = 1200, noise: int = 0, shift: float = 0.0
) -> pd.DataFrame:
    """Rows of two sites with three images a patient; `skill` is a site's distance of the classes.

    The same patients, labels and most of the noise whatever the model, as two models of one data
    set have them; `noise` seeds the part of a model's own.
    """
    rng = np.random.default_rng(0)
    patient = np.arange(n) // 3
    site = np.where(rng.random(n // 3 + 1) < 0.6, "north", "south")[patient]
    label = (rng.random(n) < 0.4).astype(int)
    shared = rng.normal(size=n)
    own = np.random.default_rng(1 + noise).normal(size=n)
    distance = np.array([skill[name] for name in site])
    logit = distance * (label - 0.5) + 0.95 * shared + 0.3 * own
    logit += shift * (site == "south")
    score = 1 / (1 + np.exp(-logit))
    return pd.DataFrame(
        {
            "image": [f"i{k}" for k in range(n)],
            "patient": [f"p{k}" for k in patient],
            "label": label,
            "probability_0": 1 - score,
            "probability_1": score,
            "site": site,
        }
    )


def version(client: MlflowClient, table: pd.DataFrame, folder: Path, threshold: float = 0.5) -> str:
    experiment = client.get_experiment_by_name("e").experiment_id
    run_id = client.create_run(experiment).info.run_id
    folder = folder / run_id
    folder.mkdir()
    table.to_parquet(folder / "test.parquet")
    client.log_artifact(run_id, str(folder / "test.parquet"), "predictions")
    client.log_metric(run_id, "threshold", threshold)
    client.set_terminated(run_id)
    return str(client.create_model_version(NAME, "nowhere", run_id).version)


def tags(client: MlflowClient, number: str) -> dict[str, str]:
    return client.get_model_version(NAME, number).tags


GOOD = {"north": 2.5, "south": 2.5}


def test_first_version_passes_absolute_limits(store: MlflowClient, tmp_path: Path) -> None:
    number = version(store, predictions(GOOD), tmp_path)
    decision = promote(NAME, number)
    assert decision.outcome == "promoted"
    assert decision.champion is None
    assert (decision.n, decision.n_patients) == (1200, 400)
    assert alias_version(store, NAME, "champion") == number
    assert tags(store, number)["fairtune.gate"] == "promoted"
    (path,) = decisions(NAME, number)
    record = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert record["checks"][0]["metric"] == "worst_group_auroc"


def test_first_version_below_the_limits_is_refused(store: MlflowClient, tmp_path: Path) -> None:
    number = version(store, predictions({"north": 2.5, "south": 0.1}), tmp_path)
    with pytest.raises(GateRefusedError, match="worst_group_auroc") as caught:
        promote(NAME, number)
    assert caught.value.exit_code == 3
    assert alias_version(store, NAME, "champion") is None
    assert tags(store, number)["fairtune.gate"] == "refused"
    assert "worst_group_auroc" in tags(store, number)["fairtune.gate.failed"]


def test_better_for_the_worst_group_is_promoted_and_rolled_back(
    store: MlflowClient, tmp_path: Path
) -> None:
    first = version(store, predictions({"north": 2.5, "south": 1.5}), tmp_path)
    second = version(store, predictions({"north": 2.5, "south": 2.5}, noise=1), tmp_path)
    promote(NAME, first)
    decision = promote(NAME, second)
    assert decision.champion == first
    assert alias_version(store, NAME, "champion") == second
    assert alias_version(store, NAME, "previous") == first
    assert rollback(NAME).text == f"{NAME} version {first} is the champion again, was {second}"
    assert alias_version(store, NAME, "champion") == first
    assert alias_version(store, NAME, "previous") == second
    assert tags(store, first)["fairtune.gate"] == "rolled_back"


def test_the_command_line_promotes_refuses_and_rolls_back(
    store: MlflowClient, tmp_path: Path
) -> None:
    first = version(store, predictions({"north": 2.5, "south": 2.0}), tmp_path)
    better = version(store, predictions(GOOD, noise=1), tmp_path)
    worse = version(store, predictions({"north": 2.5, "south": 1.0}, noise=2), tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["promote", NAME, *arguments])

    assert run("--version", first).exit_code == 0
    done = run("--version", better)
    assert done.exit_code == 0, done.stderr
    last = {"model_name": NAME, "model_version": better, "outcome": "promoted"}
    assert json.loads(done.stdout.splitlines()[-1]) == last
    refused = run("--version", worse)
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert refused.stderr.startswith(f"fairtune: {NAME} version {worse} refused: compared with")
    assert "lower bound of the difference of worst_group_auroc" in refused.stderr
    assert alias_version(store, NAME, "champion") == better
    wide = ("--worst-group-margin", "1", "--auroc-margin", "1", "--equalized-odds-limit", "1")
    assert run("--version", worse, *wide).exit_code == 0
    assert run("--rollback").exit_code == 0
    assert alias_version(store, NAME, "champion") == better


def test_worse_for_one_group_is_refused_though_better_overall(
    store: MlflowClient, tmp_path: Path
) -> None:
    first = version(store, predictions({"north": 2.0, "south": 2.0}), tmp_path)
    second = version(store, predictions({"north": 3.5, "south": 1.6}, noise=1), tmp_path)
    promote(NAME, first)
    with pytest.raises(GateRefusedError) as caught:
        promote(NAME, second)
    (path,) = decisions(NAME, second)
    checks = {check["metric"]: check for check in json.loads(path.read_text())["checks"]}
    assert checks["auroc"]["passed"]
    assert checks["auroc"]["candidate"] > checks["auroc"]["champion"]
    assert not checks["worst_group_auroc"]["passed"]
    assert "worst_group_auroc" in str(caught.value)
    assert alias_version(store, NAME, "champion") == first


def test_the_bound_decides_and_not_the_figure(store: MlflowClient, tmp_path: Path) -> None:
    """Equal models on few patients: nothing is shown, so nothing passes; a wide margin lets it."""
    skill = {"north": 1.5, "south": 1.5}
    first = version(store, predictions(skill, n=150), tmp_path)
    second = version(store, predictions(skill, n=150, noise=2), tmp_path)
    store.set_registered_model_alias(NAME, "champion", first)
    with pytest.raises(GateRefusedError):
        promote(NAME, second)
    wide = GateLimits(worst_group_margin=0.2, auroc_margin=0.2, equalized_odds_limit=1.0)
    assert promote(NAME, second, limits=wide).outcome == "promoted"


def test_unequal_error_rates_are_refused_unless_the_champion_has_them_too(
    store: MlflowClient, tmp_path: Path
) -> None:
    even = version(store, predictions(GOOD), tmp_path)
    skewed = version(store, predictions(GOOD, noise=1, shift=2.0), tmp_path)
    promote(NAME, even)
    limits = GateLimits(worst_group_margin=0.1, auroc_margin=0.1)
    with pytest.raises(GateRefusedError, match="equalized_odds_difference"):
        promote(NAME, skewed, limits=limits)
    store.set_registered_model_alias(NAME, "champion", skewed)
    less = version(store, predictions(GOOD, noise=1, shift=1.8), tmp_path)
    assert promote(NAME, less, limits=limits).outcome == "promoted"


def test_no_second_class_in_a_group_is_not_passed(store: MlflowClient, tmp_path: Path) -> None:
    table = predictions(GOOD)
    table.loc[table["site"] == "south", "label"] = 0
    table.loc[table["site"] == "north", "label"] = 1
    number = version(store, table, tmp_path)
    with pytest.raises(GateRefusedError, match="worst_group_auroc"):
        promote(NAME, number)
    assert "worst_group_auroc" in tags(store, number)["fairtune.gate.failed"]


def test_other_images_or_labels_cannot_be_compared(store: MlflowClient, tmp_path: Path) -> None:
    promote(NAME, version(store, predictions(GOOD), tmp_path))
    fewer = predictions(GOOD).iloc[:-1]
    relabelled = predictions(GOOD)
    relabelled.loc[3, "label"] = 1 - relabelled.loc[3, "label"]
    for table in (fewer, relabelled):
        with pytest.raises(InputError, match="different images"):
            promote(NAME, version(store, table, tmp_path))
    shuffled = predictions(GOOD, noise=0).sample(frac=1, random_state=0)
    assert promote(NAME, version(store, shuffled, tmp_path)).outcome == "promoted"


def test_unknown_names_versions_and_missing_predictions(
    store: MlflowClient, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no registered model 'nobody' .*known: moles"):
        promote("nobody", 1)
    with pytest.raises(InputError, match=r"no version '9' \(known: none\)"):
        promote(NAME, 9)
    number = version(store, predictions(GOOD), tmp_path)
    with pytest.raises(InputError, match=r"predictions/val\.parquet"):
        promote(NAME, number, split="val")
    promote(NAME, number)
    with pytest.raises(InputError, match="is the champion already"):
        promote(NAME, number)
    with pytest.raises(InputError, match="no version with the alias 'previous'"):
        rollback(NAME)


def test_a_lock_that_is_let_go_while_mlflow_looks_for_its_holder_is_tried_again(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = version(store, predictions(GOOD), tmp_path)
    create, tries = store.create_registered_model, []

    def gone_at_first(*args: Any, **settings: Any) -> Any:
        tries.append(args[0])
        if len(tries) == 1:
            raise MlflowException("not found", error_code=RESOURCE_DOES_NOT_EXIST)
        return create(*args, **settings)

    monkeypatch.setattr(store, "create_registered_model", gone_at_first)
    replace_champion(store, NAME, None, number)
    assert len(tries) == 2
    assert str(store.get_model_version_by_alias(NAME, "champion").version) == number


def _promote_in_process(uri: str, number: str, barrier, results) -> None:  # type: ignore[no-untyped-def]
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    from fairtune.tracking import gate

    compare = gate._compare

    def together(*args: object) -> object:
        barrier.wait(60)  # both have read the same champion
        return compare(*args)  # type: ignore[arg-type]

    gate._compare = together  # type: ignore[assignment]
    try:
        results.put((number, gate.promote(NAME, number).outcome))
    except GateRefusedError as error:
        results.put((number, str(error)))


def test_two_promotions_at_once_cannot_both_win(store: MlflowClient, tmp_path: Path) -> None:
    first = version(store, predictions({"north": 2.5, "south": 1.0}), tmp_path)
    rivals = [version(store, predictions(GOOD, noise=k), tmp_path) for k in (1, 2)]
    store.set_registered_model_alias(NAME, "champion", first)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    uri = mlflow.get_tracking_uri()
    processes = [
        context.Process(target=_promote_in_process, args=(uri, number, barrier, results))
        for number in rivals
    ]
    for process in processes:
        process.start()
    outcomes = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
    (winner,) = [number for number, outcome in outcomes.items() if outcome == "promoted"]
    (loser,) = set(rivals) - {winner}
    assert "run the promotion again" in outcomes[loser]
    assert alias_version(store, NAME, "champion") == winner
    assert alias_version(store, NAME, "previous") == first
    assert not [m for m in store.search_registered_models() if m.name.endswith(LOCK_SUFFIX)]


def test_a_lock_of_a_dead_process_is_taken_over(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_registered_model(NAME + LOCK_SUFFIX, tags={"fairtune.owner": "gone"})
    monkeypatch.setattr(aliases, "WAIT_SECONDS", 0.3)
    with pytest.raises(InputError, match="another promotion"), alias_lock(store, NAME):
        pass
    monkeypatch.setattr(aliases, "STALE_SECONDS", 0.1)
    time.sleep(0.2)
    with alias_lock(store, NAME):
        assert store.get_registered_model(NAME + LOCK_SUFFIX)


def test_ten_thousand_images_take_under_ten_seconds(store: MlflowClient, tmp_path: Path) -> None:
    skill = {"north": 2.5, "south": 2.3}
    promote(NAME, version(store, predictions(skill, n=10_000), tmp_path))
    second = version(store, predictions(skill, n=10_000, noise=1), tmp_path)
    start = time.process_time()
    promote(NAME, second, limits=GateLimits(worst_group_margin=0.05))
    assert time.process_time() - start < 10


@pytest.mark.parametrize("command", [["promote", NAME, "--version", "1"],
                                     ["promote", NAME, "--rollback"],
                                     ["monitor", "--name", NAME, "--predictions", "none.csv"],
                                     ["register", "abc", "--name", NAME],
                                     ["predict", __file__, "--model", NAME],
                                     ["serve", "--model", f"{NAME}/1"]])  # fmt: skip
def test_a_store_that_does_not_answer_is_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairtune.tracking.stores.TRIES", 1)
    with mlflow_at("http://127.0.0.1:9"):
        done = CliRunner().invoke(main, command)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "does not answer" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_model_is_not_looked_for_in_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("no database")
    with mlflow_at(f"sqlite:///{tmp_path}/x.db"):
        done = CliRunner().invoke(main, ["predict", __file__, "--model", NAME])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "file is not a database" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_serving_asks_for_no_more_than_its_image_has() -> None:
    """A serving image has MLflow's client alone: deploy/serving.txt."""
    lines = (Path(__file__).parents[2] / "deploy" / "serving.txt").read_text().splitlines()
    there = {line for line in lines if line and not line.startswith("#")}
    assert not there & {"sqlalchemy", "filelock", "mlflow"}
    code = (
        "import sys\n"
        "for name in ('sqlalchemy', 'filelock', 'hyperopt', 'fairlearn', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "from fairtune.cli import main\n"
        "main(['serve', '--model', 'nobody'])"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert "the server does not answer" in done.stderr, done.stderr
    assert done.returncode == 2


def test_what_the_store_refuses_is_not_taken_for_an_unknown_name(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "get_registered_model", refuse)
    done = CliRunner().invoke(main, ["promote", NAME, "--rollback"])
    assert done.exit_code == 2
    assert "Permission denied" in done.stderr
    assert "no registered model" not in done.stderr
