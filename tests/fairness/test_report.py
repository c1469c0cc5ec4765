"""What a report says under which names, and its way to JSON and back."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from mlflow.utils.validation import _validate_metric_name

from fairtune.errors import InputError
from fairtune.fairness import FairnessReport, evaluate, fairness_generalization_gap, slug


def same(a: dict[str, float], b: dict[str, float]) -> bool:
    return a.keys() == b.keys() and all(
        a[key] == b[key] or (math.isnan(a[key]) and math.isnan(b[key])) for key in a
    )


@pytest.fixture
def report(sample) -> FairnessReport:
    data = sample(2)
    levels = pd.CategoricalDtype(["<=60", ">60", "80+", "none"])
    return evaluate(data.y, data.score, data.groups.astype({"age": levels}))


HEADLINE = [
    "auroc", "worst_group_auroc", "auroc_gap", "accuracy", "balanced_accuracy",
    "demographic_parity_difference", "demographic_parity_ratio", "equalized_odds_difference",
    "equalized_odds_ratio", "equal_opportunity_difference", "es_auroc", "ece", "brier", "log_loss",
    "worst_group_accuracy", "accuracy_gap", "worst_group_log_loss",
]  # fmt: skip


def test_flat_names(report):
    flat = report.to_dict()
    assert set(HEADLINE) <= set(flat)
    assert all(isinstance(value, float) for value in flat.values())
    for key in (
        "n",
        "n_positive",
        "n_by_group/sex.female",
        "n_positive_by_group/age.80_plus",
        "auroc_by_group/age.le_60",
        "tpr_by_group/age.gt_60",
        "auroc_gap_by_attribute/sex",
        "worst_group_auroc_by_attribute/age",
    ):
        assert key in flat
    assert flat["n_by_group/age.none"] == 0
    assert math.isnan(flat["auroc_by_group/age.none"])
    assert flat["n"] == flat["n_by_group/sex.female"] + flat["n_by_group/sex.male"]


def test_mlflow_accepts_every_name(report):
    for key in report.to_dict():
        _validate_metric_name(f"val/{key}")


def test_more_classes_are_counted_one_by_one(sample):
    data = sample(0, n_classes=3)
    flat = evaluate(data.y, data.score, data.groups).to_dict()
    female = (data.groups["sex"] == "female").to_numpy()
    assert flat["n_class_2_by_group/sex.female"] == (data.y[female] == 2).sum()
    assert "n_positive" not in flat
    assert "tpr_by_group/sex.female" not in flat


def test_table_has_a_row_per_group(report):
    table = report.table()
    assert list(table.columns[:4]) == ["attribute", "group", "n", "n_positive"]
    assert list(table["group"]) == ["overall", "female", "male", "<=60", ">60", "80+", "none"]
    row = table[(table["attribute"] == "age") & (table["group"] == ">60")].iloc[0]
    assert row["auroc"] == report.groups["age"][">60"].values["auroc"]
    assert table["n"].dtype.kind == "i"


def test_table_of_more_classes_has_rates_per_class(sample):
    data = sample(0, n_classes=3)
    table = evaluate(data.y, data.score, data.groups).table()
    chosen = data.score.argmax(axis=1)
    assert table.loc[0, "selection_rate_class_2"] == pytest.approx((chosen == 2).mean())


def test_json_round_trip_is_strict_and_exact(report):
    text = report.to_json()

    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads(text, parse_constant=refuse)
    assert document["groups"]["age"]["none"]["values"]["auroc"] is None
    assert document["headline"]["auroc_gap"] == report.headline["auroc_gap"]
    back = FairnessReport.from_json(text)
    assert same(back.to_dict(), report.to_dict())
    assert back.undefined == report.undefined
    assert back.threshold == report.threshold
    assert back.to_json() == text


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 1}', '{"format": 9}', '{"a": NaN}'])
def test_other_json_is_refused(text):
    with pytest.raises(InputError):
        FairnessReport.from_json(text)


def test_generalization_gap_is_the_gap_that_training_data_do_not_show(sample):
    train, other = (
        evaluate(data.y, data.score, data.groups) for data in (sample(4, n=2000), sample(5, n=2000))
    )
    expected = other.headline["auroc_gap"] - train.headline["auroc_gap"]
    assert fairness_generalization_gap(train, other) == expected
    assert fairness_generalization_gap(other, train) == -expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("<=60", "le_60"),
        (">60", "gt_60"),
        ("<60", "lt_60"),
        (">=60", "ge_60"),
        ("80+", "80_plus"),
        ("age_group*sex", "age_group_x_sex"),
        ("<=60*female", "le_60_x_female"),
        ("I-II", "I-II"),
        ("(20, 40]", "20_40"),
        ("black & white", "black_and_white"),
        ("a=b", "a_eq_b"),
        ("0.5", "0_5"),
        ("../x", "x"),
        ("männlich", "männlich"),
    ],
)
def test_slug(name, expected):
    assert slug(name) == expected
    _validate_metric_name(f"val/auroc_by_group/a.{expected}")
    assert slug(expected) == expected


def test_every_undefined_figure_of_a_group_is_named(sample):
    rng = np.random.default_rng(0)
    for seed in range(10):
        data = sample(seed, n=40)
        groups = data.groups.assign(tiny=rng.integers(0, 15, 40))
        report = evaluate(data.y, data.score, groups)
        named = {(e.attribute, e.group, e.metric) for e in report.undefined if e.group}
        found = {
            (attribute, group, metric)
            for attribute, cells in report.groups.items()
            for group, cell in cells.items()
            for metric, value in cell.flat().items()
            if math.isnan(value)
        }
        assert named == found
