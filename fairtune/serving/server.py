"""`fairtune serve`: a model from the registry behind HTTP, up and healthy before it is announced."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairtune.errors import InputError
from fairtune.serving.app import App, ServeConfig
from fairtune.serving.loading import download_model
from fairtune.serving.predictor import Predictor
from fairtune.serving.spec import SPEC_FILE, ServingSpec, registered_version

logger = logging.getLogger(__name__)

CONFIG_VARIABLE = "FAIRTUNE_SERVE"
START_SECONDS = 120.0
STOP_SECONDS = 15.0
CONNECTIONS = 2048


def serve(
    target: str, *, host: str = "127.0.0.1", port: int = 5001, workers: int = 1, **limits: Any
) -> int:
    """Serve until stopped; return the exit status: 0 after SIGTERM, 130 after Ctrl-C.

    Parameters
    ----------
    target : str
        What `download_model` takes: a registered name (its champion), `name/version`, a URI.
    host, port
        Where to listen; the default is this machine only. Port 0 takes a free one.
    workers : int
        Processes; each loads the model. One is best for one small machine, as it batches best.
    **limits
        Further fields of `ServeConfig`.

    Raises
    ------
    InputError
        No such model, a model with pickled data, a port in use, or a server that does not start.
    """
    try:
        with (
            signals_raise() as asked,
            running_server(target, host=host, port=port, workers=workers, **limits) as (
                process,
                url,
            ),
        ):
            logger.info("serving at %s (POST %s/invocations); stop with Ctrl-C", url, url)
            while process.poll() is None:
                if asked:  # what is raised while Python runs a finaliser or a callback is dropped
                    raise asked[0]
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
            raise InputError(
                f"the server ended with status {process.returncode}; see its log above"
            )
    except StopRequested as stop:
        return 130 if stop.signal == signal.SIGINT else 0


@contextmanager
def running_server(
    target: str,
    *,
    host: str = "127.0.0.1",
    port: int = 5001,
    workers: int = 1,
    log: Any = None,
    **limits: Any,
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a server for the length of the block: its process and address; `log` takes its output."""
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    port = checked_port(host, port)
    with tempfile.TemporaryDirectory(prefix="fairtune-serve-") as scratch:
        model = download_model(target, Path(scratch))
        _exported_folder(model)
        config = ServeConfig(model=str(model), workers=workers, **limits)
        process = _start(config, host, port, log)
        try:
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            _wait_until_healthy(process, url)
            logger.info("loaded %s", registered_version(model) or target)
            yield process, url
        finally:
            _stop(process)


def _start(config: ServeConfig, host: str, port: int, log: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fairtune.serving.server", host, str(port)]
    environment = {**os.environ, CONFIG_VARIABLE: json.dumps(asdict(config))}
    # A session of its own: Ctrl-C reaches this process alone, which then stops the server in order.
    return subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )


def create_app() -> App:
    """Load the model that `serve` names in the environment; uvicorn calls this in each worker."""
    import torch

    from fairtune.serving.protocol import PatientHTTPProtocol

    # Pillow warns about every oddity of a damaged file, which would fill the log at a client's will.
    warnings.filterwarnings("ignore", module="PIL")
    config = _config()
    PatientHTTPProtocol.header_timeout = config.header_timeout
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.workers))
    folder = _exported_folder(Path(config.model))
    predictor = Predictor.load(folder, version=registered_version(folder))
    predictor.warm_up()
    return App(predictor, config)


def run_uvicorn(host: str, port: int) -> None:
    """Run uvicorn in this process, configured by the environment."""
    import uvicorn

    from fairtune.serving.protocol import PatientHTTPProtocol

    config = _config()
    uvicorn.run(
        "fairtune.serving.server:create_app",
        factory=True,
        host=host,
        port=port,
        workers=config.workers,
        http=PatientHTTPProtocol,
        ws="none",
        limit_concurrency=CONNECTIONS,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
    )


def _config() -> ServeConfig:
    return ServeConfig(**json.loads(os.environ[CONFIG_VARIABLE]))


def _exported_folder(model: Path) -> Path:
    """Find weights and spec in a downloaded model; raises `InputError` when it has none to read."""
    found = list(model.rglob(SPEC_FILE))
    if len(found) != 1:
        raise InputError(f"the model was not registered by fairtune: it has no {SPEC_FILE}")
    ServingSpec.from_json(found[0].read_text(encoding="utf-8"))
    return found[0].parent


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({})
    )  # whatever http_proxy says
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise InputError(
                f"the server ended with status {process.returncode}; see its log above"
            )
        try:
            with direct.open(f"{url}/health", timeout=2) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise InputError(f"the server was not healthy after {START_SECONDS:g} s; see its log above")


def checked_port(host: str, port: int) -> int:
    """Return the port, or for 0 a free one; raises `InputError` when nothing can listen there."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise InputError(f"cannot listen at {host}:{port}: {error}; choose another") from error
        return int(probe.getsockname()[1])


class StopRequested(BaseException):
    """A signal asked the server to stop; not an `Exception`, so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


@contextmanager
def signals_raise() -> Iterator[list[StopRequested]]:
    """Turn the first SIGTERM or Ctrl-C of the block into `StopRequested`, so that all is undone.

    Yields a list that holds it from then on.
    """
    names = (signal.SIGTERM, signal.SIGINT)
    asked: list[StopRequested] = []

    def stop(number: int, _: object) -> None:
        for name in names:
            signal.signal(name, signal.SIG_IGN)
        asked.append(StopRequested(number))
        raise asked[0]

    before = {name: signal.signal(name, stop) for name in names}
    try:
        yield asked
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    try:
        run_uvicorn(sys.argv[1], int(sys.argv[2]))
    except InputError as error:
        sys.exit(str(error))
