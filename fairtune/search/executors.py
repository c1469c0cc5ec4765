"""Where trials run: one after another in this process, or on Spark through hyperopt's SparkTrials."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from hyperopt import Trials, fmin
from hyperopt.exceptions import AllTrialsFailed

from fairtune.errors import InputError
from fairtune.search.proposer import Proposer
from fairtune.search.runner import TrialRunner
from fairtune.search.settings import SearchSettings

A = TypeVar("A")
B = TypeVar("B")


class Executor(ABC):
    """Run trials; made by `make_executor`."""

    @abstractmethod
    def trials(self) -> Trials:
        """Return an empty set of trials of the kind that `minimize` fills."""

    @abstractmethod
    def map(self, function: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """Apply a picklable function to each item, in order of the items."""

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

    def map(self, function: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """See `Executor.map`."""
        return [function(item) for item in items]


class SparkExecutor(Executor):
    """Several trials at once, on `local[n]` or on a cluster.

    A trial is a Spark task. A lost worker's task is run once more by Spark; the runner then goes on
    in the same nested run.
    """

    def __init__(self, master: str | None, parallelism: int) -> None:
        self.parallelism = parallelism
        self.session = spark_session(master, parallelism)

    def trials(self) -> Trials:
        """See `Executor.trials`."""
        from hyperopt import SparkTrials

        return SparkTrials(parallelism=self.parallelism, spark_session=self.session)

    def map(self, function: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """See `Executor.map`."""
        if not items:
            return []
        context = self.session.sparkContext
        result: list[B] = context.parallelize(items, len(items)).map(function).collect()
        return result


def spark_session(master: str | None, parallelism: int) -> Any:
    """Start or join a Spark session; raises `InputError` when it cannot be had."""
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise InputError(
            "search.executor=spark needs pyspark: pip install 'fairtune[spark]'"
        ) from None
    master = master or os.environ.get("SPARK_MASTER_URL") or f"local[{parallelism},2]"
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = (
        SparkSession.builder.appName("fairtune")
        .master(master)
        .config("spark.task.maxFailures", "2")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.bindAddress", os.environ.get("SPARK_LOCAL_IP", "127.0.0.1"))
    )
    try:
        return builder.getOrCreate()
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"Spark master {master} cannot be used: {reason}") from None


def make_executor(settings: SearchSettings) -> Executor:
    """Return the executor that the settings name."""
    if settings.executor == "spark":
        return SparkExecutor(settings.spark_master, settings.parallelism)
    return SerialExecutor()
