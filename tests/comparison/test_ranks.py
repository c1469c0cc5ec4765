"""Ranks against the published example, and what they are taken within."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from comparison.conftest import comparison_of
from scipy import stats

from fairtune.comparison.figures import critical_difference
from fairtune.comparison.output import whole_seeds
from fairtune.comparison.ranks import rank, ranking
from fairtune.comparison.tables import say_ranks

# Four classifiers on fourteen data sets: Demšar (2006), table 6.
DEMSAR = pd.DataFrame(
    {
        "C4.5": "763 599 954 628 882 936 661 583 775 1000 940 619 972 957",
        "C4.5+m": "768 591 971 661 888 931 668 583 838 1000 962 666 981 978",
        "C4.5+cf": "771 590 968 654 886 916 609 563 866 1000 965 614 975.1 946",
        "C4.5+m+cf": "798 569 967 657 898 931 685 625 875 1000 962 669 975 970",
    },
    index=[0],
).apply(lambda column: pd.Series(column[0].split(), dtype=float))


def test_ranks_are_those_of_the_published_example() -> None:
    found = rank(DEMSAR, larger_is_better=True)
    assert found is not None
    assert found.n_blocks == 14
    published = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert found.ranks.to_dict() == pytest.approx(published, abs=6e-4)
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    theirs = stats.friedmanchisquare(*DEMSAR.to_numpy().T)
    assert (found.statistic, found.p_value) == pytest.approx(tuple(theirs))
    # Nemenyi: p is 0.05 where ranks differ by the critical difference, and falls from there.
    apart = found.ranks.to_numpy()[:, None] - found.ranks.to_numpy()
    significant = np.abs(apart) >= found.critical_difference
    assert np.array_equal(found.nemenyi.to_numpy() < 0.05, significant)


def test_ranks_know_their_direction_and_their_limits() -> None:
    gaps = pd.DataFrame({"a": [0.1, 0.2], "b": [0.3, 0.4], "c": [0.5, math.nan]})
    found = rank(gaps, larger_is_better=False)
    assert found is not None
    assert found.n_blocks == 1  # a block without all methods does not count
    assert found.ranks.to_dict() == {"a": 1, "b": 2, "c": 3}
    assert math.isnan(found.critical_difference)
    assert rank(gaps[["a"]], larger_is_better=True) is None
    assert rank(gaps.iloc[1:], larger_is_better=True) is None


def models_of(tasks: dict[str, list[list[float]]]) -> pd.DataFrame:
    """Worst-group AUROC of three methods and a choice among them, by task and seed."""
    names = ["full", "norms", "searched", "best_fixed"]
    return pd.DataFrame(
        {"task": task, "method": name, "seed": seed, "test/worst_group_auroc": value}
        for task, seeds in tasks.items()
        for seed, values in enumerate(seeds)
        for name, value in zip(names, values, strict=True)
    )


def test_tasks_are_blocks_and_their_seeds_are_none() -> None:
    """Ten seeds of a task are no ten data sets; the one seed of the other weighs as much."""
    comparison = comparison_of(["full", "norms", "best_fixed", "searched"])
    models = models_of(
        {
            "many": [[0.9, 0.8, 0.7, 0.9]] * 9 + [[0.0, 0.8, 0.79, 0.8]],
            "one": [[0.7, 0.8, 0.9, 0.8]],
        }
    )
    found = ranking(models, "worst_group_auroc", comparison)
    assert found is not None
    assert (found.block, found.n_blocks) == ("task", 2)
    # Means of the first task: 0.81, 0.80, 0.709. Over eleven blocks `full` would lead.
    assert found.ranks.to_dict() == {"full": 2, "norms": 2, "searched": 2}
    said = say_ranks(found, comparison)
    assert "over 2 tasks (means over their seeds), 1 is best" in said
    assert "Not ranked, as it is one of the others: best_fixed." in said
    alone = ranking(models[models["task"] == "many"], "worst_group_auroc", comparison)
    assert alone is not None
    assert (alone.block, alone.n_blocks) == ("seed", 10)
    assert alone.ranks.to_dict() == pytest.approx({"full": 1.2, "norms": 1.9, "searched": 2.9})
    assert "over 10 seeds of one task, 1 is best" in say_ranks(alone, comparison)
    assert "10 seeds of one task" in critical_difference(alone).caption


def test_only_whole_seeds_count_in_the_order_of_the_settings() -> None:
    comparison = comparison_of(["searched", "norms", "full", "best_fixed"])
    tasks = [comparison.tasks[0].model_copy(update={"name": name}) for name in ("z", "a")]
    comparison = comparison.model_copy(update={"tasks": tuple(tasks)})
    models = models_of({"a": [[0.1, 0.2, 0.3, 0.4]] * 2, "z": [[0.5, 0.6, 0.7, 0.8]]})
    one_lost = models.drop(index=5)
    assert tuple(one_lost.iloc[4:6]["seed"]) == (1, 1)  # `norms` has no model with seed 1
    found = whole_seeds(one_lost, comparison)
    assert list(found["task"]) == ["z"] * 4 + ["a"] * 4
    assert list(found["method"]) == ["searched", "norms", "full", "best_fixed"] * 2
    assert set(found["seed"]) == {0}


def test_a_choice_among_methods_is_not_ranked() -> None:
    """It would tie with the one it takes, push others down, and count as a method of its own."""
    comparison = comparison_of(["full", "norms", "best_fixed", "searched"])
    models = models_of({"t": [[0.7, 0.8, 0.75, 0.8], [0.7, 0.6, 0.75, 0.7]]})
    found = ranking(models, "worst_group_auroc", comparison)
    without = models[models["method"] != "best_fixed"]
    other = ranking(without, "worst_group_auroc", comparison)
    assert found is not None
    assert other is not None
    pd.testing.assert_series_equal(found.ranks, other.ranks)
    assert found.critical_difference == other.critical_difference  # k = 3
