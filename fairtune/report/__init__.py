"""What people read: tables, figures, the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairtune.report.description import describe_run
    from fairtune.report.page import write_report

__all__ = ["describe_run", "write_report"]


def __getattr__(name: str) -> Any:
    """Load the two on first use: a terminal table needs no plotting library."""
    if name == "describe_run":
        from fairtune.report.description import describe_run

        return describe_run
    if name == "write_report":
        from fairtune.report.page import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
