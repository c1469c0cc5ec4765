"""The honest winner: standings, Pareto front, importance; and further dimensions of a search."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from search.conftest import children
from search.samples import tiny_config

from fairtune.errors import InputError
from fairtune.fairness import get_objective
from fairtune.peft.models import build_model
from fairtune.search.figures import draw_importance, draw_pareto, draw_progress
from fairtune.search.final import baselines
from fairtune.search.point import Point, SearchSpace
from fairtune.search.search import SearchOutcome
from fairtune.search.settings import ExtraChoice, ExtraRange, FinalSettings
from fairtune.search.standings import (
    Candidate,
    FinalRun,
    Standing,
    patient_error,
    pick_winner,
    standings,
)
from fairtune.search.study import FinishedTrial, NoTrialError
from fairtune.search.summary import (
    importance,
    pareto_front,
    standings_table,
    trials_table,
    winners_curse,
)
from fairtune.search.trial import set_drop_path
from fairtune.training import Split
from fairtune.workspace import open_workspace

UP, DOWN = get_objective("worst_group_auroc"), get_objective("auroc_gap")
VALUES = st.one_of(st.sampled_from([0.5, 0.6, 0.7]), st.just(math.nan))


def standing(name: str, *values: float, auroc: float = 0.8, patients: float = 0.0) -> Standing:
    candidate = Candidate(name, "auto_peft1", (1,), 1e-3, number=1, first_value=0.9)
    runs = [FinalRun(candidate, i, "r", v, auroc, patients) for i, v in enumerate(values)]
    return Standing(candidate, tuple(runs))


def test_both_errors_add_up_as_variances() -> None:
    one = standing("a", 0.7, 0.8, 0.9, patients=0.04)
    assert one.seed_error == pytest.approx(0.1 / math.sqrt(3))
    assert one.standard_error == pytest.approx(math.hypot(0.1 / math.sqrt(3), 0.04))
    assert standing("b", 0.7, patients=0.04).standard_error == pytest.approx(0.04)
    assert standing("c", 0.7, 0.9, patients=math.nan).standard_error == pytest.approx(0.1)


def test_the_steady_candidate_beats_the_lucky_one_in_both_directions() -> None:
    steady, lucky = standing("steady", 0.80, 0.80), standing("lucky", 0.70, 0.92)
    assert lucky.mean > steady.mean
    assert pick_winner([lucky, steady], UP, FinalSettings()) is steady
    low, wild = standing("low", 0.20, 0.20), standing("wild", 0.08, 0.30)
    assert pick_winner([wild, low], DOWN, FinalSettings()) is low


def test_the_limit_on_overall_auroc_excludes() -> None:
    fair, accurate = standing("fair", 0.8, auroc=0.80), standing("accurate", 0.7, auroc=0.90)
    assert pick_winner([fair, accurate], UP, FinalSettings()) is fair
    assert pick_winner([fair, accurate], UP, FinalSettings(max_auroc_loss=0.01)) is accurate
    assert pick_winner([fair, accurate], UP, FinalSettings(max_auroc_loss=0.2)) is fair


def test_the_winners_curse_is_positive_when_the_first_value_was_luck() -> None:
    assert winners_curse(standing("a", 0.8, 0.8), UP) == pytest.approx(0.1)
    assert winners_curse(standing("a", 0.8, 0.8), DOWN) == pytest.approx(-0.1)
    table = standings_table([standing("a", 0.7, 0.7), standing("b", 0.8, 0.8)], UP)
    assert list(table["candidate"]) == ["b", "a"]
    assert table["bound"][0] == pytest.approx(0.8)
    assert standings_table([standing("a", 0.1, 0.3)], DOWN)["bound"][0] == pytest.approx(0.3)


def test_a_candidate_with_a_failed_seed_is_out() -> None:
    good = standing("good", 0.5)
    bad = FinalRun(Candidate("bad", "s", (), 1e-3), 0, "r", math.nan, math.nan, error="nan loss")
    assert standings([*good.runs, bad]) == [good]
    with pytest.raises(NoTrialError, match="nan loss"):
        standings([bad])


@pytest.mark.parametrize(
    ("space", "bits", "full", "probe"),
    [
        ("auto_peft1", (1, 1, 1, 1, 1, 1), 7e-3, 3e-3),
        ("auto_peft1", (0, 0, 0, 0, 0, 0), 3e-3, 7e-3),
        ("auto_peft1", (1, 0, 0, 1, 0, 0), 3e-3, 3e-3),
        ("bitfit", (), 3e-3, 3e-3),  # no bits: none of them is on, and none is off
        ("auto_peft1:101100", (), 3e-3, 3e-3),
        ("auto_peft1:0", (), 3e-3, 7e-3),  # trains what the linear probe trains
        ("fullft", (), 7e-3, 3e-3),
        ("train_from_scratch", (), 3e-3, 3e-3),
    ],
)
def test_a_baseline_takes_the_learning_rate_of_the_nearest_mask_alone(
    source: str, space: str, bits: tuple[int, ...], full: float, probe: float
) -> None:
    workspace = open_workspace(tiny_config(search__space=space), source)
    trial = FinishedTrial(0, Point(bits, 7e-3), "r", 0.8, 0.9, 0.8, 2, False)
    assert [one.learning_rate for one in baselines(workspace, [trial], UP)] == [full, probe]


def _split(n: int, patients: int) -> tuple[Split, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    score = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.2, n), 0.01, 0.99)
    split = Split(
        name="val",
        images=np.zeros((n, 2, 2, 3), np.uint8),
        rows=np.arange(n),
        labels=labels,
        groups=pd.DataFrame({"ward": rng.choice(["a", "b"], n)}),
        patients=np.arange(n) % patients,
        references=np.arange(n),
        classes=("well", "ill"),
    )
    return split, np.column_stack([1 - score, score])


def test_the_patient_error_shrinks_with_patients_not_with_images() -> None:
    def error(n: int, patients: int) -> float:
        split, scores = _split(n, patients)
        return patient_error(split, scores, UP, n_resamples=200, seed=1)

    assert error(100, 100) > 1.5 * error(1600, 1600)
    assert error(1600, 20) > 1.2 * error(1600, 1600) or error(1600, 20) > 0
    assert error(100, 100) == error(100, 100)
    split, scores = _split(60, 60)
    assert math.isnan(patient_error(split, scores, UP, n_resamples=0, seed=1))
    assert math.isnan(patient_error(_split(60, 1)[0], scores, UP, n_resamples=50, seed=1))


@given(st.lists(st.tuples(VALUES, VALUES), max_size=12))
def test_the_pareto_front_is_its_definition(points: list[tuple[float, float]]) -> None:
    front = pareto_front([a for a, _ in points], [b for _, b in points])
    for i, (a, b) in enumerate(points):
        beaten = any(
            c >= a and d >= b and (c > a or d > b) for j, (c, d) in enumerate(points) if j != i
        )
        assert front[i] == (not beaten and not math.isnan(a) and not math.isnan(b))


SPACE = SearchSpace(("x", "noise", "y"), 1e-4, 1e-2)


def _trials(n: int, objective: Callable[[tuple[int, ...]], float]) -> list[FinishedTrial]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(n):
        bits = tuple(int(bit) for bit in rng.integers(0, 2, 3))
        point = Point(bits, float(10 ** rng.uniform(-4, -2)))
        value = objective(bits)
        found.append(FinishedTrial(number, point, "r", value, 0.9, value, 2, number % 5 == 4))
    return found


def test_importance_finds_the_bit_that_matters() -> None:
    table = importance(_trials(40, lambda b: 0.6 + 0.2 * b[0] + 0.05 * b[2]), SPACE, seed=0)
    assert list(table["dimension"][:2]) == ["x", "y"]
    assert table["importance"][0] > 5 * table["importance"].iloc[-1] >= 0
    assert importance(_trials(5, lambda b: b[0]), SPACE, seed=0).empty
    assert importance(_trials(20, lambda b: 0.5), SPACE, seed=0).empty


@pytest.mark.parametrize(("objective", "best"), [(UP, np.maximum), (DOWN, np.minimum)])
def test_figures_of_a_search_can_be_drawn(
    objective: object, best: np.ufunc, tmp_path: Path
) -> None:
    trials = _trials(12, lambda b: 0.6 + 0.1 * b[0])
    table = trials_table(trials, SPACE, objective)  # type: ignore[arg-type]
    assert list(table["best"]) == list(best.accumulate(table["objective"]))
    for path in (
        draw_pareto(table, tmp_path / "a.png"),
        draw_progress(table, "worst_group_auroc", tmp_path / "b.png"),
        draw_importance(importance(trials, SPACE, seed=0), 12, tmp_path / "c.png"),
    ):
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size > 5000


EXTRA = {
    "weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
    "class_weights": {"choices": ["balanced", "none"]},
    "drop_path": {"low": 0.0, "high": 0.3},
    "layer_decay": {"choices": [0.655, 1.0]},
}


def test_further_dimensions_are_searched_logged_and_used_again(
    run_search: Callable[..., SearchOutcome],
) -> None:
    outcome = run_search(
        tiny_config(
            search__extra=EXTRA, search__trials=9, search__final={"candidates": 2, "seeds": 1}
        )
    )
    trials = children(outcome.run_id, "trial")
    assert {run.info.status for run in trials} == {"FINISHED"}
    first = trials[0].data.params
    assert (first["weight_decay"], first["class_weights"], first["drop_path"]) == (
        "0.01",
        "balanced",
        "0.0",
    )
    drawn = {name: {run.data.params[name] for run in trials} for name in EXTRA}
    assert all(len(values) > 1 for values in drawn.values())
    assert all(1e-3 <= float(v) <= 0.3 for v in drawn["weight_decay"])
    points = {tuple(run.data.params[name] for name in ("mask", *EXTRA)) for run in trials}
    for run in children(outcome.run_id, "final"):
        if run.data.tags["fairtune.candidate"].startswith("trial"):
            assert tuple(run.data.params[name] for name in ("mask", *EXTRA)) in points
    artifacts = {f.path for f in MlflowClient().list_artifacts(outcome.run_id)}
    assert {"trials.csv", "pareto.csv", "importance.csv", "standings.csv"} <= artifacts
    figures = {f.path for f in MlflowClient().list_artifacts(outcome.run_id, "figures")}
    assert figures == {f"figures/{n}.png" for n in ("pareto", "progress", "importance")}
    assert "winners_curse" in MlflowClient().get_run(outcome.run_id).data.metrics


SPACE_EXTRA = SearchSpace(
    ("a",),
    1e-4,
    1e-2,
    extra=(
        ("weight_decay", ExtraRange(low=1e-3, high=0.3, log=True)),
        ("class_weights", ExtraChoice(choices=("balanced", "none"))),
    ),
)


def test_points_with_further_dimensions_read_back() -> None:
    sample = {"a": 1, "learning_rate": 1e-3, "weight_decay": 0.0123, "class_weights": "none"}
    point = SPACE_EXTRA.point(sample)
    assert point.extras[0] == ("weight_decay", 0.012)
    vals = SPACE_EXTRA.vals(point)
    assert vals["class_weights"] == [1]
    assert SPACE_EXTRA.point_of_vals(vals) == point
    assert point.key != Point((1,), 1e-3, (("weight_decay", 0.013), ("class_weights", "none"))).key
    assert SPACE_EXTRA.extras_of({"weight_decay": 0, "class_weights": "other"}) == (
        ("weight_decay", 1e-3),
        ("class_weights", "balanced"),
    )


def test_what_is_on_a_list_is_not_rounded() -> None:
    what = ExtraChoice(choices=(0.125, 128.0, "none"))
    space = SearchSpace(("a",), 1e-4, 1e-2, extra=(("x", what),))
    for index, value in enumerate(what.choices):
        point = space.point({"a": 1, "learning_rate": 1e-3, "x": value})
        assert point.extras == (("x", value),)
        assert space.vals(point)["x"] == [index]
        assert space.point_of_vals(space.vals(point)) == point
        assert space.extras_in({"x": str(value)}) == point.extras  # as a run holds it
    assert space.extras_in({"x": "0.12"}) == (("x", 0.125),)  # as it once did


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"momentum": {"low": 0, "high": 1}}, "momentum"),
        ({"weight_decay": {"low": -1, "high": 1}}, "weight_decay"),
        ({"weight_decay": {"low": 0, "high": 1, "log": True}}, "low > 0"),
        ({"drop_path": {"low": 0, "high": 1}}, "drop_path"),
        ({"class_weights": {"choices": ["balanced", "odd"]}}, "class_weights"),
        ({"layer_decay": {"choices": [0.5]}}, "choices"),
    ],
)
def test_an_impossible_dimension_is_named(extra: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_config(search__extra=extra)


def test_stochastic_depth_grows_over_the_blocks_and_is_silent_in_evaluation() -> None:
    options = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    model = build_model("vit_tiny_patch16_224", num_classes=2, weights="none", options=options)
    names = [name for name, _ in model.named_parameters()]
    x = torch.randn(64, 3, 16, 16)
    plain = model.eval()(x)
    set_drop_path(model, 0.4)
    assert [getattr(b.drop_path1, "drop_prob", 0.0) for b in model.blocks] == [0.0, 0.2, 0.4]
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(model.eval()(x), plain)
    assert not torch.equal(model.train()(x), plain)
    with pytest.raises(InputError, match="drop_path"):
        set_drop_path(torch.nn.Linear(2, 2), 0.1)
