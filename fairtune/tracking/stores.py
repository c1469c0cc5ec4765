"""Tracking stores before the first use: a server must answer, a fresh SQLite file is filled by one."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

SQLITE = "sqlite:///"
TRIES = 3
TIMEOUT = 10.0


def prepare_store(uri: str) -> None:
    """Make sure that a store can be used; cheap where it can.

    MLflow itself retries an unreachable server for minutes without a word, and processes that open
    a fresh SQLite file at once leave it broken.

    Raises
    ------
    OSError
        When a server does not answer.
    MlflowException, SQLAlchemyError
        When a database cannot be opened.
    """
    if uri.startswith(("http://", "https://")):
        ask_server(uri)
    elif uri.startswith(SQLITE):
        from filelock import FileLock
        from mlflow.tracking import MlflowClient

        with FileLock(_lock_path(Path(uri.removeprefix(SQLITE)).absolute())):
            MlflowClient(uri).search_experiments(max_results=1)


def ask_server(uri: str) -> None:
    """Raise `ConnectionError` where a tracking server does not answer, with no more than Python itself."""
    request = urllib.request.Request(f"{uri.rstrip('/')}/health")
    for attempt in range(TRIES):
        try:
            urllib.request.urlopen(request, timeout=TIMEOUT).close()
            return
        except urllib.error.HTTPError:  # it answers; what it answers is for MLflow to judge
            return
        except OSError as error:
            if attempt == TRIES - 1:
                reason = getattr(error, "reason", error)
                raise ConnectionError(f"the server does not answer ({reason})") from None
            time.sleep(1)


def _lock_path(database: Path) -> Path:
    """Return a lock file outside the store's folder, which belongs to the user."""
    name = hashlib.sha256(str(database).encode()).hexdigest()[:16]
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    return Path(tempfile.gettempdir()) / f"fairtune-store-{user}-{name}.lock"
