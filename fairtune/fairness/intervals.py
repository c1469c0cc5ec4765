"""How sure a figure is: bootstrap over patients, for one model and for the difference of two.

Images of one patient resemble each other, so patients are drawn, never images. Intervals are
percentile intervals (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993), except where
groups are compared (`es_auroc` has percentiles, too). A worst group or a difference between groups
is biased towards the extreme in every resample, and the bootstrap of an extreme fails where groups
are alike: the percentiles of a gap never hold the 0 that is true there (Hall and Miller, "Bootstrap
confidence intervals and hypothesis tests for extrema of parameters", Biometrika 97, 2010). So the
interval of such a figure reaches as far to both sides as, at the level, the groups' own figures
deviate in resamples: by the largest deviation of any group for a worst group, by the range of the
deviations for a difference, as Tukey's studentized range does for means. As no extreme moves further
than that, it covers at least at the level in large samples, whether groups are alike or not; with
several groups it covers more than that. It ends where the figure itself does, at 0 and, save for a
log loss, at 1.

Of 500 simulated splits (binormal scores, 300 rows and 90 positives a group, 500 resamples), the share
of 95 % intervals that held the true figure, by percentiles and in this way; in brackets the mean width:

======================  =============  =============  =============  =============
true AUROC of groups    gap, perc.     gap            worst, perc.   worst
======================  =============  =============  =============  =============
.80 .80                 0.00 (0.106)   0.95 (0.106)   0.90 (0.099)   0.98 (0.123)
.815 .785               0.97 (0.111)   0.98 (0.113)   0.96 (0.101)   0.98 (0.123)
.85 .75                 0.95 (0.141)   0.94 (0.144)   0.93 (0.115)   0.96 (0.123)
.80 .80 .80 .80         0.00 (0.115)   0.95 (0.158)   0.54 (0.093)   0.97 (0.137)
.83 .81 .79 .77         0.87 (0.122)   1.00 (0.172)   0.95 (0.098)   0.99 (0.138)
.85 .82 .78 .75         0.93 (0.129)   1.00 (0.189)   0.97 (0.104)   0.99 (0.138)
.83 .83 .83 .73         0.88 (0.135)   0.99 (0.190)   0.95 (0.114)   0.97 (0.137)
======================  =============  =============  =============  =============

Differences between two models on the same resamples cancel most of the bias; theirs are percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairtune.errors import InputError
from fairtune.fairness.metrics import Floats
from fairtune.fairness.resampling import Resampled, multiplicities

# Below this share of valid resamples an interval would describe only those resamples that happened
# to hold both classes of every group: it is NaN then.
MIN_VALID_SHARE = 0.9


@dataclass(frozen=True)
class Interval:
    """A figure with its spread.

    Attributes
    ----------
    estimate
        The figure on the split itself.
    low, high
        Two-sided interval, within what the figure can be; NaN when fewer than 90 % of the resamples
        are valid.
    standard_error
        Standard deviation over the valid resamples.
    n_valid, n_resamples
        Resamples in which the figure is defined, and all of them.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    n_valid: int
    n_resamples: int


@dataclass(frozen=True)
class BootstrapReport:
    """Intervals by the names of `FairnessReport.to_dict`, over `n_clusters` patients."""

    intervals: Mapping[str, Interval]
    level: float
    n_clusters: int

    def __getitem__(self, name: str) -> Interval:
        return self.intervals[name]

    def table(self) -> pd.DataFrame:
        """Return a row per figure, with the columns of `Interval` after `metric`."""
        return pd.DataFrame({"metric": name} | asdict(i) for name, i in self.intervals.items())


@dataclass(frozen=True)
class PairedDifference:
    """A figure of model b minus that of model a, on the same resampled patients.

    Attributes
    ----------
    a, b
        The figure of each model on the split itself.
    estimate
        `b - a`.
    low, high
        Two-sided percentile interval of the difference.
    lower_bound, upper_bound
        One-sided bounds, each at the same level on its own. "b is not lower by more than a margin"
        holds at that level when ``lower_bound >= -margin``.
    standard_error
        Standard deviation over the valid resamples.
    p_value
        Two-sided, of no difference: twice the smaller share of resamples on one side of 0.
    p_greater, p_less
        One-sided: small where b is greater (less) than a.
    n_valid, n_resamples
        Resamples that define the figure for both models, and all of them. With fewer than 90 %
        valid, bounds and p-values are NaN.
    """

    a: float
    b: float
    estimate: float
    low: float
    high: float
    lower_bound: float
    upper_bound: float
    standard_error: float
    p_value: float
    p_greater: float
    p_less: float
    n_valid: int
    n_resamples: int


@dataclass(frozen=True)
class PairedReport:
    """Differences by the names of `FairnessReport.to_dict`, over `n_clusters` patients."""

    differences: Mapping[str, PairedDifference]
    level: float
    n_clusters: int

    def __getitem__(self, name: str) -> PairedDifference:
        return self.differences[name]

    def table(self) -> pd.DataFrame:
        """Return a row per figure, with the columns of `PairedDifference` after `metric`."""
        return pd.DataFrame({"metric": name} | asdict(d) for name, d in self.differences.items())


