"""Checks of labels and scores, each with a message that says what, where and what to do."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairtune.errors import InputError

# Probabilities that went through half precision sum to one only roughly.
SUM_TOLERANCE = 5e-3


def check_labels(y_true: ArrayLike) -> NDArray[np.intp]:
    """Return (N,) labels as integers; raises `InputError` unless they are whole numbers from 0."""
    labels = np.asarray(y_true)
    if labels.ndim != 1 or labels.size == 0:
        raise InputError(f"labels must have shape (N,) with N > 0, not {labels.shape}")
    if labels.dtype.kind not in "biuf":
        raise InputError(f"labels must be class numbers, not of type {labels.dtype}")
    bad = ~np.isfinite(labels) | (labels != np.floor(labels)) | (labels < 0)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(f"label {labels[row]} in row {row} is not a class number (0, 1, ...)")
    return labels.astype(np.intp)


def check_scores(
    y_true: ArrayLike, y_score: ArrayLike
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return (N,) integer labels and (N, C) float64 class probabilities.

    Raises
    ------
    InputError
        Wrong shapes, a score that is NaN or outside [0, 1], a row that does not sum to 1 within
        `SUM_TOLERANCE`, a label that is not in 0..C-1.
    """
    labels = check_labels(y_true)
    scores = np.asarray(y_score)
    if scores.ndim != 2 or scores.shape[0] != labels.size or scores.shape[1] < 2:
        raise InputError(
            f"scores must have shape (N, C), a probability per class, for {labels.size} labels, "
            f"not {scores.shape}"
        )
    if scores.dtype.kind not in "biuf":
        raise InputError(f"scores must be numbers, not of type {scores.dtype}")
    scores = scores.astype(np.float64)
    _check_probabilities(scores)
    outside = np.flatnonzero(labels >= scores.shape[1])
    if outside.size:
        row = int(outside[0])
        raise InputError(
            f"label {labels[row]} in row {row} has no score: there are {scores.shape[1]} classes"
        )
    return labels, scores


def _check_probabilities(scores: NDArray[np.float64]) -> None:
    bad = ~((scores >= 0) & (scores <= 1))  # NaN fails both
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"score {scores[row, column]} in row {row}, class {column} is not a probability: "
            "a diverged model, or logits that need a softmax"
        )
    sums = scores.sum(axis=1)
    off = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if off.size:
        raise InputError(
            f"the scores of row {off[0]} sum to {sums[off[0]]:.6g}, not to 1: apply a softmax"
        )


def check_threshold(threshold: float | None, n_classes: int) -> float | None:
    """Return the threshold that decides: 0.5 unless given for two classes, None for more."""
    if n_classes > 2:
        if threshold is not None:
            raise InputError(f"a threshold decides between two classes, there are {n_classes}")
        return None
    value = 0.5 if threshold is None else float(threshold)
    if not 0 <= value <= 1:
        raise InputError(f"threshold {value} is not a probability between 0 and 1")
    return value
