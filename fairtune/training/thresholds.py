"""Thresholds by group, with fairlearn: a reference to compare with, never a model to serve."""

from __future__ import annotations

import numpy as np
import pandas as pd
from fairlearn.postprocessing import ThresholdOptimizer
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from fairtune.errors import InputError
from fairtune.fairness.grouping import groupings

CONSTRAINTS = ("demographic_parity", "equalized_odds", "true_positive_rate_parity")


class _Scores(BaseEstimator):  # type: ignore[misc]
    """Gives back the scores that it is asked about: the model has spoken already."""

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, scores: NDArray[np.float64], labels: NDArray[np.int64]) -> _Scores:
        return self

    def predict(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(scores, dtype=np.float64).reshape(-1)


def decide_by_group(
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    groups: pd.DataFrame,
    new_scores: NDArray[np.float64],
    new_groups: pd.DataFrame,
    *,
    constraint: str = "equalized_odds",
    objective: str = "balanced_accuracy_score",
    seed: int = 0,
) -> NDArray[np.int64]:
    """Decide with thresholds that differ by group, fitted on one split and used on another.

    This is what can be had by looking at the group of everyone who is judged, and by drawing lots
    between two thresholds: a bound to hold a model against. It is no candidate for service, as the
    group must be known for each image, and the same image may be answered differently.

    Parameters
    ----------
    labels, scores, groups
        (n,) classes 0 and 1; (n, 2) class probabilities; a column per attribute, n rows: of the
        validation split. Groups are the cross of the attributes.
    new_scores, new_groups
        (m, 2) and m rows: of the split to decide on.
    constraint
        ``demographic_parity``, ``equalized_odds`` or ``true_positive_rate_parity``.
    objective
        What fairlearn maximises under it; ``balanced_accuracy_score`` or ``accuracy_score``.
    seed
        Of the lots.

    Returns
    -------
    (m,) int64
        0 or 1.

    Raises
    ------
    InputError
        More than two classes, a group without both classes in `labels`, a group of `new_groups`
        that `groups` lacks, an unknown constraint or objective.

    References
    ----------
    Hardt, Price, Srebro (2016), "Equality of Opportunity in Supervised Learning", NeurIPS,
    arXiv:1610.02413; fairlearn's `ThresholdOptimizer`.
    """
    if scores.shape[1] != 2 or new_scores.shape[1] != 2:
        raise InputError(
            f"thresholds by group are for two classes, the scores have {scores.shape[1]}"
        )
    if constraint not in CONSTRAINTS:
        raise InputError(f"unknown constraint {constraint!r} (known: {', '.join(CONSTRAINTS)})")
    names, new_names = _names(groups), _names(new_groups)
    for group in sorted(set(names)):
        if len(np.unique(labels[names == group])) < 2:
            raise InputError(
                f"group {group!r} has one class only where thresholds are fitted: "
                "join it with another group, or leave the attribute out"
            )
    if unknown := sorted(set(new_names) - set(names)):
        raise InputError(f"no threshold was fitted for group {unknown[0]!r}")
    optimizer = ThresholdOptimizer(
        estimator=_Scores(),
        constraints=constraint,
        objective=objective,
        prefit=True,
        predict_method="predict",
    )
    try:
        optimizer.fit(scores[:, 1:], labels, sensitive_features=names)
    except ValueError as error:
        raise InputError(f"thresholds by group: {str(error).splitlines()[0]}") from None
    decisions = optimizer.predict(
        new_scores[:, 1:], sensitive_features=new_names, random_state=seed
    )
    return np.asarray(decisions, dtype=np.int64)


def _names(groups: pd.DataFrame) -> NDArray[np.object_]:
    """Return (n,) the name of each row's group: the values of all attributes, joined."""
    columns = [np.array(part.names)[part.codes] for part in groupings(groups, len(groups))]
    return np.array(["*".join(values) for values in zip(*columns, strict=True)], dtype=object)
