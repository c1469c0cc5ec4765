"""Asynchronous successive halving as published: trials that pause, and go on when they are worth it."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hyperopt import Trials
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run, RunData, RunInfo, RunTag
from search.conftest import children
from search.samples import tiny_config
from search.test_whole_search import ONE_FINAL, Runner, only_search

import fairtune.search.runner as runner_module
from fairtune.config import Config
from fairtune.data.cache import cache_dir
from fairtune.fairness import get_objective
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.search.point import Point
from fairtune.search.pruning import Standing, furthest, next_to_go_on
from fairtune.search.runner import GOES_ON_FROM, LEGS, NUMBER, TrialRunner, legs_of
from fairtune.search.search import search
from fairtune.search.study import _Budget, _Past, search_space
from fairtune.search.trial import PRUNED_AT, Trial
from fairtune.search.worker import worker_workspace
from fairtune.tracking.runs import existing_run
from fairtune.training.pause import load_state

RUNGS = (1, 2, 3)
ASHA = {"rule": "asha", "rungs": list(RUNGS), "reduction": 2}
CONFIG = {
    "train__epochs": 4,
    "search__trials": 9,
    "search__algorithm": "rand",
    "search__final": ONE_FINAL,
}
VALUES = st.one_of(st.sampled_from([0.0, 0.5, 0.5, 0.7, 1.0]), st.just(math.nan))
TABLES = st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=14)


def slow_job(
    reached: list[list[int]], promoted: list[set[int]], value: Callable[[int, int], float], eta: int
) -> tuple[int, int] | None:
    """Algorithm 2 (`get_job`) of the paper: the trial and the rung it leaves, or None for a new trial."""
    for k in range(len(reached) - 1, -1, -1):
        best_first: list[int] = []
        for trial in sorted(reached[k]):  # behind all that are not worse, NaN the worst
            mine = value(trial, k)
            place = 0
            while place < len(best_first) and not (
                mine > (other := value(best_first[place], k))
                or (math.isnan(other) and not math.isnan(mine))
            ):
                place += 1
            best_first.insert(place, trial)
        candidates = best_first[: len(reached[k]) // eta]
        best_first = [t for t in candidates if not math.isnan(value(t, k))]
        promotable = [t for t in best_first if t not in promoted[k]]
        if promotable:
            top = max(value(t, k) for t in promotable)
            return min(t for t in promotable if value(t, k) == top), k
    return None


@given(TABLES, st.integers(2, 4))
def test_jobs_are_those_of_the_paper(table: list[tuple[float, ...]], eta: int) -> None:
    reached: list[list[int]] = [[], [], []]
    promoted: list[set[int]] = [set(), set(), set()]
    at: list[dict[int, float]] = []
    paused: list[int | None] = []
    for _ in range(4 * len(table) + 1):
        standings = [Standing(n, dict(at[n]), paused[n]) for n in range(len(at))]
        found = next_to_go_on(standings, RUNGS, eta)
        job = slow_job(reached, promoted, lambda t, k: table[t][k], eta)
        assert (found and found.number) == (job and job[0])
        if job is not None:
            number, k = job
            promoted[k].add(number)
            if k + 1 < len(RUNGS):
                reached[k + 1].append(number)
                at[number][RUNGS[k + 1]] = table[number][k + 1]
            paused[number] = RUNGS[k + 1] if k + 1 < len(RUNGS) else None
        elif len(at) < len(table):
            number = len(at)
            reached[0].append(number)
            at.append({RUNGS[0]: table[number][0]})
            paused.append(RUNGS[0])
        else:
            break
    assert len(at) == len(table)  # and nobody waits who should not


def test_one_that_trains_or_failed_counts_but_does_not_go_on() -> None:
    best = Standing(0, {1: 0.9}, None)
    others = [Standing(n, {1: 0.8 - n / 10}, 1) for n in (1, 2, 3)]
    found = next_to_go_on([best, *others], RUNGS, 2)
    assert found is others[0]
    assert next_to_go_on([best, *others], RUNGS, 4) is None


def test_the_furthest_is_the_best_of_those_that_wait_at_the_highest_rung() -> None:
    gone, nan = Standing(0, {1: 0.9, 2: 0.9}, None), Standing(1, {1: 0.5, 2: math.nan}, 2)
    low, tied = Standing(2, {1: 0.9}, 1), Standing(3, {1: 0.9}, 1)
    assert furthest([gone, nan, tied, low]) is low
    assert furthest([gone, nan, low, Standing(4, {1: 0.1, 2: 0.1}, 2)]).number == 4  # type: ignore[union-attr]
    assert furthest([gone, nan]) is None


@pytest.mark.parametrize("candidates", [1, 3])
def test_paused_trials_go_on_until_there_are_candidates_enough(
    run_search: Runner, candidates: int
) -> None:
    """Four trials at a rung that lets one of six go on: by the rule alone none would."""
    pruning = {"rule": "asha", "rungs": [1, 2], "reduction": 6}
    changes = CONFIG | {
        "search__trials": 4,
        "search__final": ONE_FINAL | {"candidates": candidates},
    }
    outcome = run_search(tiny_config(search__pruning=pruning, **changes))
    trials = children(outcome.run_id, "trial")
    whole = [run for run in trials if PRUNED_AT not in run.data.tags]
    assert len(whole) == candidates
    waiting = [run.data.metrics["rung/001"] for run in trials if run not in whole]
    assert min(run.data.metrics["rung/001"] for run in whole) >= max(waiting)


def by_number(run_id: str) -> dict[int, Run]:
    return {int(run.data.tags[NUMBER]): run for run in children(run_id, "trial")}


def history(run: Run) -> list[tuple[int, float]]:
    found = MlflowClient().get_metric_history(run.info.run_id, "objective")
    return [(m.step, m.value) for m in found]


def test_a_trial_that_goes_on_is_the_trial_that_never_paused(run_search: Runner) -> None:
    whole = by_number(run_search(tiny_config(**CONFIG)).run_id)
    outcome = run_search(tiny_config(search__pruning=ASHA, **CONFIG))
    trials = by_number(outcome.run_id)
    assert sorted(trials) == sorted(whole) == list(range(9))
    reached = {number: int(run.data.metrics["epochs"]) for number, run in trials.items()}
    for number, run in trials.items():
        assert run.info.status == "FINISHED"
        assert run.data.params["mask"] == whole[number].data.params["mask"]
        assert history(run) == history(whole[number])[: reached[number]]  # no epoch twice
        assert run.data.tags.get(PRUNED_AT) == (
            str(reached[number]) if reached[number] < 4 else None
        )
        came_from = run.data.tags.get(GOES_ON_FROM)
        assert came_from == (str(reached[number] - 1) if reached[number] > 1 else None)
    beyond = [sum(n > rung for n in reached.values()) for rung in (0, *RUNGS)]
    assert all(a > b >= a // 2 for a, b in itertools.pairwise(beyond))
    assert MlflowClient().get_run(outcome.run_id).data.metrics["epochs"] == sum(reached.values())
    assert not (cache_dir() / "paused" / outcome.run_id).exists()


def test_what_an_abandoned_search_left_goes_after_a_month(run_search: Runner) -> None:
    abandoned, interrupted = (cache_dir() / "paused" / name for name in ("old", "recent"))
    for folder, days in ((abandoned, 31), (interrupted, 29)):
        folder.mkdir(parents=True)
        (folder / "trial.pt").touch()
        os.utime(folder, (time.time() - days * 24 * 3600,) * 2)
    run_search(tiny_config(search__pruning=ASHA, **CONFIG))
    assert not abandoned.exists()
    assert (interrupted / "trial.pt").exists()


def test_a_state_that_is_lost_costs_epochs_alone(
    run_search: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = by_number(run_search(tiny_config(search__pruning=ASHA, **CONFIG)).run_id)
    monkeypatch.setattr("fairtune.training.loop.load_state", lambda path: None)
    lost = by_number(run_search(tiny_config(search__pruning=ASHA, **CONFIG)).run_id)
    for number, run in lost.items():
        assert dict(history(run)) == dict(history(kept[number]))
        assert run.data.metrics["epochs"] == kept[number].data.metrics["epochs"]


def test_a_trial_that_is_cut_off_when_it_goes_on_waits_again(store: str, source: str) -> None:
    class StopWhenOneGoesOn(StopRequest):
        reason = "stopped by Ctrl-C"

        def __init__(self) -> None: ...

        @property
        def requested(self) -> bool:
            with contextlib.suppress(AttributeError, ValueError):  # nothing there yet
                trials = children(only_search().info.run_id, "trial")
                return any(
                    run.info.status == "RUNNING" and run.data.tags.get(GOES_ON_FROM) == "2"
                    for run in trials
                )
            return False

    config = tiny_config(**CONFIG, search__pruning={**ASHA, "rungs": [1, 2]})
    with pytest.raises(InterruptedSearchError):
        search(config, source, StopWhenOneGoesOn())
    run_id = only_search().info.run_id
    (cut,) = [run for run in children(run_id, "trial") if run.info.status == "KILLED"]
    assert cut.data.tags[GOES_ON_FROM] == "2"
    assert [step for step, _ in history(cut)] == [1, 2, 3]
    states = (cache_dir() / "paused" / run_id).glob("*.pt")
    waiting = {r.info.run_id for r in children(run_id, "trial") if PRUNED_AT in r.data.tags}
    assert {state.stem for state in states} == {*waiting, cut.info.run_id}
    assert load_state(cache_dir() / "paused" / run_id / f"{cut.info.run_id}.pt")["epoch"] == 2
    search(config, source, StopRequest(), resume=run_id)
    trials = children(run_id, "trial")
    assert {run.info.status for run in trials} == {"FINISHED"}
    assert len(trials) == 9
    gone_on = MlflowClient().get_run(cut.info.run_id)
    assert gone_on.data.metrics["epochs"] == 4
    again = history(gone_on)
    assert [step for step, _ in again] == [1, 2, 3, 3, 4]
    assert len(set(again)) == 4  # the third epoch twice, to the same bits
    *_, second_last, last = legs_of(gone_on)
    assert second_last[1] == cut.info.end_time <= last[0]  # the break is no work


def test_what_waits_again_counts_as_it_was_when_it_paused(run_search: Runner, source: str) -> None:
    config = tiny_config(search__pruning=ASHA, **CONFIG)
    outcome = run_search(config)
    paused = next(r for r in children(outcome.run_id, "trial") if r.data.tags.get(PRUNED_AT) == "1")
    log = existing_run(paused.info.run_id)
    log.log(tags={GOES_ON_FROM: "1"})  # as if it had been cut off in its next epoch
    log.log(metrics={"val/auroc": 0.123, "val/worst_group_auroc": 0.123}, step=2)
    trials, runner = Trials(), runner_of(config, source, outcome.run_id)
    past = _Past.of(children(outcome.run_id, "trial"), runner.space)
    past.restore(trials, runner, get_objective("worst_group_auroc"))
    (result,) = [t["result"] for t in trials if t["result"]["run_id"] == paused.info.run_id]
    assert result["epochs"] == 1
    assert (
        result["worst_group_auroc"]
        == result["value"]
        == paused.data.metrics["val/worst_group_auroc"]
    )
    assert result["auroc"] == paused.data.metrics["val/auroc"]


def test_a_resumed_search_counts_trials_in_the_order_in_which_they_ended(
    run_search: Runner, source: str
) -> None:
    config = tiny_config(search__pruning=ASHA, **CONFIG)
    outcome = run_search(config)
    runs = children(outcome.run_id, "trial")
    trials, runner = Trials(), runner_of(config, source, outcome.run_id)
    _Past.of(runs, runner.space).restore(trials, runner, get_objective("worst_group_auroc"))
    began = {int(run.data.tags[NUMBER]): legs_of(run)[-1][0] for run in runs}
    assert [t["misc"]["number"] for t in trials] == sorted(began, key=lambda n: began[n])
    assert [t["misc"]["number"] for t in trials] != sorted(began)


def runner_of(config: Config, source: str, run_id: str) -> TrialRunner:
    space = search_space(worker_workspace(config, source))
    return TrialRunner(config, source, space, existing_run(run_id), StopRequest())


def test_a_break_is_no_work_whenever_a_trial_went_on() -> None:
    minute = 60_000

    def run(begin: int, end: int, legs: str = "") -> Run:
        info = RunInfo("r", "0", "u", "FINISHED", begin * minute, end * minute, "active")
        return Run(info, RunData(tags=[RunTag(LEGS, legs)] if legs else []))

    legs = f"{0 * minute}-{10 * minute} {1000 * minute}"  # a break of hours before it went on
    killed = f"{10 * minute}-{20 * minute} {25 * minute}"  # its end is not known
    runs = [run(0, 1010, legs), run(10, 20, killed)]
    past = _Past(done=[(Point((), 1e-3), one) for one in runs])
    assert time.monotonic() - past.began() == pytest.approx(30 * 60, abs=1)


def test_the_epochs_of_a_trial_that_goes_on_count() -> None:
    budget = SimpleNamespace(
        workspace=SimpleNamespace(config=tiny_config(search__max_epochs=5)),
        runner=SimpleNamespace(stop=StopRequest()),
        started=time.monotonic(),
    )
    docs = [
        {"misc": {"number": 0}, "result": {"status": "ok", "epochs": 2}},
        {"misc": {"number": 1}, "result": {"status": "fail", "epochs": 3}},
        {"misc": {"number": 0}, "result": {"status": "new"}},
    ]
    assert _Budget._work(budget, docs)["5 epochs"]  # type: ignore[arg-type]
    assert not _Budget._work(budget, docs[::2])["5 epochs"]  # type: ignore[arg-type]


def test_a_trial_that_fails_after_its_pause_fails_once(
    run_search: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, went_on = runner_module.run_trial, []

    def run_trial(*args: object, **kwargs: object) -> Trial:
        leg = kwargs["leg"]
        if leg.epochs == 2 and not went_on:  # type: ignore[attr-defined]
            went_on.append(leg)
            raise RuntimeError("lost its way")
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(runner_module, "run_trial", run_trial)
    outcome = run_search(tiny_config(search__pruning=ASHA, **CONFIG | {"search__trials": 6}))
    (failed,) = [r for r in children(outcome.run_id, "trial") if r.info.status == "FAILED"]
    assert failed.data.tags["fairtune.error"] == "lost its way"
    assert PRUNED_AT not in failed.data.tags
    assert only_search().info.status == "FINISHED"


def test_no_trial_goes_on_beyond_the_budget(run_search: Runner) -> None:
    outcome = run_search(tiny_config(search__pruning=ASHA, search__max_epochs=6, **CONFIG))
    assert MlflowClient().get_run(outcome.run_id).data.metrics["epochs"] == 6
    assert {r.info.status for r in children(outcome.run_id)} == {"FINISHED"}
