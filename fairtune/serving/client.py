"""Ask a model about image files: one from the registry in this process, or a server over HTTP."""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fairtune.errors import InputError
from fairtune.progress import progress_bar
from fairtune.serving.loading import download_model
from fairtune.serving.spec import IMAGE_COLUMN

Answer = dict[str, Any]
Ask = Callable[[list[Path]], list[Answer]]
REQUEST_BYTES = 16 * 2**20
"""Files of one request, together: base64 makes a third more of them, and a server takes 32 MiB."""


def predict_files(
    target: str, paths: Sequence[str | Path], *, batch_size: int = 16, timeout: float = 60.0
) -> list[Answer]:
    """Answer image files in order: `image` (the path) and the columns of the served model.

    Parameters
    ----------
    target : str
        A server's address (`http://host:port`), or what `download_model` takes: a registered name
        (its champion), `name@alias`, `name/version`, a model URI, a folder.
    paths : sequence of path
        Image files. One that is no image gets an `error` in its answer.
    batch_size : int
        Files per request, at most; fewer when they are large.
    timeout : float
        Seconds to wait for one answer of a server.

    Raises
    ------
    InputError
        No files, a file that cannot be read, no such model, no server, or a server that refuses.
    """
    files = image_files(paths)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    over_http = target.startswith(("http://", "https://"))
    ask = _server(target, timeout) if over_http else _in_process(target)
    answers: list[Answer] = []
    starts = range(0, len(files), batch_size)
    for start in progress_bar(starts, desc="predict", unit="batch", disable=len(starts) < 2):
        chunk = files[start : start + batch_size]
        rows = ask(chunk)
        if len(rows) != len(chunk):
            raise InputError(f"{target} gave {len(rows)} answers to {len(chunk)} images")
        answers += [{"image": str(path), **row} for path, row in zip(chunk, rows, strict=True)]
    return answers


def image_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files; raises `InputError` where there is none, or one is not there."""
    files = [Path(path) for path in paths]
    if not files:
        raise InputError("no image files given")
    for path in files:
        if not path.is_file():
            raise InputError(f"no image file {path}")
    return files


def _encode(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _in_process(target: str) -> Ask:
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(str(download_model(target)))

    def ask(files: list[Path]) -> list[Answer]:
        table = model.predict(pd.DataFrame({IMAGE_COLUMN: [_encode(path) for path in files]}))
        rows: list[Answer] = table.to_dict(orient="records")
        return rows

    return ask


def _server(url: str, timeout: float) -> Ask:
    import requests

    address = url.rstrip("/")
    address += "" if address.endswith("/invocations") else "/invocations"
    session = requests.Session()
    session.trust_env = not _on_this_machine(address)  # no proxy leads back to this machine

    def ask(files: list[Path]) -> list[Answer]:
        if len(files) > 1 and sum(path.stat().st_size for path in files) > REQUEST_BYTES:
            return ask_halves(files)
        data = [[_encode(path)] for path in files]
        body: Any = {"dataframe_split": {"columns": [IMAGE_COLUMN], "data": data}}
        try:
            response = session.post(address, json=body, timeout=timeout)
        except requests.Timeout as error:
            raise InputError(f"{address} did not answer within {timeout:g} s") from error
        except requests.RequestException as error:
            raise InputError(
                f"no server answers at {address}; start one with `fairtune serve`"
            ) from error
        if response.status_code == 413 and len(files) > 1:
            return ask_halves(files)
        if response.status_code == 413:
            raise InputError(
                f"{files[0]} is too large for {address}; a server takes more with --body-limit"
            )
        return _rows(response.status_code, response.content, address)

    def ask_halves(files: list[Path]) -> list[Answer]:
        half = len(files) // 2
        return [*ask(files[:half]), *ask(files[half:])]

    return ask


def _on_this_machine(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _rows(status: int, body: bytes, address: str) -> list[Answer]:
    """Take the rows out of a server's response; raises `InputError` for anything else."""
    try:
        rows = json.loads(body)["predictions"] if status == 200 else None
    except (ValueError, KeyError, TypeError):
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        start = body[:200].decode("utf-8", errors="replace")
        raise InputError(f"{address} answered {status}, not predictions: {start!r}")
    return rows
