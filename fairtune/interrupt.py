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
    """Whether someone has asked to stop; asked after every epoch."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise if a stop was requested."""
        if self.requested:
            raise InterruptedSearchError("stopped by Ctrl-C")


@contextmanager
def handle_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into an orderly end while the block runs (in the main thread)."""
    stop = StopRequest()

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise InterruptedSearchError("stopped by a second Ctrl-C")
        stop.requested = True
        logger.warning("stopping after this epoch; Ctrl-C again stops at once")

    def on_terminate(signum: int, frame: FrameType | None) -> None:
        raise InterruptedSearchError("stopped by SIGTERM")

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, on_interrupt),
        signal.SIGTERM: signal.signal(signal.SIGTERM, on_terminate),
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
