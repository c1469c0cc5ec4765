"""`evaluate` equals scikit-learn and fairlearn called directly, where those are defined."""

from __future__ import annotations

import time

import fairlearn.metrics as fl
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from fairtune.errors import InputError
from fairtune.fairness import evaluate, with_intersections


def sklearn_values(y, score, predicted):
    binary = score.shape[1] == 2
    column = score[:, 1] if binary else score
    classes = range(score.shape[1])
    return {
        "auroc": sk.roc_auc_score(y, column, multi_class="ovr", average="macro"),
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "brier": sk.brier_score_loss(y, column, labels=classes),
        "log_loss": sk.log_loss(y, score, labels=classes),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_classes", [2, 4])
def test_values_equal_scikit_learn_overall_and_per_group(sample, seed, n_classes):
    data = sample(seed, n_classes=n_classes)
    report = evaluate(data.y, data.score, data.groups)
    predicted = data.score.argmax(axis=1)
    if n_classes == 2:  # a score of exactly one half is positive
        predicted = (data.score[:, 1] >= 0.5).astype(int)
    cells = [(report.overall, np.ones(len(data.y), bool))]
    for attribute, groups in report.groups.items():
        cells += [
            (cell, (data.groups[attribute] == name).to_numpy()) for name, cell in groups.items()
        ]
    assert len(cells) == 6
    for cell, rows in cells:
        assert cell.n == rows.sum()
        assert cell.n_by_class == tuple(np.bincount(data.y[rows], minlength=n_classes))
        if 0 in cell.n_by_class:
            continue
        expected = sklearn_values(data.y[rows], data.score[rows], predicted[rows])
        assert {name: cell.values[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [None, 0.3, 0.8])
def test_binary_comparisons_equal_fairlearn(sample, seed, threshold):
    data = sample(seed, n=2000)
    report = evaluate(data.y, data.score, data.groups, threshold=threshold)
    cut = 0.5 if threshold is None else threshold
    predicted = (data.score[:, 1] >= cut).astype(int)
    for attribute in ("sex", "age"):
        given = {
            "y_true": data.y,
            "y_pred": predicted,
            "sensitive_features": data.groups[attribute],
        }
        names = {
            "selection_rate": fl.selection_rate,
            "tpr": fl.true_positive_rate,
            "fpr": fl.false_positive_rate,
            "accuracy": sk.accuracy_score,
        }
        frame = fl.MetricFrame(metrics=names, **given)
        scores = fl.MetricFrame(
            metrics={"auroc": sk.roc_auc_score, "log_loss": sk.log_loss},
            y_true=data.y,
            y_pred=data.score[:, 1],
            sensitive_features=data.groups[attribute],
        )
        expected = {
            "demographic_parity_difference": fl.demographic_parity_difference(**given),
            "demographic_parity_ratio": fl.demographic_parity_ratio(**given),
            "equalized_odds_difference": fl.equalized_odds_difference(**given),
            "equalized_odds_ratio": fl.equalized_odds_ratio(**given),
            "equal_opportunity_difference": fl.equal_opportunity_difference(**given),
            "worst_group_auroc": scores.group_min()["auroc"],
            "auroc_gap": scores.difference()["auroc"],
            "worst_group_log_loss": scores.group_max()["log_loss"],
            "worst_group_accuracy": frame.group_min()["accuracy"],
            "accuracy_gap": frame.difference()["accuracy"],
        }
        overall = scores.overall["auroc"]
        spread = (scores.by_group["auroc"] - overall).abs().sum()
        expected["es_auroc"] = overall / (1 + spread)
        assert report.by_attribute[attribute] == pytest.approx(expected, abs=1e-12)
        for group, cell in report.groups[attribute].items():
            expected = frame.by_group.loc[group].to_dict()
            assert {name: cell.flat()[name] for name in names} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_comparisons_over_more_classes_are_the_worst_of_one_vs_rest(sample, seed):
    data = sample(seed, n=3000, n_classes=4)
    predicted = data.score.argmax(axis=1)
    found = evaluate(data.y, data.score, data.groups).by_attribute["age"]
    each = [
        {"y_true": data.y == k, "y_pred": predicted == k, "sensitive_features": data.groups["age"]}
        for k in range(4)
    ]
    for name, worst in {
        "demographic_parity_difference": max,
        "demographic_parity_ratio": min,
        "equalized_odds_difference": max,
        "equalized_odds_ratio": min,
        "equal_opportunity_difference": max,
    }.items():
        expected = worst(getattr(fl, name)(**given) for given in each)
        assert found[name] == pytest.approx(expected, abs=1e-12), name


def test_expected_calibration_error_by_hand():
    score = np.array([0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
    y = np.array([1, 1, 1, 0, 0, 1])
    report = evaluate(y, np.stack([1 - score, score], 1), pd.DataFrame({"a": ["x"] * 6}))
    # bin of 0.9: |0.75 - 0.9| on 4 of 6 rows; bin of 0.1: |0.5 - 0.1| on 2 of 6
    assert report.overall.values["ece"] == pytest.approx((4 * 0.15 + 2 * 0.4) / 6)


def test_expected_calibration_error_has_fifteen_bins_closed_above(sample):
    data = sample(0)
    p, y = data.score[:, 1], data.y
    expected = 0.0
    for upper in range(1, 16):
        rows = (p > (upper - 1) / 15) & (p <= upper / 15)
        if rows.any():
            expected += rows.mean() * abs(y[rows].mean() - p[rows].mean())
    found = evaluate(y, data.score, data.groups).overall.values["ece"]
    assert found == pytest.approx(expected, abs=1e-12)


def test_expected_calibration_error_of_more_classes_uses_the_chosen_class():
    score = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    report = evaluate([0, 1, 2, 1], score, pd.DataFrame({"a": list("xyxy")}))
    assert report.overall.values["ece"] == pytest.approx(0.05)


def test_a_score_on_the_threshold_is_positive():
    score = np.array([[0.5, 0.5], [0.7, 0.3]])
    report = evaluate([1, 0], score, pd.DataFrame({"a": ["x", "x"]}))
    assert report.overall.rates["selection_rate"] == (0.5,)


def test_group_without_negatives_makes_no_false_equalized_odds_difference():
    rng = np.random.default_rng(0)
    y = np.r_[rng.integers(0, 2, 200), np.ones(5, int)]
    p = np.clip(0.3 * y + rng.random(205) * 0.7, 0, 1)
    groups = pd.DataFrame({"site": ["a"] * 100 + ["b"] * 100 + ["only_positive"] * 5})
    score = np.stack([1 - p, p], axis=1)
    whole, rest = evaluate(y, score, groups), evaluate(y[:200], score[:200], groups[:200])
    for name in ("equalized_odds_difference", "equalized_odds_ratio", "auroc_gap"):
        assert whole.headline[name] == rest.headline[name]
    cell = whole.groups["site"]["only_positive"]
    assert np.isnan(cell.rates["fpr"]).all()
    assert np.isnan([cell.values["auroc"], cell.values["balanced_accuracy"]]).all()
    assert cell.rates["tpr"][0] == pytest.approx((p[200:] >= 0.5).mean())
    named = {(entry.metric, entry.group): entry for entry in whole.undefined}
    assert set(named) == {
        (metric, "only_positive") for metric in ("auroc", "balanced_accuracy", "fpr")
    }
    entry = named["fpr", "only_positive"]
    assert (entry.attribute, entry.n, entry.n_positive) == ("site", 5, 5)
    assert entry.reason == "no row of class 0"


def test_levels_without_rows_are_groups_of_size_zero(sample):
    data = sample(0)
    levels = pd.CategoricalDtype(["male", "other", "female"])
    groups = data.groups.assign(sex=data.groups["sex"].astype(levels))
    report = evaluate(data.y, data.score, groups)
    assert list(report.groups["sex"]) == ["male", "other", "female"]
    empty = report.groups["sex"]["other"]
    assert empty.n == 0
    assert np.isnan(list(empty.flat().values())).all()
    plain = evaluate(data.y, data.score, data.groups)
    assert report.headline == plain.headline
    missing = [entry for entry in report.undefined if entry.group == "other"]
    assert {entry.metric for entry in missing} == set(empty.flat())
    assert {entry.reason for entry in missing} == {"no row"}


def test_headline_is_the_worst_over_attributes(sample):
    data = sample(3, n=3000)
    report = evaluate(data.y, data.score, data.groups)
    each = report.by_attribute
    smallest, largest = ("worst_group_auroc", "es_auroc"), ("auroc_gap", "worst_group_log_loss")
    for name in smallest:
        assert report.headline[name] == min(each["sex"][name], each["age"][name])
    for name in largest:
        assert report.headline[name] == max(each["sex"][name], each["age"][name])


def test_one_group_has_no_gap_and_says_so():
    score = np.array([[0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    report = evaluate([1, 0, 1], score, pd.DataFrame({"a": ["x", "x", "x"]}))
    assert np.isnan(report.headline["auroc_gap"])
    assert report.headline["worst_group_auroc"] == 1.0
    assert "auroc_gap" in {entry.metric for entry in report.undefined if entry.attribute == "a"}


def test_without_attributes_only_the_overall_figures_are_defined(sample):
    data = sample(0)
    report = evaluate(data.y, data.score, data.groups[[]])
    assert report.headline["auroc"] == evaluate(data.y, data.score, data.groups).headline["auroc"]
    assert np.isnan(report.headline["worst_group_auroc"])
    assert {entry.reason for entry in report.undefined} == {"no sensitive attribute"}


def test_a_rate_of_zero_everywhere_is_left_out_of_the_ratio_by_name():
    score = np.tile([0.9, 0.1], (8, 1))
    report = evaluate([0, 1] * 4, score, pd.DataFrame({"a": ["x"] * 4 + ["y"] * 4}))
    assert report.headline["demographic_parity_difference"] == 0
    assert np.isnan(report.headline["demographic_parity_ratio"])
    reasons = {e.reason for e in report.undefined if e.metric == "demographic_parity_ratio"}
    assert "the selection_rate is 0 in every group and has no ratio" in reasons


def test_intersections_are_columns_in_the_order_of_their_attributes(sample):
    data = sample(1)
    groups = with_intersections(data.groups, ["age*sex"])
    assert list(groups) == ["sex", "age", "age*sex"]
    report = evaluate(data.y, data.score, groups)
    assert list(report.groups["age*sex"])[:2] == ["80+*female", "80+*male"]
    rows = (data.groups["age"] == ">60") & (data.groups["sex"] == "male")
    assert report.groups["age*sex"][">60*male"].n == rows.sum()
    assert "auroc_by_group/age_x_sex.gt_60_x_male" in report.to_dict()


@pytest.mark.parametrize("spec", ["sex", "sex*sex", "sex*height"])
def test_impossible_intersections_are_refused(sample, spec):
    with pytest.raises(InputError, match=f"'{spec.replace('*', '[*]')}'"):
        with_intersections(sample(0).groups, [spec])


def test_group_values_of_any_type_are_named(sample):
    data = sample(0, n=6)
    groups = pd.DataFrame(
        {
            "flag": [True, False] * 3,
            "type": pd.array([10, 9, 2] * 2),
            "mixed": np.array([1, "a", 2.5] * 2, dtype=object),
        }
    )
    report = evaluate(data.y, data.score, groups)
    assert list(report.groups["flag"]) == ["False", "True"]
    assert list(report.groups["type"]) == ["2", "9", "10"]
    assert list(report.groups["mixed"]) == ["1", "2.5", "a"]


def broken(**changes):
    y = np.array([0, 1, 1])
    score = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    groups = pd.DataFrame({"sex": ["f", "m", "f"]})
    return {"y_true": y, "y_score": score, "groups": groups} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_true": [0, 1]}, r"for 2 labels, not \(3, 2\)"),
        ({"y_true": [[0], [1], [1]]}, r"\(3, 1\)"),
        ({"y_true": [0, 1, 2]}, "label 2 in row 2 has no score: there are 2 classes"),
        ({"y_true": [0, -1, 1]}, "label -1 in row 1"),
        ({"y_true": [0, 1, float("nan")]}, "label nan in row 2"),
        ({"y_true": ["a", "b", "c"]}, "class numbers"),
        ({"y_score": [0.1, 0.8, 0.5]}, r"shape \(N, C\)"),
        ({"y_score": np.full((3, 2), np.nan)}, "score nan in row 0, class 0"),
        ({"y_score": [[0.9, 0.1], [-3.0, 4.0], [0, 1]]}, "score -3.0 in row 1.*softmax"),
        ({"y_score": [[0.9, 0.1], [0.9, 0.8], [0, 1]]}, "row 1 sum to 1.7"),
        ({"groups": pd.DataFrame({"sex": ["f", "m"]})}, "2 rows for 3 labels"),
        ({"groups": {"sex": ["f", "m", "f"]}}, "DataFrame"),
        (
            {"groups": pd.DataFrame({"sex": ["f", None, "f"]})},
            "'sex' has no value in 1 of 3.*row 1",
        ),
        ({"groups": pd.DataFrame({"age": ["a b", "a_b", "a b"]})}, "'a b' and 'a_b'.*'a_b'"),
        ({"groups": pd.DataFrame({"a b": [1, 1, 1], "a_b": [1, 1, 1]})}, "'a b' and 'a_b'"),
        ({"groups": pd.DataFrame({"a": ["?", "x", "x"]})}, "no letter or digit"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"threshold": float("nan")}, "threshold nan"),
        ({"y_score": np.full((3, 4), 0.25), "threshold": 0.5}, "there are 4"),
        ({"y_true": [], "y_score": np.empty((0, 2)), "groups": pd.DataFrame()}, "N > 0"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        evaluate(**broken(**changes))


def test_half_precision_probabilities_are_accepted(sample):
    data = sample(0)
    rounded = data.score.astype(np.float16)
    report = evaluate(data.y.astype(np.uint8), rounded, data.groups)
    exact = evaluate(data.y, data.score, data.groups)
    assert report.headline["accuracy"] == pytest.approx(exact.headline["accuracy"], abs=0.02)


def test_ten_thousand_rows_take_well_under_a_tenth_of_a_second(sample):
    data = sample(0, n=10_000)
    groups = data.groups.assign(site=data.groups["sex"] + data.groups["age"])
    times = []
    for _ in range(5):
        start = time.process_time()
        evaluate(data.y, data.score, groups).to_dict()
        times.append(time.process_time() - start)
    assert min(times) < 0.1
