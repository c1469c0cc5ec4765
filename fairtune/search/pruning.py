"""Which trials stop early: decided at rungs, during training, on the objective.

A `Pruner` compares one trial's value at a rung with the values that other trials had at the same rung.
These come from the tracking store, so that one worker and many decide alike. Under `asha` every trial
pauses at every rung, and `next_to_go_on` says which of them is worth more epochs. Values are oriented:
larger is better, whatever the objective's direction.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fairtune.search.settings import PruningSettings


class Pruner(ABC):
    """Decide at a rung whether a trial goes on."""

    @abstractmethod
    def goes_on(self, value: float, others: Sequence[float]) -> bool:
        """Say whether a trial with `value` goes on, given the others' values at the same rung.

        Larger is better; NaN never goes on; a tie is decided for the trial.
        """


@dataclass(frozen=True)
class SuccessiveHalving(Pruner):
    """Go on when among the best 1/reduction of all that have reached the rung so far.

    The stopping variant of asynchronous successive halving (see `next_to_go_on`): no trial waits for
    another, and none is resumed, so a trial is judged against those that happened to be there before it.
    """

    reduction: int = 3
    min_trials: int = 3

    def goes_on(self, value: float, others: Sequence[float]) -> bool:
        """See `Pruner.goes_on`."""
        if math.isnan(value):
            return False
        seen = [other for other in others if not math.isnan(other)]
        if len(others) + 1 < self.min_trials:
            return True
        places = max(1, (len(others) + 1) // self.reduction)
        return sum(other > value for other in seen) < places


@dataclass(frozen=True)
class Median(Pruner):
    """Go on when not below the median of the others at the rung (Golovin et al. 2017, Vizier)."""

    min_trials: int = 3

    def goes_on(self, value: float, others: Sequence[float]) -> bool:
        """See `Pruner.goes_on`."""
        if math.isnan(value):
            return False
        if not others or len(others) + 1 < self.min_trials:
            return True
        seen = sorted(-math.inf if math.isnan(other) else other for other in others)
        middle = len(seen) // 2
        # The lower of the two middle values: an average with -inf would say nothing.
        return value >= seen[middle if len(seen) % 2 else middle - 1]


class Pause(Pruner):
    """Go on at no rung: who goes on is decided when there is more to compare with."""

    def goes_on(self, value: float, others: Sequence[float]) -> bool:
        """See `Pruner.goes_on`."""
        return False


@dataclass(frozen=True)
class Standing:
    """How far a trial has come."""

    number: int
    at: Mapping[int, float]
    """Its value at every rung it has reached."""
    paused_at: int | None
    """The rung at which it waits; None while it trains, and when it has ended."""


def next_to_go_on(
    standings: Iterable[Standing], rungs: Sequence[int], reduction: int
) -> Standing | None:
    """Return the paused trial that is to go on, or None: then a new one is to start.

    From the highest rung down: the best of those that wait there and are among the best 1/reduction
    of all that have reached it. Of equals the earlier trial is the better; NaN never goes on.

    References
    ----------
    Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv:1810.05934,
    algorithm 2 (`get_job`).
    """
    known = list(standings)
    for rung in sorted(rungs, reverse=True):
        there = [one for one in known if rung in one.at]
        for one in _ranked(there, rung)[: len(there) // reduction]:
            if one.paused_at == rung:
                return one
    return None


def furthest(standings: Iterable[Standing]) -> Standing | None:
    """Return the best of the paused trials at the highest rung where any waits; NaN never goes on."""
    waiting = [one for one in standings if one.paused_at is not None]
    for rung in sorted({one.paused_at for one in waiting if one.paused_at}, reverse=True):
        for one in _ranked([one for one in waiting if one.paused_at == rung], rung):
            return one
    return None


def _ranked(there: Iterable[Standing], rung: int) -> list[Standing]:
    """Sort by value at a rung, the best first, of equals the earlier trial; without NaN."""
    found = (one for one in there if not math.isnan(one.at[rung]))
    return sorted(found, key=lambda one: (-one.at[rung], one.number))


def make_pruner(settings: PruningSettings) -> Pruner | None:
    """Return what a trial asks at a rung under the rule that the settings name, or None."""
    if settings.rule == "asha":
        return Pause()
    if settings.rule == "halving":
        return SuccessiveHalving(settings.reduction, settings.min_trials)
    if settings.rule == "median":
        return Median(settings.min_trials)
    return None
