"""MLflow's system metrics are logged where its own switch says so."""

from __future__ import annotations

import time

import pytest

from fairtune.tracking.runs import open_run


def figures(seconds: float) -> dict[str, float]:
    with open_run("finetune", "a run", experiment="system") as log:
        time.sleep(seconds)
    return {k: v for k, v in log.data().data.metrics.items() if k.startswith("system/")}


def test_they_are_logged_on_request(mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures(0) == {}
    pytest.importorskip("psutil")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    found = figures(1.0)
    assert found["system/system_memory_usage_megabytes"] > 0
