"""Pruning rules against slow references that follow their definitions word by word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairtune.fairness import get_objective
from fairtune.search.pruning import Median, Pruner, SuccessiveHalving, make_pruner
from fairtune.search.settings import PruningSettings

# Few different values, so that ties are common.
VALUES = st.one_of(st.sampled_from([0.0, 0.5, 0.5, 0.7, 1.0, -1.0]), st.just(math.nan))
MANY = st.lists(VALUES, max_size=14)


def _better(a: float, b: float) -> bool:
    return not math.isnan(a) and (math.isnan(b) or a > b)


def slow_halving(value: float, others: Sequence[float], reduction: int, least: int) -> bool:
    """Sort all trials at the rung, this one before its equals; keep the first 1/reduction."""
    if math.isnan(value):
        return False
    if len(others) + 1 < least:
        return True
    ranked = [value]
    for other in others:
        place = 0
        while place < len(ranked) and not _better(other, ranked[place]):
            place += 1
        ranked.insert(place, other)
    position = next(i for i, v in enumerate(ranked) if v == value)
    return position < max(1, math.floor(Fraction(len(ranked), reduction)))


def slow_median(value: float, others: Sequence[float], least: int) -> bool:
    """Not strictly worse than the lower median of the others, NaN being the worst."""
    if math.isnan(value):
        return False
    if len(others) + 1 < least or not others:
        return True
    as_numbers = [-math.inf if math.isnan(v) else v for v in others]
    return sum(v > value for v in as_numbers) <= len(others) // 2


@given(VALUES, MANY, st.integers(2, 5), st.integers(1, 6))
def test_halving_is_its_definition(
    value: float, others: list[float], reduction: int, least: int
) -> None:
    rule = SuccessiveHalving(reduction, least)
    assert rule.goes_on(value, others) == slow_halving(value, others, reduction, least)


@given(VALUES, MANY, st.integers(1, 6))
def test_median_is_its_definition(value: float, others: list[float], least: int) -> None:
    assert Median(least).goes_on(value, others) == slow_median(value, others, least)


RULES = st.sampled_from([SuccessiveHalving(3, 2), SuccessiveHalving(2, 1), Median(2), Median(1)])


@given(RULES, VALUES, MANY, st.randoms())
def test_the_order_of_the_others_does_not_matter(
    rule: Pruner, value: float, others: list[float], random: object
) -> None:
    mixed = list(others)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert rule.goes_on(value, others) == rule.goes_on(value, mixed)


@given(RULES, st.floats(-2, 2), st.floats(-2, 2), MANY)
def test_a_better_trial_goes_on_wherever_a_worse_one_does(
    rule: Pruner, a: float, b: float, others: list[float]
) -> None:
    if rule.goes_on(min(a, b), others):
        assert rule.goes_on(max(a, b), others)


@given(RULES, MANY)
def test_the_best_always_goes_on_and_nan_never(rule: Pruner, others: list[float]) -> None:
    assert rule.goes_on(1.0, others)
    assert not rule.goes_on(math.nan, others)


@given(st.sampled_from(["worst_group_auroc", "auroc_gap"]), st.floats(0, 1), st.floats(0, 1))
def test_oriented_values_prune_the_worse_in_both_directions(name: str, a: float, b: float) -> None:
    objective = get_objective(name)
    rule = SuccessiveHalving(reduction=2, min_trials=2)
    goes_on = rule.goes_on(-objective.loss(a), [-objective.loss(b)])
    assert goes_on == (not objective.better(b, a))


def test_settings_name_the_rule() -> None:
    assert make_pruner(PruningSettings()) is None
    halving = PruningSettings(rule="halving", reduction=4, min_trials=2)
    assert make_pruner(halving) == SuccessiveHalving(4, 2)
    assert make_pruner(PruningSettings(rule="median", min_trials=5)) == Median(5)


@pytest.mark.parametrize(
    ("epochs", "every", "rungs"),
    [(12, 1, (2, 4, 8)), (17, 1, (2, 4, 8, 16)), (4, 1, (2,)), (2, 1, (1,)), (12, 5, (5, 10))],
)
def test_rungs_not_given_double(epochs: int, every: int, rungs: tuple[int, ...]) -> None:
    assert PruningSettings(rule="median").rungs_within(epochs, every) == rungs
    assert PruningSettings().rungs_within(epochs, every) == ()
    given = PruningSettings(rule="halving", rungs=(1,))
    assert given.rungs_within(epochs, every) == (1,)


@pytest.mark.parametrize("rungs", [(), (0,), (2, 1), (1, 1)])
def test_rungs_must_rise(rungs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="epochs from 1 on"):
        PruningSettings(rungs=rungs)
