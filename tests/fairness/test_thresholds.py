"""Thresholds against a search over every cut, with ties, and their stability."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from fairtune.errors import InputError
from fairtune.fairness import THRESHOLD_RULES, fit_threshold


def two_columns(p):
    return np.stack([1 - np.asarray(p), p], axis=1)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("rule", "merit"),
    [
        ("youden", balanced_accuracy_score),
        ("balanced_accuracy", balanced_accuracy_score),
        ("f1", f1_score),
    ],
)
def test_no_other_cut_is_better(seed, rule, merit):
    rng = np.random.default_rng(seed)
    y = np.r_[0, 1, rng.integers(0, 2, 60)]
    p = np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1).round(2)
    threshold = fit_threshold(y, two_columns(p), rule)
    reached = merit(y, (p >= threshold).astype(int))
    cuts = [-1.0, *np.unique(p)]
    assert reached == pytest.approx(max(merit(y, (p > cut).astype(int)) for cut in cuts))


def test_threshold_lies_half_way_between_separable_classes():
    assert fit_threshold([0, 0, 1, 1], two_columns([0.1, 0.2, 0.4, 0.9])) == pytest.approx(0.3)


def test_ties_go_to_the_cut_nearest_one_half_whatever_the_order():
    y, p = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.6, 0.7])  # 0.15 is as good as 0.65
    expected = fit_threshold(y, two_columns(p))
    assert expected == pytest.approx(0.65)
    for order in ([3, 1, 0, 2], [2, 3, 1, 0]):
        assert fit_threshold(y[order], two_columns(p[order])) == expected


@pytest.mark.parametrize("low", [0.3, np.nextafter(0.3, 1)])  # their middle rounds up, or down
def test_neighbouring_floats_are_still_told_apart(low):
    high = np.nextafter(low, 1)
    threshold = fit_threshold([0, 1], two_columns(np.array([low, high])))
    assert low < threshold <= high


def test_fixed_needs_no_labels_of_both_classes():
    assert fit_threshold([0, 0], two_columns([0.1, 0.2]), "fixed") == 0.5
    assert fit_threshold([0, 0], two_columns([0.1, 0.2]), "fixed", value=0.2) == 0.2
    with pytest.raises(InputError, match="threshold 2"):
        fit_threshold([0, 0], two_columns([0.1, 0.2]), "fixed", value=2)


@pytest.mark.parametrize("rule", THRESHOLD_RULES)
def test_more_classes_have_no_threshold(rule):
    assert fit_threshold([0, 1, 2], np.full((3, 3), 1 / 3), rule) is None


def test_one_class_is_refused_with_counts():
    with pytest.raises(InputError, match="3 positive and 0 negative"):
        fit_threshold([1, 1, 1], two_columns([0.1, 0.2, 0.3]))


def test_unknown_rule():
    with pytest.raises(InputError, match="did you mean 'youden'"):
        fit_threshold([0, 1], two_columns([0.1, 0.2]), "yoden")
