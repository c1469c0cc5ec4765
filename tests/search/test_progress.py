"""The bar of a search: how long it will take, how fast it is, what is best so far."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hyperopt import JOB_STATE_DONE, STATUS_FAIL, STATUS_OK, Trials

from fairtune.fairness import get_objective
from fairtune.interrupt import StopRequest
from fairtune.search.executors import SerialExecutor
from fairtune.search.study import _Progress


def trials(*results: dict[str, Any]) -> Trials:
    docs = [{"state": JOB_STATE_DONE, "result": result} for result in results]
    return cast(Trials, SimpleNamespace(_dynamic_trials=docs))


def ended(value: float, speed: float) -> dict[str, Any]:
    return {"status": STATUS_OK, "value": value, "images_per_second": speed}


def test_it_shows_time_left_speed_and_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"status": STATUS_FAIL}
    with _Progress(4, get_objective("auroc_gap"), show=True) as progress:
        progress.update(trials(ended(0.2, 90.0), failed, ended(0.3, 123.4), failed))
    shown = capsys.readouterr().err
    assert "best auroc_gap 0.200, 123 images/s" in shown  # a gap is better when it is small
    assert "4/4" in shown
    assert "<" in shown  # elapsed<remaining


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    with (
        caplog.at_level(logging.ERROR, logger="fairtune"),
        _Progress(4, get_objective("auroc"), show=True) as progress,
    ):
        progress.update(trials(ended(0.2, 90.0)))
        SerialExecutor().map(str, [1], cast(Any, None), StopRequest(), title="finals")
    assert capsys.readouterr().err == ""


def test_the_finals_have_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    made = SerialExecutor().map(str, [1, 2], cast(Any, None), StopRequest(), title="finals")
    assert made == ["1", "2"]
    assert "finals: 100%" in capsys.readouterr().err
