"""What `fairtune doctor` says of a machine."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from stores import mlflow_at

from fairtune import machine
from fairtune.cli import main
from fairtune.machine import check_machine


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def by_name() -> dict[str, machine.Check]:
    return {check.name: check for check in check_machine("cpu")}


def test_everything_is_looked_at_and_says_what_to_do() -> None:
    found = by_name()
    assert set(found) == {"python", "torch", "memory", "disk", "store", "hub", "docker"}
    assert found["store"].level == "ok"
    assert "1 experiments" in found["store"].message
    assert found["hub"].level == "warning"
    assert "weights: efficientnet_lite0" in found["hub"].message
    assert all("\n" not in check.message for check in found.values())


def test_a_device_that_is_not_there_is_an_error() -> None:
    (check,) = [check for check in check_machine("cuda:99") if check.name == "torch"]
    assert check.level == "error"
    assert "try device=auto" in check.message


def test_a_server_that_does_not_answer_is_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mlflow_at(f"http://127.0.0.1:{port}"):
        check = by_name()["store"]
        result = CliRunner().invoke(main, ["doctor"])
    assert check.level == "error"
    assert "does not answer: start it, or correct MLFLOW_TRACKING_URI" in check.message
    assert result.exit_code == 3
    assert json.loads(result.stdout.splitlines()[-1])["errors"] == 1


def test_little_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_FREE", 10**18)
    check = by_name()["disk"]
    assert check.level == "warning"
    assert "make room" in check.message


def test_without_docker_it_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    check = by_name()["docker"]
    assert check.level == "warning"
    assert "not installed" in check.message
