"""Stopping on request: Ctrl-C once finishes the running epoch, twice stops at once, SIGTERM stops."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class InterruptedSearchError(KeyboardInterrupt):
    """The user or the system asked to stop; runs end as KILLED and the process with code 130."""


class StopRequest:
    """Whether someone has asked to stop; asked after every epoch and between the steps of a job."""

    def __init__(self) -> None:
        self.requested = False
        self.reason = "stopped by Ctrl-C"

    def check(self) -> None:
        """Raise if a stop was requested."""
        if self.requested:
            raise InterruptedSearchError(self.reason)


@contextmanager
def handle_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into an orderly end while the block runs (in the main thread)."""
    stop = StopRequest()

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise InterruptedSearchError("stopped by a second Ctrl-C")
        stop.requested = True
        logger.warning("stopping after this epoch or step; Ctrl-C again stops at once")

    def on_terminate(signum: int, frame: FrameType | None) -> None:
        # Remembered as well: Python drops what is raised while it runs a finaliser or a callback.
        stop.requested, stop.reason = True, "stopped by SIGTERM"
        raise InterruptedSearchError(stop.reason)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, on_interrupt),
        signal.SIGTERM: signal.signal(signal.SIGTERM, on_terminate),
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
