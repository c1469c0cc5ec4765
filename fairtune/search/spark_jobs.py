"""Spark jobs that run at once, one for each item: what they raise comes back, what is lost is told."""

from __future__ import annotations

import pickle
import re
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar, cast

from mlflow.exceptions import MlflowException

from fairtune.errors import FairtuneError
from fairtune.interrupt import InterruptedSearchError
from fairtune.tracking.runs import is_store_failure, one_line

A = TypeVar("A")
B = TypeVar("B")


class LostItemError(Exception):
    """A job failed as often as Spark repeats it, and not by what its function raised."""


class Jobs(Generic[A, B]):
    """Spark jobs that run at once, one for each item; left by an exception, they are cancelled."""

    FAILED = re.compile(r"failed \d+ times, most recent failure: (.*)")

    def __init__(self, context: Any, function: Callable[[A], B], at_once: int) -> None:
        self._context, self._function, self._at_once = context, _telling(function), at_once
        self._pool = ThreadPoolExecutor(at_once)
        self._tag = f"fairtune-{uuid.uuid4().hex}"
        self._cancelled = threading.Event()
        self._started = 0
        self.running: dict[Future[B], tuple[int, A]] = {}

    @property
    def has_room(self) -> bool:
        """Whether one more may run."""
        return len(self.running) < self._at_once

    def start(self, item: A) -> None:
        """Start the job of an item."""
        self.running[self._pool.submit(self._run, item)] = (self._started, item)
        self._started += 1

    def next_ended(self) -> list[tuple[int, A, Future[B]]]:
        """Wait until something has ended; return its number in the order of the starts as well."""
        ended = wait(self.running, return_when=FIRST_COMPLETED).done
        return [(*self.running.pop(future), future) for future in ended]

    def _run(self, item: A) -> B:
        if self._cancelled.is_set():
            raise InterruptedSearchError
        self._context.addJobTag(self._tag)  # of this thread's jobs
        try:
            job = self._context.parallelize([item], 1).map(self._function)
            [(result, error)] = job.collect()
        except Exception as failure:
            told = self.FAILED.search(str(failure))
            if told is None:
                raise
            raise LostItemError(told[1].strip()) from failure
        if error is not None:
            raise error
        return cast(B, result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self._cancelled.set()
            with suppress(Exception):  # Spark may be gone
                self._context.cancelJobsWithTag(self._tag)
        self._pool.shutdown(wait=kind is None, cancel_futures=True)


def _telling(function: Callable[[A], B]) -> Callable[[A], tuple[B | None, BaseException | None]]:
    """Let a function return what it raises: Spark would repeat it, and tell a trace of its own."""

    def told(item: A) -> tuple[B | None, BaseException | None]:
        try:
            return function(item), None
        except (Exception, InterruptedSearchError) as error:
            return None, _portable(error)

    return told


def _portable(error: BaseException) -> BaseException:
    if is_store_failure(error) and not isinstance(error, FairtuneError):
        return MlflowException(one_line(error))
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        return FairtuneError(one_line(error))
    return copy
