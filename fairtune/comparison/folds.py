"""Cross-testing: predictions of the folds' test parts, on one scale, as the predictions of one model.

Scores of models that were trained on different folds are not on one scale. So the scores of a fold go
through one increasing map that is fitted on its validation part: the logit of the probability, minus
that of the fold's threshold, over the standard deviation of the validation logits. Within a fold the
order of images, hence AUROC, and the decisions stay what they are; across folds 0.5 is everyone's
threshold. With more than two classes the probabilities are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairtune.errors import InputError
from fairtune.fairness import FairnessReport, evaluate
from fairtune.tracking.predictions import PROBABILITY, groups_of, probabilities_of

TINY = 1e-12
CALIBRATION = ("ece", "brier", "log_loss", "worst_group_log_loss")
"""Figures that mean something on a model's own probabilities alone."""
POOLED_THRESHOLD = 0.5
"""Everyone's threshold on the common scale."""
FOLD_MEANS = ("auroc", "worst_group_auroc", "auroc_gap")


@dataclass(frozen=True, eq=False)
class FoldPredictions:
    """One fold's validation and test predictions (see `predictions_table`), and its threshold."""

    val: pd.DataFrame
    test: pd.DataFrame
    threshold: float | None


def pool(folds: Sequence[FoldPredictions]) -> pd.DataFrame:
    """Return the test predictions of all folds as one table, its scores on one scale.

    Raises
    ------
    InputError
        When an image is tested twice, or the folds have different columns.
    """
    columns = [list(fold.test.columns) for fold in folds]
    if any(names != columns[0] for names in columns):
        raise InputError("the folds' predictions have different columns; they are not of one task")
    pooled = pd.concat([_on_one_scale(fold) for fold in folds], ignore_index=True)
    twice = pooled["image"].duplicated()
    if twice.any():
        raise InputError(f"image {pooled['image'][twice].iloc[0]!r} is tested in two folds")
    return pooled


def _on_one_scale(fold: FoldPredictions) -> pd.DataFrame:
    if fold.threshold is None:
        return fold.test
    middle = float(_logit(np.array([fold.threshold]))[0])
    spread = float(_logit(probabilities_of(fold.val)[:, 1]).std())
    moved = (_logit(probabilities_of(fold.test)[:, 1]) - middle) / (spread or 1.0)
    positive = 1 / (1 + np.exp(-moved))
    return fold.test.assign(**{f"{PROBABILITY}0": 1 - positive, f"{PROBABILITY}1": positive})


def _logit(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(probability, TINY, 1 - TINY)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def report_of(table: pd.DataFrame, threshold: float | None = None) -> FairnessReport:
    """Judge a table of predictions."""
    return evaluate(
        table["label"].to_numpy(), probabilities_of(table), groups_of(table), threshold=threshold
    )


def pooled_metrics(folds: Sequence[FoldPredictions]) -> dict[str, float]:
    """Return the figures of the pooled test parts, by the names of `FairnessReport.to_dict`.

    Calibration is that of the models' own probabilities. ``<metric>_fold_mean`` is the mean of
    the folds' own figures, for those of `FOLD_MEANS`: it needs no common scale, but each fold's
    groups are small.
    """
    binary = folds[0].threshold is not None
    figures = report_of(pool(folds), POOLED_THRESHOLD if binary else None).to_dict()
    raw = report_of(pd.concat([fold.test for fold in folds], ignore_index=True)).to_dict()
    for name in figures:
        if name.partition("_by_")[0] in CALIBRATION:
            figures[name] = raw[name]
    own = [report_of(fold.test, fold.threshold).headline for fold in folds]
    for name in FOLD_MEANS:
        figures[f"{name}_fold_mean"] = float(np.mean([headline[name] for headline in own]))
    return figures
