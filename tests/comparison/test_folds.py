"""Pooling the folds' test parts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fairtune.comparison.folds import FoldPredictions, pool, pooled_metrics, report_of
from fairtune.errors import InputError


def table(seed: int, shift: float, scale: float, n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    logit = shift + scale * (2 * label - 1 + rng.normal(0, 1.2, n))
    score = 1 / (1 + np.exp(-logit))
    return pd.DataFrame(
        {
            "image": [f"{seed}-{i}" for i in range(n)],
            "patient": [f"{seed}-{i // 2}" for i in range(n)],
            "label": label,
            "probability_0": 1 - score,
            "probability_1": score,
            "site": np.where(rng.random(n) < 0.5, "a", "b"),
        }
    )


def fold(seed: int, shift: float, scale: float) -> FoldPredictions:
    threshold = 1 / (1 + np.exp(-shift))
    return FoldPredictions(table(seed + 100, shift, scale), table(seed, shift, scale), threshold)


FOLDS = [fold(0, 0.0, 1.0), fold(1, 2.5, 3.0), fold(2, -2.0, 0.3)]


def test_within_a_fold_nothing_changes() -> None:
    pooled = pool(FOLDS)
    for one in FOLDS:
        mine = pooled[pooled["image"].isin(one.test["image"])].reset_index(drop=True)
        before, after = report_of(one.test, one.threshold), report_of(mine, 0.5)
        assert after.headline["auroc"] == pytest.approx(before.headline["auroc"])
        assert after.headline["tpr"] == before.headline["tpr"]
        assert after.headline["fpr"] == before.headline["fpr"]


def test_models_on_different_scales_pool_as_one() -> None:
    own = [report_of(one.test).headline["auroc"] for one in FOLDS]
    raw = report_of(pd.concat([one.test for one in FOLDS], ignore_index=True)).headline["auroc"]
    pooled = pooled_metrics(FOLDS)
    assert raw < np.mean(own) - 0.05  # what pooling the probabilities as they are would say
    assert pooled["auroc"] == pytest.approx(np.mean(own), abs=0.01)
    assert pooled["auroc_fold_mean"] == pytest.approx(np.mean(own))
    assert pooled["n"] == 1200


def test_calibration_is_of_the_models_own_probabilities() -> None:
    raw = report_of(pd.concat([one.test for one in FOLDS], ignore_index=True))
    pooled = pooled_metrics(FOLDS)
    assert pooled["brier"] == raw.headline["brier"]
    assert pooled["ece_by_group/site.a"] == raw.to_dict()["ece_by_group/site.a"]
    assert pooled["auroc"] != raw.headline["auroc"]


def test_an_image_is_tested_once() -> None:
    with pytest.raises(InputError, match="image '0-0' is tested in two folds"):
        pool([FOLDS[0], FOLDS[0]])
    other = FoldPredictions(FOLDS[1].val, FOLDS[1].test.drop(columns="site"), 0.5)
    with pytest.raises(InputError, match="different columns"):
        pool([FOLDS[0], other])


def test_more_classes_are_pooled_as_they_are() -> None:
    three = [
        FoldPredictions(t, t.assign(probability_2=0.0), None)
        for t in (table(5, 0, 1), table(6, 0, 1))
    ]
    pooled = pool(three)
    assert np.array_equal(pooled["probability_1"][:400], three[0].test["probability_1"])
