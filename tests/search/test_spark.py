"""Trials on Spark: a standalone cluster on loopback, a tracking server, workers that are killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from hyperopt import STATUS_OK, fmin, hp, rand
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from search.conftest import children
from search.samples import tiny_config
from search.servers import HOST, end, free_port, postgresql, tracking_server, wait_for
from search.test_whole_search import ONE_FINAL, only_search
from stores import mlflow_at

from fairtune.errors import InputError
from fairtune.interrupt import InterruptedSearchError, StopRequest, handle_signals
from fairtune.search.executors import LostWorkersError, SparkExecutor, spark_session
from fairtune.search.runner import ERROR, KEY, NUMBER, TrialRunner
from fairtune.search.search import search
from fairtune.tracking.runs import RunLog, open_run

pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed (extra `spark`)")
if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
    pytest.skip("Spark needs Java 17", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONFIG = {"search__executor": "spark", "search__final": ONE_FINAL, "search__parallelism": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server over HTTP that also passes artifacts through, on PostgreSQL where there is one."""
    folder = tmp_path_factory.mktemp("server")
    with ExitStack() as stack:
        try:
            database = stack.enter_context(postgresql())
        except FileNotFoundError:
            database = f"sqlite:///{folder}/mlflow.db"
        yield stack.enter_context(tracking_server(database, folder))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A master and two workers of one core each."""
    spark_class = Path(pyspark.__file__).parent / "bin" / "spark-class"
    folder, port, ui = tmp_path_factory.mktemp("cluster"), free_port(), free_port()
    environment = {
        **os.environ,
        "SPARK_LOCAL_IP": HOST,
        "PYSPARK_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",  # the code must reach the workers by itself
    }

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (folder / name).open("wb") as log:
            return subprocess.Popen(
                [str(spark_class), *arguments], env=environment, cwd=folder, stdout=log, stderr=log
            )

    package = "org.apache.spark.deploy"
    address = ["--host", HOST, "--port", str(port), "--webui-port", str(ui)]
    processes = [start("master", f"{package}.master.Master", *address)]
    master = f"spark://{HOST}:{port}"
    try:
        wait_for(f"http://{HOST}:{ui}", processes[0])
        for number in (1, 2):
            options = ["--cores", "1", "--memory", "1g", "--host", HOST, "--webui-port", "0"]
            options += ["--work-dir", str(folder / f"work-{number}")]
            processes.append(
                start(f"worker-{number}", f"{package}.worker.Worker", *options, master)
            )
        yield master
    finally:
        for process in reversed(processes):
            end(process)


@pytest.fixture(autouse=True)
def _one_session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from pyspark.sql import SparkSession

    monkeypatch.setenv("SPARK_LOCAL_IP", HOST)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    session = SparkSession.getActiveSession()
    if session is not None:
        session.stop()


def use(uri: str, monkeypatch: pytest.MonkeyPatch, experiment: str) -> None:
    mlflow.set_tracking_uri(uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)


def assert_whole(run_id: str, trials: int) -> None:
    """Every trial once, under the right parent, and nothing left open."""
    runs = children(run_id, "trial")
    assert sorted(int(r.data.tags[NUMBER]) for r in runs) == list(range(trials))
    assert len({r.data.tags[KEY] for r in runs}) == trials
    assert {r.info.status for r in children(run_id)} == {"FINISHED"}
    parent = MlflowClient().get_run(run_id)
    assert parent.info.status == "FINISHED"
    assert "train/loss" not in parent.data.metrics  # no trial wrote its epochs into its parent


@contextmanager
def _interrupted_after(trials: int) -> Iterator[None]:
    """Press Ctrl-C as soon as so many trials were opened."""

    def press() -> None:
        while True:
            time.sleep(0.2)
            try:
                if len(children(only_search().info.run_id, "trial")) >= trials:
                    break
            except (AttributeError, ValueError):  # nothing there yet
                continue
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press, daemon=True)
    pressing.start()
    yield
    pressing.join()


def test_local_cores_run_trials_at_once(store: str, source: str) -> None:
    outcome = search(tiny_config(search__trials=5, **CONFIG), source, StopRequest())
    assert_whole(outcome.run_id, 5)


@pytest.mark.parametrize("rule", ["halving", "asha"])
def test_workers_prune_by_one_memory(store: str, source: str, rule: str) -> None:
    pruning = {"rule": rule, "rungs": [1, 2], "reduction": 2, "min_trials": 2}
    config = tiny_config(search__trials=9, search__pruning=pruning, train__epochs=3, **CONFIG)
    outcome = search(config, source, StopRequest())
    assert_whole(outcome.run_id, 9)
    trials = children(outcome.run_id, "trial")
    client = MlflowClient()
    for rung in (1, 2):
        name = f"rung/{rung:03d}"
        there = {int(r.data.tags[NUMBER]): r.data.metrics.get(name) for r in trials}
        shared = client.get_metric_history(outcome.run_id, name)
        assert {m.step: m.value for m in shared} == {
            number: value for number, value in there.items() if value is not None
        }
        assert len(shared) == len({m.step for m in shared})
    pruned = [r for r in trials if "fairtune.pruned_at" in r.data.tags]
    assert pruned
    for run in pruned:
        assert run.data.metrics["epochs"] == int(run.data.tags["fairtune.pruned_at"]) < 3


def test_a_trial_whose_worker_dies_twice_has_failed_and_the_search_goes_on(
    store: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly(TrialRunner):  # local, so that it travels to the workers as it is
        def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
            if self._run_of(self.space.point(sample)).data.tags[NUMBER] == "2":
                os._exit(9)
            return super().__call__(sample)

    monkeypatch.setattr("fairtune.search.search.TrialRunner", Deadly)
    outcome = search(tiny_config(search__trials=5, **CONFIG), source, StopRequest())
    trials = {r.data.tags[NUMBER]: r for r in children(outcome.run_id, "trial")}
    assert len(trials) == 5
    lost = trials.pop("2")
    assert lost.info.status == "FAILED"
    assert lost.data.tags[ERROR]
    assert {run.info.status for run in trials.values()} == {"FINISHED"}
    assert only_search().info.status == "FINISHED"


def test_a_final_run_whose_worker_dies_twice_is_one_line(store: str) -> None:
    def deadly(_: int) -> int:
        os._exit(9)

    with (
        open_run("search", "s", experiment="e") as log,
        pytest.raises(LostWorkersError, match=f"worker.*crashed.*--resume {log.run_id}") as told,
    ):
        SparkExecutor(None, 1).map(deadly, [0], log, StopRequest())
    assert "\n" not in str(told.value)


def test_what_a_function_raises_comes_back_when_all_else_has_ended(store: str) -> None:
    def work(item: int) -> int:
        if item == 0:
            raise MlflowException("database is locked")
        time.sleep(2)
        return item

    done: list[int] = []
    with (
        open_run("search", "s", experiment="e") as log,
        pytest.raises(MlflowException, match="^database is locked$"),
    ):
        SparkExecutor(None, 2).map(
            work, range(4), log, StopRequest(), on_done=lambda item, result: done.append(result)
        )
    assert done == [1]  # what ran beside it; no further one was begun


def test_an_item_that_is_lost_may_be_told_and_the_others_go_on(store: str) -> None:
    def work(item: int) -> str:
        if item == 1:
            os._exit(9)
        return str(item)

    def items() -> Iterator[int | None]:
        yield 0
        yield None  # there is no other before the first has ended
        asked.append(len(done))
        yield from (1, 2, 3)

    asked: list[int] = []
    done: list[int] = []
    with open_run("search", "s", experiment="e") as log:
        found = SparkExecutor(None, 2).map(
            work, items(), log, StopRequest(),
            on_done=lambda item, result: done.append(item),
            when_lost=lambda item, reason: f"lost: {reason}",
        )  # fmt: skip
    assert [found[0], *found[2:]] == ["0", "2", "3"]
    assert "crashed" in found[1]
    assert asked == [1]


def test_a_second_ctrl_c_waits_for_nothing(store: str) -> None:
    def work(item: int) -> None:
        time.sleep(item)

    def interrupt(item: int, result: object) -> None:
        raise InterruptedSearchError("stopped by a second Ctrl-C")

    with (
        pytest.raises(InterruptedSearchError, match="second"),
        open_run("search", "s", experiment="e") as log,
    ):
        executor = SparkExecutor(None, 2)
        begun = time.monotonic()
        executor.map(work, [0, 300], log, StopRequest(), on_done=interrupt)
    assert time.monotonic() - begun < 100
    tracker = executor.session.sparkContext.statusTracker()
    while tracker.getActiveJobsIds() and time.monotonic() - begun < 100:
        time.sleep(0.1)
    assert not tracker.getActiveJobsIds()  # cancelled


def test_a_free_worker_takes_the_next_and_as_many_run_as_are_wanted(
    store: str, tmp_path: Path
) -> None:
    folder = str(tmp_path)

    def work(item: int) -> tuple[int, int]:  # local, so that it travels to the workers as it is
        mine = Path(folder) / f"{item}.running"
        mine.touch()
        beside = len(list(Path(folder).glob("*.running")))
        time.sleep(4.0 if item == 0 else 0.2)
        mine.unlink()
        return item, beside

    asked: list[tuple[int, int]] = []
    done: list[int] = []

    def items() -> Iterator[int]:
        for item in range(6):
            asked.append((item, len(done)))
            yield item

    with open_run("search", "s", experiment="e") as log:
        found = SparkExecutor(None, 2).map(
            work, items(), log, StopRequest(), on_done=lambda item, result: done.append(item)
        )
    assert [item for item, _ in found] == list(range(6))
    assert max(beside for _, beside in found) == 2
    assert asked == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]  # the first ran all the while
    assert sorted(done) == list(range(6))


@pytest.mark.parametrize("executor", ["spark", "serial"])
def test_a_stopped_search_of_workers_goes_on(store: str, source: str, executor: str) -> None:
    config = tiny_config(search__trials=6, train__epochs=20, **CONFIG)
    with _interrupted_after(3), pytest.raises(InterruptedSearchError), handle_signals() as stop:
        search(config, source, stop)
    run_id = only_search().info.run_id
    before = {r.info.run_id for r in children(run_id, "trial") if r.info.status == "FINISHED"}
    assert len(before) < 6
    config = tiny_config(
        search__trials=6, train__epochs=20, **{**CONFIG, "search__executor": executor}
    )
    outcome = search(config, source, StopRequest(), resume=run_id)
    assert outcome.run_id == run_id
    assert {r.info.status for r in children(run_id)} <= {"FINISHED", "KILLED"}
    whole = [r for r in children(run_id, "trial") if r.info.status == "FINISHED"]
    assert before <= {r.info.run_id for r in whole}  # what was there is not run again
    assert sorted(int(r.data.tags[NUMBER]) for r in whole) == list(range(6))
    assert len({r.data.tags[KEY] for r in whole}) == 6


def test_a_process_runs_one_trial_after_another() -> None:
    """What takes seconds to load (torch, data, base weights) is loaded once for many trials."""

    def process(_: float) -> dict[str, object]:
        return {"status": STATUS_OK, "loss": 0.0, "process": os.getpid()}

    trials = SparkExecutor(None, 1).trials()
    fmin(process, hp.uniform("x", 0, 1), rand.suggest, 3, trials=trials, show_progressbar=False)
    assert len({trial["result"]["process"] for trial in trials.trials}) == 1


def test_a_request_to_stop_reaches_the_workers(store: str, source: str) -> None:
    """With a real Ctrl-C, which Spark would take for itself."""
    with _interrupted_after(1), pytest.raises(InterruptedSearchError), handle_signals() as stop:
        search(tiny_config(search__trials=50, train__epochs=400, **CONFIG), source, stop)
    assert stop.requested
    parent = only_search()
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in children(parent.info.run_id)} <= {"KILLED", "FINISHED"}


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended in between
        return ""


def _kill_a_worker_in_mid_trial(killed: list[str]) -> None:
    """Kill the process that runs a trial, as soon as one has written an epoch."""
    while not killed:
        time.sleep(0.1)
        try:
            runs = children(only_search().info.run_id, "trial")
        except (AttributeError, ValueError):
            continue
        busy = [r for r in runs if r.info.status == "RUNNING" and "objective" in r.data.metrics]
        executors = [
            process
            for process in psutil.Process().children(recursive=True)
            if "CoarseGrainedExecutorBackend" in _command(process)
        ]
        if len(busy) == 2 and executors:
            executors[0].send_signal(signal.SIGKILL)
            killed.append(busy[0].info.run_id)


def test_a_cluster_survives_the_loss_of_a_worker(
    server: str,
    cluster: str,
    store: str,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(server, monkeypatch, "fairtune")
    killed: list[str] = []
    killer = threading.Thread(target=_kill_a_worker_in_mid_trial, args=(killed,), daemon=True)
    killer.start()
    config = tiny_config(search__trials=6, search__spark_master=cluster, train__epochs=20, **CONFIG)
    outcome = search(config, source, StopRequest())
    assert killed
    assert_whole(outcome.run_id, 6)
    repeated = [r for r in children(outcome.run_id, "trial") if "fairtune.repeated" in r.data.tags]
    assert 1 <= len(repeated) <= 2
    assert all(run.data.metrics["epochs"] == 20 for run in children(outcome.run_id, "trial"))


def test_a_cluster_cannot_write_to_a_file(store: str) -> None:
    with pytest.raises(InputError, match="mlflow server"):
        spark_session("spark://nowhere:7077", 2)


def test_an_unreachable_master_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        mlflow_at("http://127.0.0.1:9"),
        pytest.raises(InputError, match="Spark master spark://127.0.0.1:9") as told,
    ):
        spark_session("spark://127.0.0.1:9", 2)
    assert "\n" not in str(told.value)


def test_a_run_log_asks_its_own_store(store: str) -> None:
    log = RunLog(store, "0", "nowhere")
    assert log.client.tracking_uri == store
