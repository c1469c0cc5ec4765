"""Servers that tests start and end."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"the server for {url} ended early"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(url)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that this test started, and what it started in turn."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait(timeout=30)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of the test's own, from Debian's package; raises `FileNotFoundError` without it."""
    import psycopg  # noqa: F401  the driver that the address names

    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        raise FileNotFoundError("no PostgreSQL in /usr/lib/postgresql")
    # The server refuses to run as root, so it runs as the user that its package made.
    user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    port, home = free_port(), Path(tempfile.mkdtemp(prefix="fairtune-postgres-"))
    if user:
        shutil.chown(home, **user)
    initdb = [found[-1] / "initdb", "-D", home / "data", "-U", "test", "-A", "trust", "--no-sync"]
    subprocess.run(
        [*initdb, "-E", "UTF8", "--locale", "C.UTF-8"],
        check=True,
        capture_output=True,
        cwd="/",
        **user,  # type: ignore[call-overload]
    )
    options = ["-D", home / "data", "-p", str(port), "-k", home, "-h", HOST, "-F"]
    server = subprocess.Popen(
        [found[-1] / "postgres", *options],
        stderr=subprocess.DEVNULL,
        cwd="/",
        **user,  # type: ignore[call-overload]
    )
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                break
        time.sleep(0.1)
    try:
        yield f"postgresql+psycopg://test@{HOST}:{port}/postgres"
    finally:
        end(server)
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def tracking_server(
    database: str, folder: Path, *options: str, **environment: str
) -> Iterator[str]:
    """`mlflow server` on loopback, its artifacts and its `log` in `folder`; gives its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--backend-store-uri", database, "--workers", "1", *options]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **environment}
        )
    try:
        wait_for(f"http://{HOST}:{port}/health", process)
        yield f"http://{HOST}:{port}"
    finally:
        end(process)
