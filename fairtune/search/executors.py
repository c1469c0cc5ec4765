"""Where trials run: one after another in this process, or on Spark through hyperopt's SparkTrials."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import numpy as np
from hyperopt import JOB_STATE_ERROR, Trials, fmin
from hyperopt.exceptions import AllTrialsFailed

import fairtune
from fairtune.errors import FairtuneError, InputError
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.search.proposer import Proposer
from fairtune.search.runner import ERROR, KEY, TrialRunner
from fairtune.search.settings import SearchSettings
from fairtune.search.spark_jobs import Jobs, LostItemError
from fairtune.search.worker import STOP
from fairtune.tracking.runs import STORE_ERRORS, RunLog, one_line

logger = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")
CACHE = "FAIRTUNE_CACHE"
LOCAL_STORES = ("sqlite:", "file:", "/", ".")


class LostWorkersError(FairtuneError):
    """Work was lost more often than it is repeated."""

    exit_code = 1


class Executor(ABC):
    """Run trials; made by `make_executor`."""

    @abstractmethod
    def trials(self) -> Trials:
        """Return an empty set of trials of the kind that `minimize` fills."""

    @abstractmethod
    def map(
        self,
        function: Callable[[A], B],
        items: Iterable[A | None],
        log: RunLog,
        stop: StopRequest,
        *,
        on_done: Callable[[A, B], object] = lambda item, result: None,
        when_lost: Callable[[A, str], B] | None = None,
    ) -> list[B]:
        """Apply a picklable function to each item; the results are in the items' order.

        Parameters
        ----------
        items
            The next is asked for when there is a worker for it; None says that there is none before something
            that runs has ended.
        log
            The parent run, through which workers elsewhere hear of a request to stop.
        on_done
            Told of each item that has ended, and its result.
        when_lost
            Gives the result of an item that was lost with its worker twice, from the reason.

        Raises
        ------
        InterruptedSearchError
            On a request to stop; what runs has ended.
        LostWorkersError
            When an item was lost with its worker twice and `when_lost` is None.
        Exception
            What the function raised, when all that ran beside it has ended.
        """

    def minimize(self, runner: TrialRunner, proposer: Proposer, trials: Trials) -> None:
        """Run what the proposer proposes until it proposes no more; fills `trials`."""
        # When no trial has succeeded hyperopt raises from its own choice of the best, which it makes
        # whatever `return_argmin` says; the study has its own word for it.
        with suppress(AllTrialsFailed):
            fmin(
                runner,
                space=runner.space.expression(),
                algo=proposer,
                max_evals=sys.maxsize,  # the proposer knows when to end
                trials=trials,
                rstate=np.random.default_rng(0),  # unused: the proposer seeds proposals by name
                show_progressbar=False,
                verbose=False,
                return_argmin=False,
            )


class SerialExecutor(Executor):
    """One trial after another, in this process."""

    def trials(self) -> Trials:
        """See `Executor.trials`."""
        return Trials()

    def map(
        self,
        function: Callable[[A], B],
        items: Iterable[A | None],
        log: RunLog,
        stop: StopRequest,
        *,
        on_done: Callable[[A, B], object] = lambda item, result: None,
        when_lost: Callable[[A, str], B] | None = None,
    ) -> list[B]:
        """See `Executor.map`."""
        results = []
        for item in items:
            stop.check()
            if item is None:  # and nothing runs
                break
            results.append(function(item))
            on_done(item, results[-1])
        return results


class SparkExecutor(Executor):
    """Several trials at once, on `local[n]` or on a cluster.

    A trial is a Spark task. Spark runs the task of a lost worker once more, and the runner then
    begins the same nested run anew.
    """

    def __init__(self, master: str | None, parallelism: int, *, gpus: float = 0) -> None:
        self.parallelism = parallelism
        self.session = spark_session(master, parallelism, gpus=gpus)

    def trials(self) -> Trials:
        """See `Executor.trials`."""
        from hyperopt import SparkTrials

        session = _ReadingSession(self.session)
        return SparkTrials(parallelism=self.parallelism, spark_session=session)

    def minimize(self, runner: TrialRunner, proposer: Proposer, trials: Trials) -> None:
        """See `Executor.minimize`."""
        with _stop_reaches_workers(runner.parent, runner.stop):
            super().minimize(runner, proposer, trials)
        if not runner.stop.requested:
            _close_lost(runner, trials)

    def map(
        self,
        function: Callable[[A], B],
        items: Iterable[A | None],
        log: RunLog,
        stop: StopRequest,
        *,
        on_done: Callable[[A, B], object] = lambda item, result: None,
        when_lost: Callable[[A, str], B] | None = None,
    ) -> list[B]:
        """See `Executor.map`. Each item is a Spark job of its own, so that none waits for a slower one."""
        queue = iter(items)
        results: dict[int, B] = {}
        failure: BaseException | None = None
        with (
            _stop_reaches_workers(log, stop),
            Jobs(self.session.sparkContext, function, self.parallelism) as jobs,
        ):
            while True:
                while jobs.has_room and failure is None and not stop.requested:
                    if (item := next(queue, None)) is None:
                        break
                    jobs.start(item)
                if not jobs.running:
                    break
                for number, item, job in jobs.next_ended():
                    try:
                        result = job.result()
                    except LostItemError as lost:
                        if when_lost is None:
                            failure = failure or LostWorkersError(
                                f"work failed twice with its worker: {lost}; go on with --resume "
                                f"{log.run_id}"
                            )
                            continue
                        result = when_lost(item, str(lost))
                    except (Exception, InterruptedSearchError) as error:
                        failure = failure or error
                        continue
                    results[number] = result
                    on_done(item, result)
        stop.check()
        if failure is not None:
            raise failure
        return [results[number] for number in sorted(results)]


class _ReadingSession:
    """A Spark session whose tasks read their input before they run.

    hyperopt's tasks leave theirs unread. Spark ends the Python process of such a task, and every trial
    would import torch and load the data anew.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self.sparkContext = _ReadingContext(session.sparkContext)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class _ReadingContext:
    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def parallelize(self, items: Sequence[Any], slices: int | None = None) -> Any:
        return self._context.parallelize(items, slices).mapPartitions(_read)


