"""The metrics of one set of rows: a whole split, or one group of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15
SCALARS = ("auroc", "accuracy", "balanced_accuracy", "ece", "brier", "log_loss")
RATES = ("selection_rate", "tpr", "fpr")

Labels = NDArray[np.intp]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupMetrics:
    """Counts and metrics of a set of rows; a metric that is not defined is NaN.

    Attributes
    ----------
    n_by_class
        Number of rows per true class.
    values
        Metric by name, those of `SCALARS`.
    rates
        `selection_rate`, `tpr` and `fpr`, one-vs-rest: for two classes that of class 1 alone, for
        more a value per class.
    """

    n_by_class: tuple[int, ...]
    values: Mapping[str, float]
    rates: Mapping[str, tuple[float, ...]]

    @property
    def n(self) -> int:
        """Number of rows."""
        return sum(self.n_by_class)

    @property
    def n_positive(self) -> int | None:
        """Number of rows of class 1 where there are two classes, else None."""
        return self.n_by_class[1] if len(self.n_by_class) == 2 else None

    def flat(self) -> dict[str, float]:
        """Return the values, and for two classes the rates, by name."""
        flat = dict(self.values)
        if len(self.n_by_class) == 2:
            flat |= {name: rate for name, (rate,) in self.rates.items()}
        return flat


def undefined_reason(metric: str, n_by_class: tuple[int, ...]) -> str | None:
    """Say why a metric is not defined for rows with these counts per class; None where it is."""
    n = sum(n_by_class)
    if n == 0:
        return "no row"
    binary = len(n_by_class) == 2
    needed: list[int] = []
    if metric in ("auroc", "balanced_accuracy") or (metric == "tpr" and not binary):
        needed = list(range(len(n_by_class)))
    elif metric == "tpr":
        needed = [1]
    elif metric == "fpr" and binary:
        needed = [0]
    elif metric == "fpr":  # the rate of class k needs a row of another class
        full = [k for k, count in enumerate(n_by_class) if count == n]
        return f"no row outside class {full[0]}" if full else None
    lacking = [str(k) for k in needed if n_by_class[k] == 0]
    if not lacking:
        return None
    return f"no row of class {', '.join(lacking)}"


def predict(y_score: Floats, threshold: float | None) -> Labels:
    """Decide (N,) classes from (N, C) probabilities: class 1 from the threshold on, else argmax."""
    if threshold is None:
        return np.asarray(y_score.argmax(axis=1))
    return np.asarray(y_score[:, 1] >= threshold).astype(np.intp)


def measure(y_true: Labels, y_score: Floats, y_pred: Labels) -> GroupMetrics:
    """Measure one set of rows; (N,), (N, C), (N,), where N may be 0.

    Sources: scikit-learn's definitions of AUROC (more than two classes: one-vs-rest, macro mean),
    accuracy, balanced accuracy, Brier score (more than two classes: summed over classes) and log
    loss (clipped at the double's epsilon); expected calibration error of Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, with 15 bins of equal width. Unlike
    scikit-learn's, AUROC and balanced accuracy are NaN as soon as a class has no row.
    """
    n_classes = y_score.shape[1]
    confusion = np.bincount(y_true * n_classes + y_pred, minlength=n_classes**2)
    confusion = confusion.reshape(n_classes, n_classes)  # (true, predicted)
    n_by_class = confusion.sum(axis=1)
    recalls, rates = _rates(confusion)
    columns = slice(1, 2) if n_classes == 2 else slice(None)
    n = y_true.size
    values = dict.fromkeys(SCALARS, float("nan"))
    if n:
        values = {
            "auroc": float(
                np.mean([auroc(y_true == k, y_score[:, k]) for k in range(n_classes)[columns]])
            ),
            "accuracy": float(np.trace(confusion) / n),
            "balanced_accuracy": float(recalls.mean()),
            "ece": _ece(y_true, y_score),
            "brier": _brier(y_true, y_score),
            "log_loss": float(log_losses(y_true, y_score).mean()),
        }
    return GroupMetrics(
        tuple(int(count) for count in n_by_class),
        values,
        {name: tuple(float(rate) for rate in rates[name][columns]) for name in RATES},
    )


def _rates(confusion: NDArray[np.intp]) -> tuple[Floats, dict[str, Floats]]:
    n_by_class, chosen, hits = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    n = n_by_class.sum()
    with np.errstate(invalid="ignore"):  # 0/0 is NaN: not defined
        recalls = hits / n_by_class
        return recalls, {
            "selection_rate": chosen / n,
            "tpr": recalls,
            "fpr": (chosen - hits) / (n - n_by_class),
        }


def auroc(positive: NDArray[np.bool_], score: Floats) -> float:
    """Area under the ROC curve, ties counted half; NaN unless both classes have a row.

    It is the share of (positive, negative) pairs in the right order (Mann-Whitney U).
    """
    _, level, count = np.unique(score, return_inverse=True, return_counts=True)
    n_positive = int(positive.sum())
    n_negative = positive.size - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    positives = np.bincount(level[positive], minlength=count.size)
    negatives = count - positives
    below = np.cumsum(negatives) - negatives
    pairs = float(positives @ below) + 0.5 * float(positives @ negatives)
    return pairs / (n_positive * n_negative)


def _ece(y_true: Labels, y_score: Floats) -> float:
    if y_score.shape[1] == 2:
        confidence, hit = y_score[:, 1], y_true == 1
    else:
        confidence, hit = y_score.max(axis=1), y_score.argmax(axis=1) == y_true
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.intp) - 1, 0, ECE_BINS - 1)
    excess = np.bincount(bins, weights=hit - confidence, minlength=ECE_BINS)
    return float(np.abs(excess).sum() / y_true.size)


def _brier(y_true: Labels, y_score: Floats) -> float:
    if y_score.shape[1] == 2:
        return float(np.mean((y_score[:, 1] - y_true) ** 2))
    target = y_true[:, None] == np.arange(y_score.shape[1])
    return float(np.mean(((y_score - target) ** 2).sum(axis=1)))


def log_losses(y_true: Labels, y_score: Floats) -> Floats:
    """Return the (N,) log losses of the rows."""
    epsilon = np.finfo(np.float64).eps
    likelihood = y_score[np.arange(y_true.size), y_true]
    return np.asarray(-np.log(np.clip(likelihood, epsilon, 1 - epsilon)))
