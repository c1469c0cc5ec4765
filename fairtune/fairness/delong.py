"""DeLong's standard error of an AUROC, for independent rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fairtune.errors import InputError


def delong_se(positive: ArrayLike, score: ArrayLike) -> float:
    """Return the standard error of the AUROC of `score` for the class `positive`.

    Takes rows as independent: with several images a patient it is too small, use
    `bootstrap_report`. NaN with fewer than two rows of either class.

    Parameters
    ----------
    positive, score
        (N,) true or false, and (N,) scores.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver
    Operating Characteristic Curves", Biometrics 44 (1988); computed from sorted scores as in Sun
    and Xu, IEEE Signal Processing Letters 21 (2014).
    """
    truth, values = np.asarray(positive, dtype=np.bool_), np.asarray(score, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape or np.isnan(values).any():
        raise InputError(
            f"need (N,) labels and scores without NaN, not {truth.shape}, {values.shape}"
        )
    high, low = np.sort(values[truth]), np.sort(values[~truth])
    if high.size < 2 or low.size < 2:
        return float("nan")
    # For each row, the share of rows of the other class that it is ordered rightly with.
    of_positives = _half_ties(low, high) / low.size
    of_negatives = 1 - _half_ties(high, low) / high.size
    variance = of_positives.var(ddof=1) / high.size + of_negatives.var(ddof=1) / low.size
    return float(np.sqrt(variance))


def _half_ties(reference: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Count, for each value, the sorted reference values below it, ties as one half."""
    left = np.searchsorted(reference, values, side="left")
    return np.asarray((left + np.searchsorted(reference, values, side="right")) / 2)