def bootstrap_report(
    y_true: ArrayLike,
    y_score: ArrayLike,
    groups: pd.DataFrame,
    clusters: ArrayLike | None,
    *,
    threshold: float | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> BootstrapReport:
    """Give every objective, and each group's AUROC and accuracy, an interval over patients.

    Parameters
    ----------
    y_true, y_score, groups, threshold
        As for `evaluate`.
    clusters
        (N,) the patient (or lesion) of each row; None when every row is a patient of its own.
    n_resamples
        How many times as many patients as there are are drawn with replacement.
    level
        Of the intervals.
    seed
        The same seed gives the same figures.

    Raises
    ------
    InputError
        As `evaluate`; a missing patient, fewer than two patients, an impossible level or number.
    """
    _check(n_resamples, level)
    split = Resampled(y_true, y_score, groups, clusters, threshold)
    blocks = [
        split.values_and_deviations(weights)
        for weights in multiplicities(split.n_clusters, split.n_rows, n_resamples, seed)
    ]
    intervals = {}
    for name, estimate in split.estimates.items():
        found = _interval(estimate, np.concatenate([values[name] for values, _ in blocks]), level)
        if name in blocks[0][1]:
            off = np.concatenate([deviations[name] for _, deviations in blocks])
            found = _around(found, off, level, most=math.inf if "log_loss" in name else 1.0)
        intervals[name] = found
    return BootstrapReport(intervals, level, split.n_clusters)


def paired_bootstrap(
    y_true: ArrayLike,
    score_a: ArrayLike,
    score_b: ArrayLike,
    groups: pd.DataFrame,
    clusters: ArrayLike | None,
    *,
    threshold_a: float | None = None,
    threshold_b: float | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedReport:
    """Compare two models on the same rows: each resample of patients judges both.

    Parameters
    ----------
    score_a, score_b, threshold_a, threshold_b
        (N, C) class probabilities and threshold of each model; differences are b - a.
    y_true, groups, clusters, n_resamples, level, seed
        As for `bootstrap_report`.

    Raises
    ------
    InputError
        As `bootstrap_report`.
    """
    _check(n_resamples, level)
    a = Resampled(y_true, score_a, groups, clusters, threshold_a)
    b = Resampled(y_true, score_b, groups, clusters, threshold_b)
    blocks = []
    for weights in multiplicities(a.n_clusters, a.n_rows, n_resamples, seed):
        of_a, of_b = a.values(weights), b.values(weights)
        blocks.append({name: of_b[name] - of_a[name] for name in of_a})
    differences = {
        name: _difference(
            a.estimates[name],
            b.estimates[name],
            np.concatenate([block[name] for block in blocks]),
            level,
        )
        for name in a.estimates
    }
    return PairedReport(differences, level, a.n_clusters)


def _check(n_resamples: int, level: float) -> None:
    if n_resamples < 2:
        raise InputError(f"n_resamples is {n_resamples}, needs at least 2")
    if not 0 < level < 1:
        raise InputError(f"level is {level}, needs to lie between 0 and 1 (0.95, say)")


def _quantiles(draws: Floats, probabilities: list[float]) -> tuple[list[float], float, int]:
    """Return quantiles (NaN with too few valid draws), standard error, number of valid draws."""
    valid = draws[~np.isnan(draws)]
    error = float(valid.std(ddof=1)) if valid.size > 1 else math.nan
    if valid.size < MIN_VALID_SHARE * draws.size:
        return [math.nan] * len(probabilities), error, valid.size
    return [float(q) for q in np.quantile(valid, probabilities)], error, valid.size


def _interval(estimate: float, draws: Floats, level: float) -> Interval:
    tail = (1 - level) / 2
    (low, high), error, n_valid = _quantiles(draws, [tail, 1 - tail])
    return Interval(estimate, low, high, error, n_valid, draws.size)


def _around(found: Interval, deviations: Floats, level: float, *, most: float) -> Interval:
    """Let an interval reach to both sides as far as the groups deviate, within 0 to `most`."""
    (off,), *_ = _quantiles(deviations, [level])
    low, high = found.estimate - off, found.estimate + off
    return replace(found, low=max(low, 0.0), high=min(high, most))  # NaN stays NaN


def _difference(a: float, b: float, draws: Floats, level: float) -> PairedDifference:
    tail = (1 - level) / 2
    bounds, error, n_valid = _quantiles(draws, [tail, 1 - tail, 1 - level, level])
    if math.isnan(bounds[0]):
        greater = less = two_sided = math.nan
    else:  # one is added to both counts: no finite number of resamples shows a p of 0
        greater = float((1 + (draws <= 0).sum()) / (1 + n_valid))
        less = float((1 + (draws >= 0).sum()) / (1 + n_valid))
        two_sided = min(1.0, 2 * min(greater, less))
    return PairedDifference(
        a=a,
        b=b,
        estimate=b - a,
        low=bounds[0],
        high=bounds[1],
        lower_bound=bounds[2],
        upper_bound=bounds[3],
        standard_error=error,
        p_value=two_sided,
        p_greater=greater,
        p_less=less,
        n_valid=n_valid,
        n_resamples=draws.size,
    )
