"""What a comparison may conclude: paired differences and corrections. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from fairtune.fairness.resampling import Resampled, multiplicities
from fairtune.tracking.predictions import groups_of, probabilities_of

LARGEST_T = 1e5
"""SciPy finds noncentralities up to ten times this."""


@dataclass(frozen=True)
class SeedDifference:
    """A method minus a reference, paired over seeds.

    Attributes
    ----------
    n
        Seeds in which both have a value.
    mean, standard_error
        Of the differences; the error is NaN for one seed.
    low, high
        Two-sided t-interval of the mean.
    p_value
        Two-sided paired t test of no difference; 1 where all differences are 0.
    effect
        Cohen's d of paired samples: mean over standard deviation of the differences.
    hedges_g
        The same without the bias that it has in small samples; NaN below 3 seeds.
    effect_low, effect_high
        Two-sided interval of the effect in the population. It needs no correction of its own.
    """

    n: int
    mean: float
    standard_error: float
    low: float
    high: float
    p_value: float
    effect: float
    hedges_g: float
    effect_low: float
    effect_high: float


def seed_difference(
    method: ArrayLike, reference: ArrayLike, *, level: float = 0.95
) -> SeedDifference:
    """Compare two methods over seeds; ``method[i]`` and ``reference[i]`` share seed i.

    References
    ----------
    Student's paired t test; effect size d_z of Cohen, "Statistical Power Analysis for the
    Behavioral Sciences", 2nd edition (1988), section 2.3; see `hedges_correction` and
    `effect_interval`.
    """
    apart = np.asarray(method, float) - np.asarray(reference, float)
    apart = apart[~np.isnan(apart)]
    n = len(apart)
    if n == 0:
        return SeedDifference(0, *[math.nan] * 9)
    mean = float(apart.mean())
    if n == 1:
        return SeedDifference(1, mean, *[math.nan] * 8)
    deviation = float(apart.std(ddof=1))
    error = deviation / math.sqrt(n)
    if deviation == 0:
        same = mean == 0
        effect = 0.0 if same else math.copysign(math.inf, mean)
        unknown = [math.nan] * 3
        return SeedDifference(n, mean, 0.0, mean, mean, 1.0 if same else 0.0, effect, *unknown)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    effect = mean / deviation
    return SeedDifference(
        n,
        mean,
        error,
        mean - half,
        mean + half,
        p,
        effect,
        effect * hedges_correction(n - 1),
        *effect_interval(effect, n, level=level),
    )


def hedges_correction(freedom: int) -> float:
    """Return what takes the small-sample bias off a standardised mean; NaN below 2 degrees of freedom.

    References
    ----------
    Hedges (1981), "Distribution Theory for Glass's Estimator of Effect Size and Related
    Estimators", Journal of Educational Statistics 6(2), the exact form of c(m).
    """
    if freedom < 2:
        return math.nan
    logarithm = special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)
    return float(np.exp(logarithm) / math.sqrt(freedom / 2))


def effect_interval(effect: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of Cohen's d of n paired differences, from the noncentral t distribution.

    Its ends are the effects in the population under which one as large, or as small, as was seen
    has half of 1 - level to happen. It holds 0 just where the paired t test is not significant.
    NaN for an effect beyond all measure, of differences that are alike to the last digits.

    References
    ----------
    Cumming & Finch (2001), "A Primer on the Understanding, Use, and Calculation of Confidence
    Intervals That Are Based on Central and Noncentral Distributions", Educational and
    Psychological Measurement 61(4).
    """
    seen, tail = effect * math.sqrt(n), (1 - level) / 2
    if abs(seen) > LARGEST_T:
        return math.nan, math.nan
    ends = (special.nctdtrinc(n - 1, share, seen) / math.sqrt(n) for share in (1 - tail, tail))
    low, high = map(float, ends)
    return low, high


