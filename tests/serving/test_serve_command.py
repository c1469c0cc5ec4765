"""`serve` as a process: announced when healthy, gone when told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import requests
from serving.test_mlflow_serve import free_port

from fairtune.serving.server import signals_raise


def test_it_serves_until_it_is_told_to_stop(registered: str) -> None:
    port = free_port()
    process = start(registered, port)
    try:
        address = f"http://127.0.0.1:{port}/version"
        while process.poll() is None:
            try:
                assert requests.get(address, timeout=5).json()["model_version"] == "moles/1"
                break
            except requests.ConnectionError:
                time.sleep(0.1)
        refused = requests.post(
            address.replace("version", "invocations"),
            data=b" " * (2**20 + 1),
            headers={"Content-Type": "application/json"},
            timeout=5,
        )
        assert refused.status_code == 413
        process.terminate()
        assert process.wait(20) == 0
        with pytest.raises(requests.ConnectionError):
            requests.get(address, timeout=5)
    finally:
        process.kill()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_python_drops_is_remembered() -> None:
    class Closing:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)  # raised in a finaliser: Python drops it

    with signals_raise() as asked:
        Closing()
        assert [stop.signal for stop in asked] == [signal.SIGTERM]


def test_interrupted_while_loading_it_leaves_no_process(registered: str) -> None:
    process = start(registered, free_port())
    child = ""
    while not child and process.poll() is None:
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as stream:
            child = stream.read().strip()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert not os.path.exists(f"/proc/{child}")


def start(store: str, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fairtune", "serve", "--model", "moles", "--body-limit", "1"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    return subprocess.Popen([*command, "--port", str(port)], env=environment)
