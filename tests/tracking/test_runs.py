from __future__ import annotations

import errno
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from stores import mlflow_at

from fairtune.errors import InputError, without_password
from fairtune.fairness import evaluate
from fairtune.interrupt import InterruptedSearchError, handle_signals
from fairtune.tracking.runs import (
    RunLog,
    existing_run,
    log_dataset,
    open_run,
    split_metrics,
)

pytestmark = pytest.mark.usefixtures("mlflow_store")


def status(log: RunLog) -> str:
    return log.data().info.status


def test_what_runs_within_a_nested_run_is_closed_with_it() -> None:
    with pytest.raises(InterruptedSearchError), open_run("compare", "c", experiment="e") as log:
        unit = log.child("unit", "method")
        trial = unit.child("trial-000", "trial")
        raise InterruptedSearchError("stopped by SIGTERM")
    assert [status(one) for one in (log, unit, trial)] == ["KILLED"] * 3


def test_a_run_ends_finished_with_its_children() -> None:
    with open_run("search", "my search", experiment="e") as log:
        child = log.child(
            "trial-000", "trial", params={"learning_rate": 0.1}, tags={"fairtune.x": 1}
        )
        child.log(metrics={"val/auroc": 0.5, "val/none": math.nan}, step=1)
        child.end()
        forgotten = log.child("trial-001", "trial")
        assert {r.info.run_id for r in log.children()} == {child.run_id, forgotten.run_id}
        assert [r.info.run_id for r in log.children("attributes.status = 'FINISHED'")] == [
            child.run_id
        ]
    assert status(log) == "FINISHED"
    assert status(child) == "FINISHED"
    assert status(forgotten) == "FAILED"
    run = child.data()
    assert run.data.params == {"learning_rate": "0.1"}
    assert run.data.metrics["val/auroc"] == 0.5
    assert math.isnan(run.data.metrics["val/none"])
    assert run.data.tags["mlflow.parentRunId"] == log.run_id
    assert run.data.tags["fairtune.kind"] == "trial"
    assert log.data().info.run_name == "my search"


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (ValueError("a\nb"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (InterruptedSearchError("x"), "KILLED"),
        (SystemExit(3), "FAILED"),
    ],
)
def test_a_run_never_stays_running(error: BaseException, ends: str) -> None:
    with pytest.raises(type(error)), open_run("search", "s", experiment="e") as log:
        child = log.child("trial-000", "trial")
        raise error
    assert status(log) == status(child) == ends
    if isinstance(error, ValueError):
        assert log.data().data.tags["fairtune.error"] == "a b"


