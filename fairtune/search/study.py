"""The outer loop: propose, fine-tune, judge on validation, propose again.

The study keeps nothing of its own: trials are nested runs in the tracking store, and a search that
was cut off is rebuilt from them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hyperopt import JOB_STATE_DONE, JOB_STATE_ERROR, STATUS_FAIL, STATUS_OK, Trials
from hyperopt.base import Domain
from mlflow.entities import Run

from fairtune.errors import FairtuneError
from fairtune.fairness import Objective, get_objective
from fairtune.progress import progress_bar
from fairtune.search.executors import Executor
from fairtune.search.point import Point, SearchSpace
from fairtune.search.proposer import Proposer, algorithm, latest_docs, trial_doc
from fairtune.search.pruning import Standing, furthest, next_to_go_on
from fairtune.search.runner import (
    GOES_ON_FROM,
    NUMBER,
    TrialRunner,
    has_ended,
    legs_of,
    result_of,
    waits_again,
)
from fairtune.search.settings import DROP_PATH
from fairtune.search.trial import branched_blocks
from fairtune.training import make_strategy
from fairtune.training.recipe import STRATEGY_OPTION
from fairtune.workspace import Workspace

logger = logging.getLogger(__name__)

FAILURES = 5
"""A search whose first trials fail, this many and no other, has a fault that no mask can mend."""


class NoTrialError(FairtuneError):
    """No trial of a search has succeeded."""

    exit_code = 1


@dataclass(frozen=True)
class FinishedTrial:
    """A trial that ended with a value: what the choice of candidates needs to know of it."""

    number: int
    point: Point
    run_id: str
    value: float
    auroc: float
    worst_group_auroc: float
    epochs: int
    pruned: bool


def search_space(workspace: Workspace) -> SearchSpace:
    """Return what a search may propose; raises `InputError` where it does not fit the model."""
    if DROP_PATH in workspace.config.search.extra:
        branched_blocks(workspace.base.model)
    rates = workspace.config.search.learning_rate
    return SearchSpace(
        bit_names=workspace.space.bit_names(workspace.base.model),
        low=rates.low,
        high=rates.high,
        values=workspace.space.levels,
        extra=tuple(workspace.config.search.extra.items()),
    )


def known_points(workspace: Workspace) -> list[Point]:
    """Return the points a search tries first: the known masks at the known learning rates.

    Whatever else is searched has the recipe's value in them.
    """
    settings = workspace.config.search
    if not settings.known_masks:
        return []
    rates = settings.known_learning_rates or (workspace.config.train.learning_rate,)
    masks = workspace.space.known_masks(workspace.base.model).values()
    train = workspace.config.train
    options = make_strategy(train.strategy, train.strategy_options).model_dump()
    recipe = {
        **train.model_dump(),
        DROP_PATH: 0.0,
        **{f"{STRATEGY_OPTION}{name}": value for name, value in options.items()},
    }
    extras = search_space(workspace).extras_of(recipe)
    return [Point(bits, rate, extras) for rate in rates for bits in masks]


def run_study(
    runner: TrialRunner,
    executor: Executor,
    workspace: Workspace,
    *,
    propose: bool = True,
    show_progress: bool = True,
) -> list[FinishedTrial]:
    """Run the trials of a search and return those that ended with a value, in order.

    What the parent run already has is taken over: finished and failed trials count as they are;
    trials that were cut off are closed as KILLED and repeated. Without `propose` that is all: the
    search had its winner already.

    Raises
    ------
    NoTrialError
        When every trial failed; names the first reason.
    InterruptedSearchError
        When the user asked to stop.
    """
    settings = workspace.config.search
    objective = get_objective(settings.objective)
    trials = executor.trials()
    past = _Past.of(runner.parent.children("tags.`fairtune.kind` = 'trial'"), runner.space)
    past.close_unfinished(runner)
    past.restore(trials, runner, objective)
    if not propose:
        return _finished(trials, runner.space, runner.parent.run_id)
    done = len(past.done)
    with _Progress(settings.trials, objective, show=show_progress, done=done) as progress:
        progress.update(trials._dynamic_trials)
        budget = _Budget(workspace, runner, objective, progress.update, past.began())
        proposer = Proposer(
            space=runner.space,
            given=[*past.unfinished, *known_points(workspace)],
            suggest=algorithm(settings.algorithm, settings.startup_trials),
            seed=workspace.config.seed,
            may_start=budget.allows_a_trial,
            on_proposal=runner.open,
            goes_on=budget.goes_on,
            taken=set(past.numbers),
        )
        executor.minimize(runner, proposer, trials)
        budget.closing = True
        while budget.waiting(trials._dynamic_trials) is not None:
            executor.minimize(runner, proposer, trials)
        progress.update(trials._dynamic_trials)
    runner.stop.check()
    runner.forget_paused()
    return _finished(trials, runner.space, runner.parent.run_id)


@dataclass
class _Past:
    """The trials that a parent run already has."""

    done: list[tuple[Point, Run]] = field(default_factory=list)
    unfinished: list[Point] = field(default_factory=list)
    unfinished_runs: list[str] = field(default_factory=list)
    cut_off: list[int] = field(default_factory=list)
    """Which of those that are done had paused and were cut off when they went on."""

    @classmethod
    def of(cls, runs: Iterable[Run], space: SearchSpace) -> _Past:
        past = cls()
        for run in sorted(runs, key=lambda run: int(run.data.tags[NUMBER])):
            if has_ended(run):
                past.done.append((point_of(run, space), run))
                continue
            if GOES_ON_FROM in run.data.tags:
                past.done.append((point_of(run, space), run))
                past.cut_off.append(len(past.done) - 1)
                continue
            if "learning_rate" in run.data.params:  # else cut off before it was written down
                past.unfinished.append(point_of(run, space))
            if run.info.status == "RUNNING":
                past.unfinished_runs.append(run.info.run_id)
        return past

    def began(self) -> float:
        """Return when the search would have begun, had it run without a break, on this clock."""
        legs = (leg for _, run in self.done for leg in legs_of(run))
        spent, until = 0.0, -math.inf  # milliseconds; what ran at once counts once
        for start, end in sorted(leg for leg in legs if leg[0] < leg[1]):
            spent += max(0.0, end - max(start, until))
            until = max(until, end)
        return time.monotonic() - spent / 1000

    @property
    def numbers(self) -> list[int]:
        return [int(run.data.tags[NUMBER]) for _, run in self.done]

    def close_unfinished(self, runner: TrialRunner) -> None:
        """Close what a killed process left open: its trials, and its final runs.

        A trial that was cut off when it went on waits again where it had paused.
        """
        for index in self.cut_off:
            point, run = self.done[index]
            self.done[index] = point, runner.pause_again(run)
        for run_id in self.unfinished_runs:
            runner.parent.sibling(run_id).end("KILLED")
        for _, run in self.done:
            if run.info.status == "RUNNING":  # killed after its error was written down
                runner.parent.sibling(run.info.run_id).end("FAILED")
        runner.parent.end_children("KILLED")

    def restore(self, trials: Trials, runner: TrialRunner, objective: Objective) -> None:
        """Write the past into hyperopt's trials, as if this process had run them."""
        domain = Domain(runner, runner.space.expression())
        docs = []
        # In the order in which they ended, as `patience` counts.
        in_order = sorted(self.done, key=lambda one: one[1].info.end_time or 0)
        for tid, (point, run) in enumerate(in_order):
            number = int(run.data.tags[NUMBER])
            doc = trial_doc(tid, number, point, runner.space, domain, trials)
            doc["state"] = JOB_STATE_DONE
            doc["result"] = result_of(run, objective)
            if waits_again(run):
                doc["result"] |= runner.judged_at(run, doc["result"]["epochs"])
            docs.append(doc)
        if docs:
            trials.insert_trial_docs(docs)
            trials.refresh()
            logger.info("took over %d trials", len(docs))


