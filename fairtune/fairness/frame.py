"""The same split as fairlearn's own objects: a `MetricFrame` for each attribute, for its figures.

`evaluate` is what the search and the gates use. These frames hold the same figures in the form that
fairlearn's tools and readers know; a rate that a group cannot define is NaN, where fairlearn's
functions say 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from fairlearn.metrics import MetricFrame, count, selection_rate
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score

from fairtune.fairness.grouping import groupings
from fairtune.fairness.metrics import predict
from fairtune.fairness.validation import check_scores, check_threshold

Metric = Callable[..., float]


def metric_frames(
    y_true: ArrayLike,
    y_score: ArrayLike,
    groups: pd.DataFrame,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Return a fairlearn `MetricFrame` for each sensitive attribute.

    Parameters
    ----------
    y_true, y_score, groups, threshold
        As for `evaluate`.

    Returns
    -------
    dict
        Attribute to frame, in the order of the columns. Metrics: ``accuracy`` and ``count``; for two
        classes also ``selection_rate``, ``tpr`` and ``fpr``. Groups without rows are no rows of a
        frame; a group without positives (negatives) has NaN as its ``tpr`` (``fpr``).

    Raises
    ------
    InputError
        As `evaluate`.
    """
    labels, scores = check_scores(y_true, y_score)
    predicted = predict(scores, check_threshold(threshold, scores.shape[1]))
    metrics: dict[str, Metric] = {"accuracy": accuracy_score, "count": count}
    if scores.shape[1] == 2:
        metrics |= {"selection_rate": selection_rate, "tpr": _tpr, "fpr": _fpr}
    frames = {}
    for grouping in groupings(groups, labels.size):
        names = np.array(grouping.names, dtype=object)[grouping.codes]
        frames[grouping.attribute] = MetricFrame(
            metrics=metrics,
            y_true=labels,
            y_pred=predicted,
            sensitive_features=pd.Series(names, name=grouping.attribute),
        )
    return frames


def _tpr(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    return _rate(np.asarray(y_true) == 1, np.asarray(y_pred))


def _fpr(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    return _rate(np.asarray(y_true) == 0, np.asarray(y_pred))


def _rate(rows: NDArray[np.bool_], predicted: NDArray[np.intp]) -> float:
    return float((predicted[rows] == 1).mean()) if rows.any() else float("nan")
