"""Thresholds by group beside a comparison's models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fairtune.comparison.folds import FoldPredictions, report_of
from fairtune.comparison.thresholds import (
    BY_GROUP,
    DECIDED,
    ONE,
    REASON,
    judge,
    say_thresholds,
    threshold_rows,
)


def table(seed: int, n: int, shift: float = 0.0) -> pd.DataFrame:
    """Scores that separate classes equally well at two sites, but lie higher at one."""
    rng = np.random.default_rng(seed)
    label, site = rng.integers(0, 2, n), rng.integers(0, 2, n)
    logit = shift + 1.5 * label + 2.0 * site - 1.75 + rng.normal(0, 0.8, n)
    positive = 1 / (1 + np.exp(-logit))
    return pd.DataFrame(
        {
            "image": [f"{seed}-{i}.png" for i in range(n)],
            "patient": [f"{seed}-{i}" for i in range(n)],
            "label": label,
            "probability_0": 1 - positive,
            "probability_1": positive,
            "site": np.where(site == 1, "a", "b"),
        }
    )


def fold(seed: int, shift: float = 0.0) -> FoldPredictions:
    threshold = 1 / (1 + np.exp(-shift))
    return FoldPredictions(table(seed, 4000, shift), table(seed + 1, 4000, shift), threshold)


def test_one_threshold_is_that_of_the_model() -> None:
    one = fold(0)
    found, report = judge([one], seed=1), report_of(one.test, one.threshold).headline
    assert {name: found[f"{ONE}/{name}"] for name in DECIDED} == {n: report[n] for n in DECIDED}
    assert found[REASON] == ""


@pytest.mark.parametrize("folds", [[fold(0)], [fold(0), fold(10, shift=3.0)]], ids=["one", "two"])
def test_thresholds_by_group_even_out_decisions(folds: list[FoldPredictions]) -> None:
    found = judge(folds, seed=1)
    assert found == judge(folds, seed=1)  # lots have a seed
    odds = "equalized_odds_difference"
    assert found[f"{ONE}/{odds}"] > 0.5
    assert found[f"{BY_GROUP}/{odds}"] < 0.12
    assert found[f"{BY_GROUP}/accuracy"] > found[f"{ONE}/accuracy"]  # one threshold fits neither


def test_thresholds_see_no_label_of_test() -> None:
    one = fold(0)
    wrong = FoldPredictions(
        one.val, one.test.assign(label=1 - one.test["label"]), threshold=one.threshold
    )
    right, other = judge([one], seed=1), judge([wrong], seed=1)
    for way in (ONE, BY_GROUP):
        assert other[f"{way}/accuracy"] == pytest.approx(1 - right[f"{way}/accuracy"])
        dp = f"{way}/demographic_parity_difference"
        assert other[dp] == right[dp]  # the same decisions


def test_models_without_thresholds_are_left_out_and_said() -> None:
    one, three = fold(0), fold(10)
    few = FoldPredictions(three.val.assign(label=1), three.test, 0.5)
    rows = [
        {"task": "t", "method": "full", "seed": seed, **judge([found], seed)}
        for seed, found in enumerate([one, few])
    ]
    decided = pd.DataFrame(rows)
    (row,) = threshold_rows(decided).to_dict("records")
    assert row["n"] == 1
    assert row["accuracy"] == f"{rows[0]['one_threshold/accuracy']:.3f}"
    assert row["accuracy, by group"] == f"{rows[0]['by_group/accuracy']:.3f}"
    assert "Not of 1 models: group 'a' has one class only" in say_thresholds(decided)


def test_more_than_two_classes_have_no_thresholds() -> None:
    three = [t.assign(probability_2=0.0) for t in (table(0, 300), table(1, 300))]
    found = judge([FoldPredictions(*three, threshold=None)], seed=1)
    assert found[f"{ONE}/accuracy"] > 0.5
    assert np.isnan(found[f"{BY_GROUP}/accuracy"])
    assert "for two classes" in str(found[REASON])