def _read(items: Iterator[A]) -> Iterator[A]:
    return iter(list(items))


def _close_lost(runner: TrialRunner, trials: Trials) -> None:
    """Close as failed the runs of trials that were lost with their worker, twice."""
    lost = {
        runner.space.point_of_vals(doc["misc"]["vals"]).key: doc["misc"]["error"]
        for doc in trials._dynamic_trials
        if doc["state"] == JOB_STATE_ERROR
    }
    for key, (kind, trace) in lost.items():
        last = (trace or "").strip().splitlines()[-1:] or [f"its worker was lost twice ({kind})"]
        for run in runner.parent.children(
            f"tags.`{KEY}` = '{key}' and attributes.status = 'RUNNING'"
        ):
            log = runner.parent.sibling(run.info.run_id)
            log.log(tags={ERROR: last[0]})
            log.end("FAILED")


@contextmanager
def _stop_reaches_workers(log: RunLog, stop: StopRequest) -> Iterator[None]:
    """Pass a request to stop on to workers, as a tag of the parent run that they ask for."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if stop.requested:
                try:
                    log.log(tags={STOP: "true"})
                except STORE_ERRORS as error:
                    logger.warning("workers do not hear of it yet: %s", one_line(error))
                else:
                    return

    log.log(tags={STOP: "false"})  # an earlier request, before a resume, is over
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def spark_session(master: str | None, parallelism: int, *, gpus: float = 0) -> Any:
    """Start or join a Spark session.

    On a cluster the package travels to the workers; libraries, data and base weights must be there.
    Each task asks for `gpus` of them: 0.5 lets two tasks share one.

    Raises
    ------
    InputError
        No pyspark, no such master, or a tracking store that workers elsewhere cannot reach.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise InputError(
            "search.executor=spark needs pyspark: pip install 'fairtune[spark]'"
        ) from None
    master = master or os.environ.get("SPARK_MASTER_URL") or f"local[{parallelism},2]"
    local = master.startswith("local")
    if not local and mlflow.get_tracking_uri().startswith(LOCAL_STORES):
        raise InputError(
            f"workers of {master} cannot write to the tracking store {mlflow.get_tracking_uri()}: "
            "start `mlflow server` and set MLFLOW_TRACKING_URI"
        )
    if master.startswith("spark://") and not _answers(master):
        raise InputError(f"Spark master {master} does not answer: start it, or mend the address")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("fairtune").master(master)
    for key, value in _settings(local, gpus).items():
        builder = builder.config(key, value)
    try:
        with _own_interrupts():
            session = builder.getOrCreate()
        if not local:
            _ship_package(session)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"Spark master {master} cannot be used: {reason}") from None
    session.sparkContext.setLogLevel("ERROR")
    return session


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Keep what Ctrl-C does: a new SparkContext would let it cancel all jobs."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _answers(master: str) -> bool:
    """Say whether one of a standalone cluster's masters takes connections: Spark tries for a minute."""
    for address in master.removeprefix("spark://").split(","):
        host, _, port = address.rpartition(":")
        with suppress(OSError, ValueError), socket.create_connection((host, int(port)), timeout=5):
            return True
    return False


def _settings(local: bool, gpus: float) -> dict[str, str]:
    host = os.environ.get("SPARK_LOCAL_IP", "127.0.0.1")
    settings = {
        "spark.task.maxFailures": "2",  # a lost trial is repeated once
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.bindAddress": host,
    }
    if not local:
        # One trial may crash its worker; the others' workers are not to blame.
        settings["spark.excludeOnFailure.enabled"] = "false"
        if "SPARK_LOCAL_IP" in os.environ:
            settings["spark.driver.host"] = host
        if gpus:
            settings["spark.executor.resource.gpu.amount"] = "1"
            settings["spark.task.resource.gpu.amount"] = f"{gpus:g}"
    if CACHE in os.environ:
        settings[f"spark.executorEnv.{CACHE}"] = os.environ[CACHE]
    return settings


def _ship_package(session: Any) -> None:
    """Send this very code to the workers, so that driver and workers cannot differ."""
    root = Path(fairtune.__file__).parent
    archive = Path(tempfile.mkdtemp(prefix="fairtune-")) / "fairtune.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as package:
        for path in sorted(root.rglob("*.py")):
            package.write(path, Path("fairtune") / path.relative_to(root))
    session.sparkContext.addPyFile(str(archive))


def make_executor(settings: SearchSettings, *, device: str = "cpu") -> Executor:
    """Return the executor that the settings name; `device` is where trials compute."""
    if settings.executor == "spark":
        gpus = settings.gpus_per_trial if device.startswith("cuda") else 0
        return SparkExecutor(settings.spark_master, settings.parallelism, gpus=gpus)
    return SerialExecutor()
