"""Which trials stop early: asked at rungs, during training, on the objective.

A rule compares one trial's value at a rung with the values that other trials had at the same rung.
These come from the tracking store, so that one worker and many decide alike. Values are oriented:
larger is better, whatever the objective's direction.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
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

    The stopping variant of asynchronous successive halving (Li et al. 2020, "A System for Massively
    Parallel Hyperparameter Tuning", arXiv:1810.05934): no trial waits for another, and none is
    resumed, so a trial is judged against those that happened to be there before it.
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


def make_pruner(settings: PruningSettings) -> Pruner | None:
    """Return the rule that the settings name, or None."""
    if settings.rule == "halving":
        return SuccessiveHalving(settings.reduction, settings.min_trials)
    if settings.rule == "median":
        return Median(settings.min_trials)
    return None
