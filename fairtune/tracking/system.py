"""MLflow's system metrics (CPU, memory, GPU, disk, network) of a command's run.

MLflow starts them itself only where `mlflow.start_run` opens the run. They are wanted where its own
switch says so: ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=true``; its other variables hold as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING

from fairtune.errors import InputError


@contextmanager
def system_metrics(tracking_uri: str, run_id: str) -> Iterator[None]:
    """Log what the machine does to a run, as ``system/…``, for a while; if it is switched on.

    Raises
    ------
    InputError
        When it is, and psutil, which MLflow asks, is not installed.
    """
    switch: Any = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
    if not switch.get():
        yield
        return
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    except ImportError:
        raise InputError(
            "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is set, but psutil is not there: pip install psutil"
        ) from None
    start: Any = SystemMetricsMonitor
    monitor = start(run_id, resume_logging=True, tracking_uri=tracking_uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
