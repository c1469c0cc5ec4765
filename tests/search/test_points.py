"""Points, proposals and what is rebuilt from them."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hyperopt import JOB_STATE_DONE, STATUS_FAIL, STATUS_OK, Trials, fmin, rand, space_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from fairtune.errors import InputError
from fairtune.search import proposer
from fairtune.search.point import Point, SearchSpace, two_digits
from fairtune.search.proposer import Proposer, algorithm

SPACE = SearchSpace(("blocks.00.attn", "blocks.00.mlp", "blocks.01.attn"), 1e-4, 1e-2)
RANKS = SearchSpace(("a", "b"), 1e-4, 1e-2, values=(0, 4, 16))


@given(st.floats(1e-9, 1e3))
def test_two_digits_is_idempotent_and_near(value: float) -> None:
    rounded = two_digits(value)
    assert two_digits(rounded) == rounded
    assert rounded == pytest.approx(value, rel=0.051)


def test_points_that_differ_in_noise_alone_are_equal() -> None:
    a = Point((np.int64(1), 0, 1), 1.2341e-3)  # type: ignore[arg-type]
    b = Point((1, 0, 1), 1.18e-3)
    assert a == b
    assert a.key == b.key
    assert type(a.bits[0]) is int
    assert a.key != Point((1, 0, 0), 1.2e-3).key != Point((1, 0, 1), 1.3e-3).key


@given(st.lists(st.sampled_from([0, 4, 16]), min_size=2, max_size=2), st.floats(1e-4, 1e-2))
def test_vals_hold_indices_and_read_back(bits: list[int], rate: float) -> None:
    point = Point(tuple(bits), rate)
    vals = RANKS.vals(point)
    assert [RANKS.values[vals[name][0]] for name in RANKS.bit_names] == bits
    assert RANKS.point_of_vals(vals) == point
    sample = space_eval(RANKS.expression(), {k: v[0] for k, v in vals.items()})
    assert RANKS.point(sample) == point


def _search(
    n: int,
    *,
    seed: int = 0,
    space: SearchSpace = SPACE,
    trials: Trials | None = None,
    name: str = "tpe",
    given_points: tuple[Point, ...] = (),
    objective: Callable[[Point], dict[str, Any]] | None = None,
) -> tuple[list[Point], Trials]:
    """Run a proposer with a trivial objective; return the points in order."""
    trials = trials if trials is not None else Trials()
    seen: list[Point] = []

    def judge(sample: Any) -> dict[str, Any]:
        point = space.point(sample)
        seen.append(point)
        if objective is not None:
            return objective(point)
        return {"status": STATUS_OK, "loss": sum(point.bits) + abs(point.learning_rate - 1e-3)}

    propose = Proposer(
        space=space,
        given=given_points,
        suggest=algorithm(name, 3),
        seed=seed,
        may_start=lambda trials: len(trials._dynamic_trials) < n,
        on_proposal=lambda number, point: None,
        taken={doc["tid"] for doc in trials._dynamic_trials},
    )
    fmin(
        judge,
        space.expression(),
        algo=propose,
        max_evals=10**9,
        trials=trials,
        rstate=np.random.default_rng(int(np.random.default_rng().integers(1 << 30))),
        show_progressbar=False,
        verbose=False,
        return_argmin=False,
    )
    return seen, trials


@pytest.mark.parametrize("name", ["tpe", "rand", "anneal"])
def test_the_same_seed_proposes_the_same_and_another_does_not(name: str) -> None:
    first, _ = _search(12, name=name)
    assert first == _search(12, name=name)[0]
    assert first != _search(12, name=name, seed=1)[0]


@pytest.mark.parametrize("name", ["tpe", "rand", "anneal"])
def test_no_point_twice_and_a_small_space_ends_the_search(name: str) -> None:
    space = SearchSpace(("a", "b"), 1.0e-3, 1.04e-3)  # one learning rate once rounded
    points, _ = _search(100, space=space, name=name)
    assert len(points) == len({point.key for point in points}) == 4


def test_given_points_come_first_in_order_and_once() -> None:
    known = (Point((1, 1, 1), 1e-3), Point((0, 0, 0), 1e-3), Point((1, 1, 1), 1e-3))
    points, _ = _search(5, given_points=known)
    assert points[:2] == [known[0], known[1]]
    assert known[0] not in points[2:]


@pytest.mark.parametrize("name", ["tpe", "rand", "anneal"])
@settings(max_examples=5, deadline=None)
@given(st.integers(1, 11))
def test_a_search_rebuilt_after_any_trial_goes_on_as_if_it_had_not_stopped(
    name: str, cut: int
) -> None:
    whole, _ = _search(12, name=name)
    before, trials = _search(cut, name=name)
    rebuilt = Trials()
    rebuilt.insert_trial_docs([{**doc, "state": JOB_STATE_DONE} for doc in trials._dynamic_trials])
    rebuilt.refresh()
    after, _ = _search(12, trials=rebuilt, name=name)
    assert before + after == whole


def test_a_long_search_shows_tpe_its_best_trials_and_its_latest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: dict[int, list[int]] = {}
    good: dict[int, float] = {}
    losses = iter([9.0, None, 1.0, 8.0, 0.5, 7.0, 6.0, 5.0, 4.0, 3.0])

    def suggest(new_ids: list[int], domain: Any, trials: Trials, *args: Any, **kw: Any) -> Any:
        shown[new_ids[0]] = [doc["tid"] for doc in trials.trials]
        good[new_ids[0]] = kw["gamma"] * len(trials.trials) ** 0.5
        return rand.suggest(new_ids, domain, trials, *args)

    monkeypatch.setattr(proposer.tpe, "suggest", suggest)
    monkeypatch.setattr(proposer, "REMEMBERED_BEST", 2)
    monkeypatch.setattr(proposer, "REMEMBERED_LATEST", 5)

    def judge(point: Point) -> dict[str, Any]:
        loss = next(losses)
        failed = {"status": STATUS_FAIL, "error": "no"}
        return failed if loss is None else {"status": STATUS_OK, "loss": loss}

    _search(10, objective=judge)
    assert shown[7] == list(range(7))
    assert shown[8] == [0, 2, 3, 4, 5, 6, 7]
    assert shown[9] == [2, 3, 4, 5, 6, 7, 8]
    # As many count as good as when all were shown.
    assert good == pytest.approx({n: 0.25 * n**0.5 for n in good})


def test_failed_trials_do_not_end_a_search_and_are_not_proposed_again() -> None:
    def odd(point: Point) -> dict[str, Any]:
        if point.bits[0]:
            return {"status": STATUS_FAIL, "error": "no"}
        return {"status": STATUS_OK, "loss": float(sum(point.bits))}

    points, trials = _search(15, objective=odd)
    assert len(points) == len({p.key for p in points}) == 15
    assert STATUS_FAIL in {doc["result"]["status"] for doc in trials._dynamic_trials}


def test_atpe_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"pip install 'fairtune\[atpe\]'"):
        algorithm("atpe", 3)


def test_atpe_is_seeded_goes_on_after_a_failure_and_leaves_the_global_generators_alone() -> None:
    pytest.importorskip("lightgbm", reason="adaptive TPE needs lightgbm")

    def odd(point: Point) -> dict[str, Any]:
        if sum(point.bits) == 2:
            return {"status": STATUS_FAIL, "error": "no"}
        return {"status": STATUS_OK, "loss": float(sum(point.bits))}

    space = SearchSpace(tuple(f"blocks.{i:02d}.attn" for i in range(6)), 1e-4, 1e-2)
    state = random.getstate()
    first, trials = _search(10, space=space, name="atpe", objective=odd)
    assert random.getstate() == state
    assert first == _search(10, space=space, name="atpe", objective=odd)[0]
    assert first != _search(10, space=space, name="atpe", objective=odd, seed=1)[0]
    assert STATUS_FAIL in {doc["result"]["status"] for doc in trials._dynamic_trials}
