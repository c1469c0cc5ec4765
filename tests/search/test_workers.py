"""What a Spark task is given, and what a resumed search knows of work that was done at once."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.entities import Run, RunData, RunInfo
from search.samples import tiny_config

import fairtune.search.worker as worker
from fairtune.search.executors import _settings
from fairtune.search.point import Point
from fairtune.search.settings import SearchSettings
from fairtune.search.study import _Past


@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [
        ("cuda", ["3"], "cuda:3"),
        ("auto", ["3"], "cuda:3"),
        ("cuda:1", ["3"], "cuda:1"),
        ("cuda", None, "cuda"),
        ("cpu", ["3"], "cpu"),
    ],
)
def test_a_task_computes_on_the_gpu_that_spark_gave_it(
    monkeypatch: pytest.MonkeyPatch, device: str, given: list[str] | None, expected: str
) -> None:
    resources = {"gpu": SimpleNamespace(addresses=given)} if given else {}
    task = SimpleNamespace(resources=lambda: resources)
    monkeypatch.setattr(worker, "spark_task", lambda: task)
    monkeypatch.setattr(worker, "open_workspace", lambda config, source: config)
    opened: Any = worker.worker_workspace(tiny_config(device=device), None)
    assert opened.device == expected


def test_tasks_may_share_a_gpu() -> None:
    shared = _settings(local=False, gpus=0.5)
    assert shared["spark.executor.resource.gpu.amount"] == "1"
    assert shared["spark.task.resource.gpu.amount"] == "0.5"
    assert not [key for key in _settings(local=False, gpus=0) if "gpu" in key]
    assert not [key for key in _settings(local=True, gpus=1) if "gpu" in key]
    with pytest.raises(ValueError, match=r"must be 1, or 0\.5 and less"):
        SearchSettings(gpus_per_trial=0.7)


def test_trials_that_ran_at_once_count_once_against_the_time() -> None:
    minute = 60_000
    spans = [(0, 10 * minute), (minute, 5 * minute), (2 * minute, 12 * minute), (60 * minute, None)]
    spans += [(20 * minute, 21 * minute)]
    infos = [RunInfo("r", "0", "u", "RUNNING", start, end, "active") for start, end in spans]
    runs = [Run(info, RunData()) for info in infos]
    past = _Past(done=[(Point((), 0.1), run) for run in runs])
    assert time.monotonic() - past.began() == pytest.approx(13 * 60, abs=1)
