"""Searches that were cut off and continued."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from search.conftest import children
from search.samples import tiny_config
from search.test_whole_search import ONE_FINAL, StopAt, fail_where, figures, only_search
from stores import mlflow_at

from fairtune.config import Config
from fairtune.errors import InputError
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.search.search import search

CONFIG = tiny_config(search__trials=8, search__final={"candidates": 1, "seeds": 2})

PRUNED = tiny_config(
    train__epochs=3,
    search__trials=7,
    search__pruning={"rule": "halving", "rungs": [1, 2], "reduction": 2, "min_trials": 2},
    search__final=ONE_FINAL,
)
PAUSING = PRUNED.model_copy(
    update={
        "search": PRUNED.search.model_copy(
            update={"pruning": PRUNED.search.pruning.model_copy(update={"rule": "asha"})}
        )
    }
)


def finished(run_id: str, kind: str) -> list[tuple[str | None, dict[str, str]]]:
    return figures([run for run in children(run_id, kind) if run.info.status == "FINISHED"])


@pytest.fixture(scope="module")
def uncut(
    source: str, _empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Config], dict[str, object]]:
    """Run a search without a break, in a store of its own: what every continued one must equal."""

    def run(config: Config) -> dict[str, object]:
        folder = tmp_path_factory.mktemp("uncut")
        shutil.copy(_empty_store, folder / "mlflow.db")
        with chdir(folder), mlflow_at(f"sqlite:///{folder}/mlflow.db"):
            outcome = search(config, source, StopRequest())
            return {
                "trial": finished(outcome.run_id, "trial"),
                "final": finished(outcome.run_id, "final"),
                "metrics": outcome.metrics,
            }

    return run


@pytest.fixture(scope="module")
def whole(uncut: Callable[[Config], dict[str, object]]) -> dict[str, object]:
    return uncut(CONFIG)


@pytest.fixture(scope="module", params=[PRUNED, PAUSING], ids=["halving", "asha"])
def pruned(
    request: pytest.FixtureRequest, uncut: Callable[[Config], dict[str, object]]
) -> tuple[Config, dict[str, object]]:
    """Give a configuration, and what it leads to without a break."""
    return request.param, uncut(request.param)


def assert_equals(run_id: str, whole: dict[str, object]) -> None:
    assert finished(run_id, "trial") == whole["trial"]  # none lost, none doubled, none different
    assert sorted(finished(run_id, "final")) == sorted(whole["final"])  # type: ignore[type-var]
    assert {run.info.status for run in children(run_id)} <= {"FINISHED", "KILLED"}
    assert MlflowClient().get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize("after", [1, 12, 31])
def test_a_stopped_search_goes_on_as_if_it_had_not_been(
    store: str, source: str, whole: dict[str, object], after: int
) -> None:
    with pytest.raises(InterruptedSearchError):
        search(CONFIG, source, StopAt(after))
    run_id = only_search().info.run_id
    outcome = search(CONFIG, source, StopRequest(), resume=run_id)
    assert outcome.run_id == run_id
    assert outcome.metrics == whole["metrics"]
    assert_equals(run_id, whole)


@pytest.mark.parametrize("after", [3, 9, 14])
def test_a_stopped_search_prunes_as_if_it_had_not_been(
    store: str, source: str, pruned: tuple[Config, dict[str, object]], after: int
) -> None:
    config, whole = pruned
    run_id = stopped(source, config, after)
    search(config, source, StopRequest(), resume=run_id)
    assert_equals(run_id, whole)
    assert len({r.data.metrics["epochs"] for r in children(run_id, "trial")}) > 1


def command(config: Path, source: str, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "fairtune",
        "search",
        "--config",
        str(config),
        "--source",
        source,
        *more,
    ]


def environment(store: str) -> dict[str, str]:
    return {**os.environ, "MLFLOW_TRACKING_URI": store, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(2))
def test_kill_9_at_a_random_moment_then_resume(
    store: str, source: str, whole: dict[str, object], tmp_path: Path, draw: int
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.to_yaml())
    driver = subprocess.Popen(
        command(path, source), env=environment(store), cwd=tmp_path, stderr=subprocess.PIPE
    )
    client = MlflowClient()
    enough = random.randint(1, 9)  # children that are there when the blow falls
    patience = time.monotonic() + 150
    while time.monotonic() < patience:
        experiment = client.get_experiment_by_name("fairtune")
        if experiment and len(client.search_runs([experiment.experiment_id])) > enough:
            break
        assert driver.poll() is None, driver.stderr and driver.stderr.read()
        time.sleep(0.05)
    time.sleep(random.random() * 0.4)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    parent = only_search()
    assert parent.info.status == "RUNNING"  # nobody was left to close it
    done = subprocess.run(
        command(path, source, "--resume", parent.info.run_id),
        env=environment(store),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["run_id"] == parent.info.run_id
    assert_equals(parent.info.run_id, whole)


def stopped(source: str, config: Config = CONFIG, after: int = 6) -> str:
    with pytest.raises(InterruptedSearchError):
        search(config, source, StopAt(after))
    return only_search().info.run_id


def test_a_changed_configuration_is_refused_by_its_keys_and_the_run_is_left_alone(
    store: str, source: str
) -> None:
    run_id = stopped(source)
    before = MlflowClient().get_run(run_id)
    changed = tiny_config(search__trials=8, train__epochs=3, search__objective="auroc")
    with pytest.raises(
        InputError, match=r"search\.final.*search\.objective, train\.epochs"
    ) as told:
        search(changed, source, StopRequest(), resume=run_id)
    assert "search.trials" not in str(told.value)
    after = MlflowClient().get_run(run_id)
    assert after.info.status == before.info.status == "KILLED"
    assert after.data.tags == before.data.tags


def test_a_budget_may_change(store: str, source: str) -> None:
    config = tiny_config(search__trials=4, search__final=ONE_FINAL)
    run_id = stopped(source, config)
    search(
        tiny_config(search__trials=6, search__final=ONE_FINAL), source, StopRequest(), resume=run_id
    )
    assert len(finished(run_id, "trial")) == 6
    kept = yaml.safe_load(
        MlflowClient().download_artifacts(run_id, "config.yaml") and _text(run_id)
    )
    assert kept["search"]["trials"] == 6


def _text(run_id: str) -> str:
    return Path(MlflowClient().download_artifacts(run_id, "config.yaml")).read_text()


def test_a_complete_search_is_not_continued(store: str, source: str) -> None:
    config = tiny_config(search__trials=1, search__final=ONE_FINAL)
    run_id = search(config, source, StopRequest()).run_id
    with pytest.raises(InputError, match="is complete"):
        search(config, source, StopRequest(), resume=run_id)
    (trial,) = children(run_id, "trial")
    with pytest.raises(InputError, match="is not a search"):
        search(config, source, StopRequest(), resume=trial.info.run_id)
    with pytest.raises(InputError, match="no run 'nowhere'"):
        search(config, source, StopRequest(), resume="nowhere")


def test_a_search_cut_off_after_its_winner_was_fixed_keeps_it(
    store: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fairtune.search.search as module

    config = tiny_config(search__trials=4, search__final=ONE_FINAL)

    def cut(*_: object, **__: object) -> None:
        raise InterruptedSearchError("cut")

    with monkeypatch.context() as patch:
        fail_where(patch, RuntimeError("bad luck"), lambda bits: bits == "")  # both baselines
        patch.setattr(module, "conclude", cut)
        with pytest.raises(InterruptedSearchError):
            search(config, source, StopRequest())
    run_id = only_search().info.run_id
    fixed, finals = only_search().data.tags["fairtune.winner"], children(run_id, "final")
    assert [run.info.status for run in finals].count("FAILED") == 2
    monkeypatch.setattr(module, "pick_winner", None)  # nothing is chosen again
    more = tiny_config(search__trials=9, search__final=ONE_FINAL)
    outcome = search(more, source, StopRequest(), resume=run_id)
    assert len(finished(run_id, "trial")) == 4  # the test split was read: no more trials
    assert [r.info.run_id for r in children(run_id, "final")] == [r.info.run_id for r in finals]
    assert MlflowClient().get_run(run_id).data.tags["fairtune.winner"] == fixed
    assert list(outcome.comparison["model"]) == [f"{fixed} (winner)"]
    assert outcome.run_id == run_id


def test_what_a_search_chose_is_read_back_with_what_it_searched(
    store: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fairtune.search.search as module

    extra = {"weight_decay": {"low": 1e-3, "high": 0.3}, "layer_decay": {"choices": [0.655, 1.0]}}
    config = tiny_config(search__trials=3, search__final=ONE_FINAL, search__extra=extra)
    judged = []

    def cut(*arguments: object, **__: object) -> None:
        judged.append(arguments[2:])
        raise InterruptedSearchError("cut")

    monkeypatch.setattr(module, "conclude", cut)
    for resume in (None, 1):
        with pytest.raises(InterruptedSearchError):
            run_id = only_search().info.run_id if resume else None
            search(config, source, StopRequest(), resume=run_id)
    (first, reports), (again, same) = judged
    assert again.typical.run_id == first.typical.run_id
    assert again.mean == first.mean
    assert same.keys() == reports.keys()
    known = {"first_value": 0.0}  # not kept with the final runs, and of no use any more
    assert replace(again.candidate, **known) == replace(first.candidate, **known)