def test_the_run_that_mlflow_run_gave_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("given")
    given = client.create_run(experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    with open_run("search", "named", experiment="ignored") as log:
        assert "MLFLOW_RUN_ID" not in os.environ
        with open_run("search", "second", experiment="ignored") as second:
            assert second.run_id != log.run_id
            assert second.experiment_id == experiment
    assert log.run_id == given.info.run_id
    assert log.data().info.run_name == "named"
    assert client.get_experiment_by_name("ignored") is None


def test_a_resumed_run_goes_on_under_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), open_run("search", "s", experiment="e") as first:
        raise KeyboardInterrupt
    pointer = mlflow.MlflowClient().create_run(first.experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", pointer.info.run_id)
    with open_run("search", "s", experiment="e", resume=first.run_id) as again:
        assert again.run_id == first.run_id
        assert status(again) == "RUNNING"
    assert status(first) == "FINISHED"
    tags = mlflow.MlflowClient().get_run(pointer.info.run_id).data.tags
    assert tags["fairtune.resumes"] == first.run_id


def test_a_run_travels_to_a_worker() -> None:
    with open_run("search", "s", experiment="e") as log:
        assert log.client is not None
        there = pickle.loads(pickle.dumps(log))
        there.log(metrics={"x": 1})
        assert log.data().data.metrics == {"x": 1}


def test_the_work_goes_on_while_the_store_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    with open_run("search", "s", experiment="e") as log:
        slow = log.client.log_batch

        def write(*args: Any, **kwargs: Any) -> Any:
            assert answers.wait(30)
            return slow(*args, **kwargs)

        monkeypatch.setattr(log.client, "log_batch", write)
        with log.in_background() as later:
            for step in range(3):
                later(metrics={"x": step}, step=step)
            assert log.data().data.metrics == {}
            answers.set()
        history = log.client.get_metric_history(log.run_id, "x")
    assert [(m.step, m.value) for m in history] == [(0, 0.0), (1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("notices", ["the next write", "leaving"])
def test_what_a_write_in_the_background_met_is_raised(
    monkeypatch: pytest.MonkeyPatch, notices: str
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    reached = []
    with open_run("search", "s", experiment="e") as log:
        monkeypatch.setattr(log.client, "log_batch", fails)
        with pytest.raises(OSError, match="No space left"), log.in_background() as later:
            later(metrics={"x": 1})
            if notices == "the next write":
                while True:
                    later(metrics={"x": 2})
            reached.append("the end")
    assert reached == ([] if notices == "the next write" else ["the end"])


def test_reports_and_artifacts_come_back(tmp_path: Path) -> None:
    report = evaluate(
        [0, 1, 0, 1],
        [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.5, 0.5]],
        pd.DataFrame({"g": list("aabb")}),
    )
    with open_run("search", "s", experiment="e") as log:
        log.log(metrics=split_metrics("val", report), step=3)
        log.json("reports.json", {"a": 1})
        log_dataset(log, pd.DataFrame({"x": [1]}), name="d", digest="f" * 64, context="training")
    run = log.data()
    assert run.data.metrics["val/auroc_by_group/g.a"] == 1.0
    assert run.inputs.dataset_inputs[0].dataset.digest == "f" * 36
    assert log.read_text("reports.json") == '{\n  "a": 1\n}'
    with pytest.raises(InputError, match="has no artifact 'absent.json'"):
        log.download("absent.json", tmp_path)


def test_an_unknown_run_is_one_line() -> None:
    with pytest.raises(InputError, match="no run 'nope' in sqlite"):
        existing_run("nope")


def test_a_read_only_store_is_one_line() -> None:
    with (
        mlflow_at("sqlite:////dev/null/mlflow.db"),
        pytest.raises(InputError, match=r"tracking store sqlite.*MLFLOW_TRACKING_URI") as caught,
        open_run("search", "s", experiment="e"),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_passwords_are_hidden() -> None:
    assert (
        without_password("postgresql://user:secret@host:5432/db")
        == "postgresql://user:***@host:5432/db"
    )
    assert without_password("http://host/path") == "http://host/path"


def test_the_first_ctrl_c_asks_and_the_second_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    with handle_signals() as stop:
        assert not stop.requested
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(InterruptedSearchError):
            stop.check()
        with pytest.raises(InterruptedSearchError):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_ends_runs_as_killed() -> None:
    script = textwrap.dedent(
        """
        import time
        from fairtune.interrupt import handle_signals
        from fairtune.tracking.runs import open_run

        with handle_signals(), open_run("search", "s", experiment="e") as log:
            log.child("trial-000", "trial")
            print(log.run_id, flush=True)
            time.sleep(60)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    time.sleep(0.2)
    process.terminate()
    process.wait(30)
    log = existing_run(run_id)
    assert status(log) == "KILLED"
    assert [run.info.status for run in log.children()] == ["KILLED"]


def test_whoever_presses_ctrl_c_over_and_over_leaves_no_run_running() -> None:
    pressed = threading.Event()

    def press() -> None:
        while not pressed.wait(0.03):
            os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    before = signal.signal(signal.SIGINT, lambda signum, frame: None)
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            handle_signals(),
            open_run("search", "s", experiment="e") as log,
        ):
            children = [log.child(f"trial-{i:03d}", "trial") for i in range(20)]
            finger.start()
            time.sleep(30)
    finally:
        pressed.set()
        finger.join()
        signal.signal(signal.SIGINT, before)
    assert {status(run) for run in (log, *children)} == {"KILLED"}


def test_a_sigterm_that_is_dropped_is_remembered() -> None:
    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with handle_signals() as stop:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Finalised()
        with pytest.raises(InterruptedSearchError, match="SIGTERM"):
            stop.check()