def point_of(run: Run, space: SearchSpace) -> Point:
    """Read a trial's point back from its run's parameters."""
    params = run.data.params
    return Point(
        tuple(int(params[f"mask.{name}"]) for name in space.bit_names),
        float(params["learning_rate"]),
        space.extras_in(params),
    )


@dataclass
class _Budget:
    """Whether another trial may start, and which paused one goes on; asked by the proposer."""

    workspace: Workspace
    runner: TrialRunner
    objective: Objective
    tell: Callable[[Iterable[dict[str, Any]]], None]
    started: float
    closing: bool = False
    """Whether no new trial starts any more: then paused ones go on until there are candidates enough."""

    def allows_a_trial(self, trials: Trials) -> bool:
        """Say whether a new trial may start; the reason why not is logged."""
        if self.closing:
            return False
        settings = self.workspace.config.search
        results = _results(trials._dynamic_trials)
        values = [r["value"] for r in results if r.get("status") == STATUS_OK]
        reasons = {
            **self._work(trials._dynamic_trials),
            f"{settings.trials} trials": len(results) >= settings.trials,
            f"no better for {settings.patience} trials": self._stale(values, settings.patience),
            f"the first {FAILURES} all failed": _hopeless(results),
        }
        for reason, reached in reasons.items():
            if reached:
                logger.info("no further trial: %s", reason)
                return False
        return True

    def goes_on(self, docs: Iterable[dict[str, Any]]) -> int | None:
        """Return the number of the paused trial that goes on now, its run open again; None: none."""
        self.tell(docs)
        number = self.waiting(docs)
        if number is not None:
            self.runner.reopen(number)
        return number

    def waiting(self, docs: Iterable[dict[str, Any]]) -> int | None:
        """Return the number of the paused trial that is to go on next, while the budget lasts."""
        config = self.workspace.config
        if config.search.pruning.rule != "asha":
            return None
        docs = list(docs)
        if any(self._work(docs).values()):
            return None
        standings = _standings(docs)
        found = next_to_go_on(standings, config.rungs, config.search.pruning.reduction)
        if found is None and self.closing and _whole(docs) < config.search.final.candidates:
            found = furthest(standings)
        return None if found is None else found.number

    def _work(self, docs: Iterable[dict[str, Any]]) -> dict[str, bool]:
        """Say of each reason to do no more work at all whether it holds."""
        settings = self.workspace.config.search
        reached: dict[int, int] = {}  # by trial: one that goes on has what it had
        for doc in docs:
            number = doc["misc"]["number"]
            reached[number] = max(reached.get(number, 0), doc["result"].get("epochs", 0))
        epochs = sum(reached.values())
        minutes = (time.monotonic() - self.started) / 60
        return {
            "stopped by Ctrl-C": self.runner.stop.requested,
            f"{settings.max_minutes} minutes": bool(reached)
            and minutes >= (settings.max_minutes or float("inf")),
            f"{settings.max_epochs} epochs": epochs >= (settings.max_epochs or float("inf")),
        }

    def _stale(self, values: list[float], patience: int | None) -> bool:
        if patience is None or len(values) <= patience:
            return False
        losses = [self.objective.loss(value) for value in values]
        return min(losses[-patience:]) >= min(losses[:-patience])


