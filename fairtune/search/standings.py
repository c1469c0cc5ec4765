"""How the finalists stand: mean objective over fresh seeds, minus what chance may have given.

A candidate is ranked by its lower bound, mean minus standard error, where

    standard error² = s² / n + b²

``s²`` is the sample variance of the objective over the n seeds: what another fine-tune would change.
``b²`` is the variance of the objective over resampled patients of the validation split (bootstrap,
averaged over the seeds): what other patients would change. All seeds are judged on the same
patients, so b² does not shrink with n, and s² holds none of it: the two add up.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairtune.errors import InputError
from fairtune.fairness import Objective, bootstrap_report
from fairtune.search.point import Extras
from fairtune.search.settings import FinalSettings
from fairtune.search.study import NoTrialError
from fairtune.training import Split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A mask and learning rate that is fine-tuned again."""

    name: str
    space: str
    bits: tuple[int, ...]
    learning_rate: float
    extras: Extras = ()
    number: int | None = None
    """The trial it comes from; None for a baseline."""
    first_value: float = math.nan
    """The objective in the search, which owes something to luck."""


@dataclass(frozen=True)
class FinalRun:
    """One fine-tune of a candidate."""

    candidate: Candidate
    index: int
    run_id: str
    value: float
    auroc: float
    patient_error: float = math.nan
    """Standard error of the value over resampled patients."""
    error: str | None = None
    """Why it has no value."""


@dataclass(frozen=True)
class Standing:
    """A candidate with its runs."""

    candidate: Candidate
    runs: tuple[FinalRun, ...]

    @property
    def mean(self) -> float:
        """Mean objective over the seeds."""
        return float(np.mean([run.value for run in self.runs]))

    @property
    def seed_error(self) -> float:
        """Standard error of the mean over the seeds; NaN for one seed."""
        return standard_error([run.value for run in self.runs])

    @property
    def patient_error(self) -> float:
        """Standard error over resampled patients; NaN where the bootstrap is undefined."""
        return math.sqrt(float(np.mean([run.patient_error**2 for run in self.runs])))

    @property
    def standard_error(self) -> float:
        """Both parts together; a part that is not known counts as none."""
        parts = [e for e in (self.seed_error, self.patient_error) if not math.isnan(e)]
        return math.hypot(*parts) if parts else math.nan

    @property
    def auroc(self) -> float:
        """Mean overall AUROC over the seeds."""
        return float(np.mean([run.auroc for run in self.runs]))

    @property
    def typical(self) -> FinalRun:
        """The run nearest to the mean: what a user who fine-tunes once may expect."""
        return min(self.runs, key=lambda run: (abs(run.value - self.mean), run.index))

    def bound(self, objective: Objective) -> float:
        """Return the pessimistic end of mean ± standard error, oriented: larger is better."""
        error = self.standard_error
        return -objective.loss(self.mean) - (0.0 if math.isnan(error) else error)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def patient_error(
    split: Split,
    probabilities: NDArray[np.float64],
    objective: Objective,
    *,
    n_resamples: int,
    seed: int,
) -> float:
    """Return the standard error of the objective over resampled patients of a split.

    NaN without resamples, with fewer than two patients, or where no resample defines the objective.
    """
    if n_resamples < 2 or len(set(split.patients)) < 2:
        return math.nan
    report = bootstrap_report(
        split.labels,
        probabilities,
        split.groups,
        split.patients,
        n_resamples=n_resamples,
        seed=seed,
    )
    return report[objective.name].standard_error


def standings(runs: Sequence[FinalRun]) -> list[Standing]:
    """Group final runs by candidate, in order of appearance.

    A candidate of which one seed failed is out: what cannot be relied on is not chosen.

    Raises
    ------
    NoTrialError
        When every candidate is out; names the first reason.
    """
    failed = {run.candidate.name: run.error for run in runs if run.error is not None}
    names = dict.fromkeys(run.candidate.name for run in runs)
    found = [
        Standing(mine[0].candidate, mine)
        for name in names
        if name not in failed and (mine := tuple(run for run in runs if run.candidate.name == name))
    ]
    for name, reason in failed.items():
        logger.warning("%s is no candidate any more: %s", name, reason)
    if not found:
        raise NoTrialError(f"every final run failed; the first with: {next(iter(failed.values()))}")
    return found


def pick_winner(
    contenders: Sequence[Standing], objective: Objective, settings: FinalSettings
) -> Standing:
    """Return the candidate with the best lower bound, subject to the limit on overall AUROC."""
    allowed = list(contenders)
    if settings.max_auroc_loss is not None:
        best = max((s.auroc for s in allowed if not math.isnan(s.auroc)), default=math.nan)
        allowed = [s for s in allowed if s.auroc >= best - settings.max_auroc_loss]
    if not allowed:
        raise InputError("no candidate has a defined overall AUROC: check the validation split")
    return max(allowed, key=lambda standing: standing.bound(objective))
