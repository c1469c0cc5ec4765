"""The threshold from which a probability counts as positive, fitted on validation data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairtune.errors import InputError
from fairtune.fairness.validation import check_scores, check_threshold
from fairtune.registry import unknown_name

Counts = NDArray[np.int64]
# (true positives, false positives, positives, negatives) -> a score per candidate, larger is better
Rule = Callable[[Counts, Counts, int, int], NDArray[np.generic]]


def _youden(tp: Counts, fp: Counts, positives: int, negatives: int) -> NDArray[np.generic]:
    """Youden's J = TPR - FPR (Cancer, 1950), times both counts so that ties are exact."""
    return tp * negatives - fp * positives


def _f1(tp: Counts, fp: Counts, positives: int, negatives: int) -> NDArray[np.generic]:
    return 2 * tp / (tp + fp + positives)


# Balanced accuracy is (J + 1) / 2 and has the same best threshold as Youden's J.
_FITTED: dict[str, Rule] = {"youden": _youden, "balanced_accuracy": _youden, "f1": _f1}
FIXED = "fixed"
THRESHOLD_RULES = (*_FITTED, FIXED)


def fit_threshold(
    y_true: ArrayLike, y_score: ArrayLike, rule: str = "youden", *, value: float = 0.5
) -> float | None:
    """Choose the threshold by a rule; call it on the validation split only.

    Candidates lie half-way between neighbouring scores, so that the choice does not hang on the
    last bit of a score. Of equally good ones the nearest to 0.5 wins, then the lower.

    Parameters
    ----------
    y_true, y_score
        (N,) class numbers and (N, C) class probabilities.
    rule
        `youden` (largest TPR - FPR), `balanced_accuracy` (the same), `f1`, or `fixed`.
    value
        The threshold under the rule `fixed`.

    Returns
    -------
    float or None
        In [0, 1]; None for more than two classes, which are decided by argmax.

    Raises
    ------
    InputError
        Unknown rule, impossible scores, or only one class in `y_true` (except for `fixed`).
    """
    labels, scores = check_scores(y_true, y_score)
    if rule not in THRESHOLD_RULES:
        raise unknown_name("threshold rule", rule, THRESHOLD_RULES)
    if scores.shape[1] > 2:
        return None
    if rule == FIXED:
        return check_threshold(value, 2)
    positives = int(labels.sum())
    negatives = labels.size - positives
    if positives == 0 or negatives == 0:
        raise InputError(
            f"cannot fit a threshold: the split has {positives} positive and {negatives} negative "
            f"rows; use the rule {FIXED!r} or a split with both classes"
        )
    candidates, tp, fp = _candidates(labels, scores[:, 1])
    merit = _FITTED[rule](tp, fp, positives, negatives)
    best = candidates[merit == merit.max()]
    return float(min(best, key=lambda threshold: (abs(threshold - 0.5), threshold)))


def _candidates(
    labels: NDArray[np.intp], score: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Counts, Counts]:
    """Return (K,) thresholds, ascending, with the true and false positives of each."""
    levels, index = np.unique(score, return_inverse=True)
    below, above = levels[:-1], levels[1:]
    middle = (below + above) / 2
    edges = np.concatenate([[0.0], np.where(middle > below, middle, above)])  # it may round down
    positive = np.bincount(index, weights=labels, minlength=levels.size).astype(np.int64)
    count = np.bincount(index, minlength=levels.size).astype(np.int64)
    tp = positive[::-1].cumsum()[::-1]
    return edges, tp, count[::-1].cumsum()[::-1] - tp