def _results(docs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what every trial has last come to."""
    return [doc["result"] for doc in latest_docs(docs)]


def _whole(docs: Iterable[dict[str, Any]]) -> int:
    """Count the trials that ran to the end, and those that still run."""
    return sum(
        doc["state"] not in (JOB_STATE_DONE, JOB_STATE_ERROR)
        or (doc["result"].get("status") == STATUS_OK and not doc["result"]["pruned"])
        for doc in latest_docs(docs)
    )


def _standings(docs: Iterable[dict[str, Any]]) -> list[Standing]:
    """Read how far every trial has come. One that goes on or has failed waits no more."""
    at: dict[int, dict[int, float]] = {}
    waits: dict[int, int | None] = {}
    for doc in sorted(docs, key=lambda doc: int(doc["tid"])):
        number, result = doc["misc"]["number"], doc["result"]
        at.setdefault(number, {}).update(dict(result.get("rungs", ())))
        paused = doc["state"] == JOB_STATE_DONE and result.get("pruned", False)
        waits[number] = result["epochs"] if paused else None
    return [Standing(number, at[number], waits[number]) for number in at]


def _hopeless(results: list[dict[str, Any]]) -> bool:
    ended = [r["status"] for r in results if r.get("status") in (STATUS_OK, STATUS_FAIL)]
    return len(ended) >= FAILURES and STATUS_OK not in ended


class _Progress:
    """Time left, the best value so far, images per second: a bar, or where nobody looks on log lines.

    `done` trials were there before and say nothing of the time that is left.
    """

    def __init__(self, total: int, objective: Objective, *, show: bool, done: int = 0) -> None:
        self.objective, self.show, self.done = objective, show, done
        self.bar = progress_bar(
            total=total, initial=done, unit="trial", desc="search", disable=not show
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, docs: Iterable[dict[str, Any]]) -> None:
        results = _results(doc for doc in docs if doc["state"] == JOB_STATE_DONE)
        values = [r["value"] for r in results if r.get("status") == STATUS_OK]
        new, self.done = len(results) - self.done, len(results)
        if values:
            best = min(values, key=self.objective.loss)
            speed = next(r["images_per_second"] for r in reversed(results) if "value" in r)
            said = f"best {self.objective.name} {best:.3f}, {speed:,.0f} images/s"
            self.bar.set_postfix_str(said, refresh=False)
            if self.show and self.bar.disable and new:
                logger.info("%d of %d trials: %s", self.done, self.bar.total, said)
        self.bar.update(new)


def _finished(trials: Trials, space: SearchSpace, parent: str) -> list[FinishedTrial]:
    latest = sorted(latest_docs(trials._dynamic_trials), key=lambda doc: doc["misc"]["number"])
    docs = [doc for doc in latest if doc["result"].get("status") == STATUS_OK]
    if not docs:
        errors = [
            doc["result"].get("error") or str(doc["misc"]["error"])
            for doc in trials._dynamic_trials
            if "error" in doc["result"] or "error" in doc["misc"]
        ]
        reason = errors[0] if errors else "no trial was started"
        raise NoTrialError(f"no trial of run {parent} succeeded; the first failed with: {reason}")
    return [
        FinishedTrial(
            number=doc["result"]["number"],
            point=space.point_of_vals(doc["misc"]["vals"]),
            run_id=doc["result"]["run_id"],
            value=doc["result"]["value"],
            auroc=doc["result"]["auroc"],
            worst_group_auroc=doc["result"]["worst_group_auroc"],
            epochs=doc["result"]["epochs"],
            pruned=doc["result"]["pruned"],
        )
        for doc in docs
    ]
