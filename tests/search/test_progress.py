"""The bars of a search and of a trial: how long it will take, how fast it is, what is best so far."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from hyperopt import JOB_STATE_DONE, STATUS_FAIL, STATUS_OK
from search.samples import N_IMAGES, tiny_config
from search.test_whole_search import ONE_FINAL

from fairtune.fairness import get_objective
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.progress import LogHandler, progress_bar
from fairtune.search.executors import SerialExecutor
from fairtune.search.search import search
from fairtune.search.single import fine_tune_once
from fairtune.search.study import _Progress


def trials(*results: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"state": JOB_STATE_DONE, "result": result, "tid": number, "misc": {"number": number}}
        for number, result in enumerate(results)
    ]


def ended(value: float, speed: float) -> dict[str, Any]:
    return {"status": STATUS_OK, "value": value, "images_per_second": speed}


class Terminal(io.StringIO):
    """A stderr that someone looks at."""

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal() -> Iterator[Terminal]:
    """Let stderr be a terminal. No fixture: pytest gives every phase of a test its own stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", Terminal())
        yield cast(Terminal, sys.stderr)


def test_it_shows_time_left_speed_and_the_best() -> None:
    failed = {"status": STATUS_FAIL}
    with terminal() as screen, _Progress(4, get_objective("auroc_gap"), show=True) as progress:
        progress.update(trials(ended(0.2, 90.0), failed, ended(0.3, 123.4), failed))
    shown = screen.getvalue()
    assert "best auroc_gap 0.200, 123 images/s" in shown  # a gap is better when it is small
    assert "4/4" in shown
    assert "<" in shown  # elapsed<remaining


def test_a_notebook_shows_bars_and_a_file_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    for stream, shows in ((notebook(), True), (io.StringIO(), False)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            with progress_bar(total=1, desc="trials") as bar:
                bar.update()
        assert ("trials: 100%" in stream.getvalue()) is shows


def test_quiet_is_quiet(caplog: Any) -> None:
    with (
        terminal() as screen,
        caplog.at_level(logging.ERROR, logger="fairtune"),
        _Progress(4, get_objective("auroc"), show=True) as progress,
    ):
        progress.update(trials(ended(0.2, 90.0)))
    assert screen.getvalue() == ""


def test_a_search_has_bars_of_its_trials_and_its_finals(store: str, source: str) -> None:
    with terminal() as screen:
        search(tiny_config(search__trials=2, search__final=ONE_FINAL), source, StopRequest())
    assert "search: 100%" in screen.getvalue()
    assert "finals: 100%" in screen.getvalue()


def test_each_item_is_told_when_it_is_done() -> None:
    done: list[tuple[int, str]] = []
    made = SerialExecutor().map(
        str, [1, 2], cast(Any, None), StopRequest(), on_done=lambda *told: done.append(told)
    )
    assert made == ["1", "2"]
    assert done == [(1, "1"), (2, "2")]


def test_where_nobody_looks_on_there_are_lines_and_no_bar(
    capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    with (
        caplog.at_level(logging.INFO, logger="fairtune"),
        _Progress(4, get_objective("auroc"), show=True, done=1) as progress,
    ):
        progress.update(trials(ended(0.2, 90.0)))  # was there before
        progress.update(trials(ended(0.2, 90.0), ended(0.3, 123.4)))
        progress.update(trials(ended(0.2, 90.0), ended(0.3, 123.4)))  # asked again
    assert caplog.messages == ["2 of 4 trials: best auroc 0.300, 123 images/s"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_a_fine_tune_shows_what_is_left_of_it(
    store: str,
    source: str,
    caplog: Any,
    monkeypatch: pytest.MonkeyPatch,
    level: int,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)  # no thread of tqdm's
    with caplog.at_level(level, logger="fairtune"), terminal() as screen:
        fine_tune_once(tiny_config(train__epochs=2), source, (0,) * 6, StopRequest())
    shown = screen.getvalue()
    if level == logging.ERROR:
        assert shown == ""
        return
    assert "fine-tune, 2 epochs" in shown
    assert f"/{N_IMAGES // 2 * 2}" in shown  # all epochs' images
    assert "images/s" in shown
    assert re.search(r"worst_group_auroc 0\.\d{3}, best 0\.\d{3}", shown)
    assert not re.search(r"\x1b\[[\d;]*m", shown)  # no colour


def test_log_lines_stand_above_the_bar() -> None:
    with terminal() as screen, progress_bar(total=2, desc="trials") as bar:
        bar.update()
        LogHandler(sys.stderr).emit(logging.makeLogRecord({"msg": "one failed"}))
    lines = re.split(r"[\r\n]", screen.getvalue())
    assert "one failed" in lines
    assert any(line.startswith("trials:  50%") for line in lines)


def test_ctrl_c_starts_no_further_fine_tune() -> None:
    stop, ran = StopRequest(), []

    def work(item: int) -> None:
        ran.append(item)
        stop.requested = True

    with pytest.raises(InterruptedSearchError):
        SerialExecutor().map(work, [1, 2], cast(Any, None), stop)
    assert ran == [1]
