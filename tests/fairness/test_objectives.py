"""Objectives: names, direction, the one flip of the sign, and when they refuse."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fairtune.errors import InputError
from fairtune.fairness import (
    OBJECTIVES,
    UndefinedObjectiveError,
    check_groups,
    evaluate,
    get_objective,
)


@pytest.mark.parametrize(
    ("alias", "name", "direction"),
    [
        ("min_auc", "worst_group_auroc", "maximize"),
        ("min_acc", "worst_group_accuracy", "maximize"),
        ("acc_diff", "accuracy_gap", "minimize"),
        ("auc_diff", "auroc_gap", "minimize"),
        ("max_loss", "worst_group_log_loss", "minimize"),
        ("overall_acc", "accuracy", "maximize"),
        ("overall_auc", "auroc", "maximize"),
        ("equalized_odds_difference", "equalized_odds_difference", "minimize"),
        ("es_auroc", "es_auroc", "maximize"),
    ],
)
def test_published_names_are_aliases(alias, name, direction):
    objective = get_objective(alias)
    assert objective is get_objective(name)
    assert (objective.name, objective.direction) == (name, direction)


def test_every_objective_reads_its_figure(sample):
    data = sample(0, n=2000)
    report = evaluate(data.y, data.score, data.groups)
    flat = report.to_dict()
    for name in OBJECTIVES:
        objective = get_objective(name)
        assert objective.value(report) == flat[objective.name]
        check_groups(data.y, data.groups, objective)


def test_unknown_objective_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'worst_group_auroc'"):
        get_objective("worst_group_auc")


def test_loss_falls_where_the_value_improves():
    up, down = get_objective("worst_group_auroc"), get_objective("auroc_gap")
    assert up.loss(0.9) < up.loss(0.8)
    assert down.loss(0.1) < down.loss(0.2)
    assert up.better(0.9, 0.8)
    assert not up.better(0.8, 0.8)
    assert down.better(0.1, 0.2)
    assert not down.better(0.2, 0.1)


def test_nan_is_never_better():
    for name in ("worst_group_auroc", "auroc_gap"):
        objective = get_objective(name)
        assert objective.better(0.5, math.nan)
        assert not objective.better(math.nan, 0.5)
        assert not objective.better(math.nan, math.nan)


def one_class_split():
    y = np.array([0, 1, 0, 1, 0, 1, 0, 0, 0])
    p = np.linspace(0.1, 0.9, 9)
    groups = pd.DataFrame({"site": list("aabbaaccc")})
    return y, np.stack([1 - p, p], axis=1), groups


@pytest.mark.parametrize("name", ["worst_group_auroc", "auroc_gap", "es_auroc"])
def test_one_class_group_refuses_with_name_counts_and_advice(name):
    y, score, groups = one_class_split()
    objective = get_objective(name)
    message = r"group 'c' of 'site' \(3 rows, 0 positive\): no row of class 1\. What to do: merge"
    with pytest.raises(UndefinedObjectiveError, match=message):
        objective.value(evaluate(y, score, groups))
    with pytest.raises(UndefinedObjectiveError, match=message):
        check_groups(y, groups, objective)


def test_objectives_that_do_not_need_both_classes_go_on():
    y, score, groups = one_class_split()
    report = evaluate(y, score, groups)
    for name in ("worst_group_accuracy", "accuracy_gap", "worst_group_log_loss", "auroc"):
        objective = get_objective(name)
        check_groups(y, groups, objective)
        assert objective.value(report) == report.headline[name]
    with pytest.raises(UndefinedObjectiveError, match="no row of class 1"):
        get_objective("equalized_odds_difference").value(report)


def test_a_level_without_rows_refuses():
    y, score, groups = one_class_split()
    groups = groups.astype(pd.CategoricalDtype(list("abcd")))
    objective = get_objective("min_acc")
    for refuse in (
        lambda: objective.value(evaluate(y, score, groups)),
        lambda: check_groups(y, groups, objective),
    ):
        with pytest.raises(UndefinedObjectiveError, match=r"'d' of 'site' \(0 rows.*without rows"):
            refuse()


def test_gap_needs_two_groups_but_worst_group_does_not():
    y, score, groups = one_class_split()
    groups = groups.assign(site="all")
    report = evaluate(y, score, groups)
    check_groups(y, groups, get_objective("min_auc"))
    assert get_objective("min_auc").value(report) == report.headline["auroc"]
    with pytest.raises(UndefinedObjectiveError, match=r"attribute 'site'.*only one group"):
        check_groups(y, groups, get_objective("auc_diff"))
    with pytest.raises(UndefinedObjectiveError, match="attribute 'site'"):
        get_objective("auc_diff").value(report)


def test_group_objective_without_attributes_refuses():
    y, score, groups = one_class_split()
    with pytest.raises(UndefinedObjectiveError, match="no sensitive attribute"):
        check_groups(y, groups[[]], get_objective("min_auc"))
    with pytest.raises(UndefinedObjectiveError, match="no sensitive attribute"):
        get_objective("min_auc").value(evaluate(y, score, groups[[]]))
    check_groups(y, groups[[]], get_objective("auroc"))


def test_overall_objective_needs_every_class():
    groups = pd.DataFrame({"a": list("xyxy")})
    with pytest.raises(UndefinedObjectiveError, match=r"all rows .4 rows.*no row of class 2"):
        check_groups([0, 1, 0, 1], groups, get_objective("auroc"), n_classes=3)


def test_more_classes_name_what_is_lacking(sample):
    data = sample(0, n=300, n_classes=3)
    y = data.y.copy()
    y[(data.groups["age"] == ">60") & (y == 2)] = 1
    with pytest.raises(UndefinedObjectiveError, match=r"'>60' of 'age' .* no row of class 2"):
        check_groups(y, data.groups, get_objective("min_auc"), n_classes=3)


def test_an_attribute_that_was_never_binned_does_not_fill_the_screen():
    groups = pd.DataFrame({"age": np.arange(500)})
    with pytest.raises(UndefinedObjectiveError, match="and 495 more") as caught:
        check_groups(np.arange(500) % 2, groups, get_objective("min_auc"))
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("seed", range(20))
def test_check_before_training_and_reading_after_agree(sample, seed):
    data = sample(seed, n=40)
    report = evaluate(data.y, data.score, data.groups)

    def refuses(action) -> bool:
        try:
            action()
        except UndefinedObjectiveError:
            return True
        return False

    for name in OBJECTIVES:
        objective = get_objective(name)
        assert refuses(lambda: check_groups(data.y, data.groups, objective)) == refuses(  # noqa: B023
            lambda: objective.value(report)  # noqa: B023
        )
