"""Progress for people: bars on a terminal and in a notebook, none elsewhere and none with ``--quiet``.

Bars and logs share stderr. They are drawn without colour, so ``NO_COLOR`` has nothing to switch off.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None = None, **settings: Any) -> tqdm[Any]:
    """Return a tqdm bar that shows itself only where someone looks on.

    Parameters
    ----------
    items
        What to go through; None for a bar that is moved by ``update``.
    **settings
        As `tqdm.tqdm` takes them; ``disable=True`` hides the bar in any case.
    """
    hidden = settings.pop("disable", False) or not watched()
    return tqdm(items, disable=hidden, dynamic_ncols=True, **settings)


def watched() -> bool:
    """Say whether stderr is a terminal or a notebook, and the user has not asked for errors alone."""
    loud = logging.getLogger("fairtune").isEnabledFor(logging.WARNING)
    notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    return loud and sys.stderr is not None and (notebook or sys.stderr.isatty())


class LogHandler(logging.StreamHandler[Any]):
    """Write log lines above the bars, not into them."""

    def __init__(self, stream: Any = None) -> None:
        super().__init__(stream)
        # Made at leisure: a signal while tqdm makes its lock would be lost.
        tqdm.get_lock()  # type: ignore[no-untyped-call]

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            tqdm.write(self.format(record), file=self.stream)
        except Exception:
            self.handleError(record)
