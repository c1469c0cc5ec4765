"""What a trial knows of the Spark task that it may run in."""

from __future__ import annotations

import logging
import sys
from typing import Any

from fairtune.config import Config
from fairtune.interrupt import StopRequest
from fairtune.tracking.runs import STORE_ERRORS, RunLog, one_line
from fairtune.workspace import Workspace, open_workspace

logger = logging.getLogger(__name__)

STOP = "fairtune.stop"
"""Tag of a parent run by which workers hear that the user asked to stop."""


def spark_task() -> Any | None:
    """Return the Spark task that this code runs in; None in a driver or without Spark."""
    pyspark = sys.modules.get("pyspark")
    return pyspark.TaskContext.get() if pyspark else None


def is_repeated() -> bool:
    """Say whether this task ran before, on a worker that was lost."""
    task = spark_task()
    return task is not None and task.attemptNumber() > 0


def worker_workspace(config: Config, source: str | None) -> Workspace:
    """Open the workspace; in a task that Spark gave a GPU, on that GPU."""
    task = spark_task()
    gpus = task.resources().get("gpu") if task is not None else None
    if gpus is not None and config.device in ("auto", "cuda"):
        config = config.model_copy(update={"device": f"cuda:{gpus.addresses[0]}"})
    return open_workspace(config, source)


def stop_requested(stop: StopRequest, parent: RunLog) -> bool:
    """Say whether to stop: a worker's copy of `stop` hears nothing, so it asks the parent run."""
    if isinstance(stop, HeardStop) or stop.requested or spark_task() is None:
        return stop.requested
    try:
        return parent.data().data.tags.get(STOP) == "true"
    except STORE_ERRORS as error:  # asked again after the next epoch: no reason to lose this one
        logger.warning("cannot ask whether to stop: %s", one_line(error))
        return False


class HeardStop(StopRequest):
    """A request to stop as a worker hears it, for work that has runs of its own between it and `parent`."""

    def __init__(self, stop: StopRequest, parent: RunLog) -> None:
        self._stop, self._parent = stop, parent

    @property
    def requested(self) -> bool:  # type: ignore[override]
        """Whether someone has asked to stop."""
        return stop_requested(self._stop, self._parent)

    @property
    def reason(self) -> str:  # type: ignore[override]
        """What asked for it."""
        return self._stop.reason
