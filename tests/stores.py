"""Which MLflow store a test works on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow


@contextmanager
def mlflow_at(uri: str) -> Iterator[str]:
    """Use a store for runs and models, and then the one that was in use before.

    The registry is never set apart: `mlflow.set_registry_uri` leaves an environment variable behind that
    nothing in MLflow takes away again. And what `get_tracking_uri` says without a setting depends on the
    working directory, so that the setting is put back, not that.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield uri
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]