@dataclass(frozen=True)
class PatientInterval:
    """A figure, averaged over seeds, with its spread over resampled patients.

    `p_value` is two-sided, of 0: twice the smaller share of resamples on one side, their bias taken
    off (see `patient_interval`). NaN where fewer than 90 % of the resamples define the figure.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    n_patients: int


@dataclass(frozen=True, eq=False)
class PatientDraws:
    """Figures of one model on its test patients, and on resamples of them.

    `draws` holds (n_resamples,) values by name, NaN in resamples that do not define the figure.
    """

    estimates: Mapping[str, float]
    draws: Mapping[str, NDArray[np.float64]]
    n_patients: int


def patient_draws(
    table: pd.DataFrame, metrics: Sequence[str], *, n_resamples: int, seed: int
) -> PatientDraws:
    """Resample the patients of a table of predictions (see `predictions_table`).

    Parameters
    ----------
    metrics
        Names of `FairnessReport.to_dict`.
    seed
        Tables of the same images draw the same patients in each resample, so that their
        differences are paired.
    """
    table = table.sort_values("image", kind="stable")
    split = Resampled(
        table["label"].to_numpy(), probabilities_of(table), groups_of(table), table["patient"], None
    )
    blocks = [
        {name: values[name] for name in metrics}
        for weights in multiplicities(split.n_clusters, split.n_rows, n_resamples, seed)
        for values in [split.values(weights)]
    ]
    return PatientDraws(
        {name: split.estimates[name] for name in metrics},
        {name: np.concatenate([block[name] for block in blocks]) for name in metrics},
        split.n_clusters,
    )


def patient_interval(
    method: Sequence[PatientDraws],
    reference: Sequence[PatientDraws] | None,
    metric: str,
    *,
    level: float = 0.95,
) -> PatientInterval:
    """Return the mean of a figure over seeds, or of its paired difference, with its spread.

    Parameters
    ----------
    method, reference
        The draws of one model a seed; ``method[i]`` and ``reference[i]`` are of the same images.
        Without a reference no difference is taken.

    Notes
    -----
    The draws are shifted by estimate - mean of the draws before percentiles and p-value are taken:
    the least and the greatest of several groups are biased under resampling, and the mean over seeds
    narrows the spread of the draws but not that bias. The bias that the estimate itself may have
    stays. The ends of an interval may leave the range of the figure.

    Of 300 simulated pairs of models (300 rows a group, two or four groups), 95 % intervals of the
    difference in the gap, and in the worst group, held the true one in 97 % and more where the gaps
    of both were the same, and p was below 0.05 in 3 % and less. Where one model's groups were alike
    and the other's were 0.1 apart they held it in 80 to 92 %: the gap of the former is estimated too
    wide, so the difference looks smaller than it is.

    References
    ----------
    The bootstrap estimate of bias: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993),
    chapter 10.
    """
    estimates = np.array([found.estimates[metric] for found in method])
    draws = np.array([found.draws[metric] for found in method])  # (seeds, resamples)
    if reference is not None:
        estimates = estimates - [found.estimates[metric] for found in reference]
        draws = draws - [found.draws[metric] for found in reference]
    n_patients = max((found.n_patients for found in method), default=0)
    return _interval(float(estimates.mean()), draws.mean(axis=0), level, n_patients)


def _interval(
    estimate: float, draws: NDArray[np.float64], level: float, n_patients: int
) -> PatientInterval:
    valid = draws[~np.isnan(draws)]
    if valid.size < 0.9 * draws.size:
        return PatientInterval(estimate, math.nan, math.nan, math.nan, n_patients)
    valid = valid + (estimate - valid.mean())
    low, high = np.quantile(valid, [(1 - level) / 2, (1 + level) / 2])
    # One is added to both counts: no finite number of resamples shows a p of 0.
    one_side = min((valid <= 0).sum(), (valid >= 0).sum())
    p = min(1.0, 2 * float(1 + one_side) / (1 + valid.size))
    return PatientInterval(estimate, float(low), float(high), p, n_patients)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for several comparisons; NaN stay NaN and do not count.

    References
    ----------
    Holm (1979), "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of
    Statistics 6.
    """
    values = np.array(p_values, float)
    defined = ~np.isnan(values)
    sizes = np.arange(int(defined.sum()), 0, -1)
    order = np.flatnonzero(defined)[np.argsort(values[defined], kind="stable")]
    values[order] = np.minimum(np.maximum.accumulate(sizes * values[order]), 1)
    return [float(value) for value in values]
