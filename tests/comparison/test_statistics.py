"""The statistics against SciPy, published tables and figures worked out by hand."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from fairtune.comparison.claim import judge_claim
from fairtune.comparison.figures import critical_difference, trade_off
from fairtune.comparison.output import ranking, whole_seeds
from fairtune.comparison.statistics import (
    PatientDraws,
    hedges_correction,
    holm,
    patient_draws,
    patient_interval,
    rank,
    seed_difference,
)
from fairtune.comparison.tables import latex, say_ranks
from fairtune.fairness import paired_bootstrap
from fairtune.tracking.predictions import groups_of, probabilities_of


def test_a_paired_difference_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.8, 0.02, 9), rng.normal(0.79, 0.02, 9)
    found = seed_difference(a, b)
    theirs = stats.ttest_rel(a, b)
    assert found.n == 9
    assert found.p_value == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.effect == pytest.approx(theirs.statistic / 3)  # d = t / sqrt(n)
    assert found.standard_error == pytest.approx(found.mean / theirs.statistic)


def test_a_difference_of_few_seeds_claims_nothing() -> None:
    assert seed_difference([], []).n == 0
    one = seed_difference([0.8], [0.7])
    assert one.mean == pytest.approx(0.1)
    assert math.isnan(one.p_value)
    assert math.isnan(one.low)
    assert seed_difference([0.8, math.nan, 0.9], [0.7, 0.7, math.nan]).n == 1
    assert seed_difference([0.7, 0.7], [0.7, 0.7]).p_value == 1.0


def test_an_effect_without_spread_keeps_its_sign() -> None:
    assert seed_difference([0.5, 0.5], [0.75, 0.75]).effect == -math.inf
    assert seed_difference([0.75, 0.75], [0.5, 0.5]).effect == math.inf
    assert seed_difference([0.5, 0.5], [0.5, 0.5]).effect == 0
    nearly = seed_difference([0.5, 0.5 + 1e-13], [0.75, 0.75])
    assert math.isnan(nearly.effect_low)


def test_hedges_correction_by_hand() -> None:
    assert hedges_correction(2) == pytest.approx(1 / math.sqrt(math.pi))
    assert hedges_correction(3) == pytest.approx(math.sqrt(math.pi / 6))
    for m in (10, 30, 100):  # Hedges' own approximation
        assert hedges_correction(m) == pytest.approx(1 - 3 / (4 * m - 1), abs=5e-4)
    assert math.isnan(hedges_correction(1))


def test_the_effect_is_unbiased_and_its_interval_covers() -> None:
    true, n = 0.8, 5
    rng = np.random.default_rng(0)
    found = [seed_difference(rng.normal(true, 1, n), np.zeros(n)) for _ in range(4000)]
    assert np.mean([one.effect for one in found]) > true + 0.15
    assert np.mean([one.hedges_g for one in found]) == pytest.approx(true, abs=0.03)
    covered = [one.effect_low <= true <= one.effect_high for one in found]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    for one in found[:200]:
        assert (one.effect_low <= 0 <= one.effect_high) == (one.p_value >= 0.05)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = holm([0.01, math.nan, 0.02])
    assert adjusted[0] == pytest.approx(0.02)  # of two, not of three
    assert math.isnan(adjusted[1])
    assert all(math.isnan(p) for p in holm([math.nan]))


def test_holm_is_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).beta(0.3, 2, 40)
    assert holm(list(p)) == pytest.approx(multitest.multipletests(p, method="holm")[1])


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
    from comparison.conftest import comparison_of

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
    from comparison.conftest import comparison_of

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
    from comparison.conftest import comparison_of

    comparison = comparison_of(["full", "norms", "best_fixed", "searched"])
    models = models_of({"t": [[0.7, 0.8, 0.75, 0.8], [0.7, 0.6, 0.75, 0.7]]})
    found = ranking(models, "worst_group_auroc", comparison)
    without = models[models["method"] != "best_fixed"]
    other = ranking(without, "worst_group_auroc", comparison)
    assert found is not None
    assert other is not None
    pd.testing.assert_series_equal(found.ranks, other.ranks)
    assert found.critical_difference == other.critical_difference  # k = 3


def predictions(seed: int, strength: float = 1.0, n: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, n)
    patient = rng.integers(0, 120, n)
    noise = np.random.default_rng(seed).normal(0, 1, n)
    score = 1 / (1 + np.exp(-(strength * (2 * label - 1) + noise)))
    return pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(n)],
            "patient": patient,
            "label": label,
            "probability_0": 1 - score,
            "probability_1": score,
            "site": np.where(rng.random(n) < 0.4, "a", "b"),
        }
    )


METRICS = ("auroc", "worst_group_auroc")


def draws(table: pd.DataFrame) -> PatientDraws:
    return patient_draws(table, METRICS, n_resamples=200, seed=3)


def test_one_seed_gives_the_paired_bootstrap_of_the_gate() -> None:
    a, b = predictions(1), predictions(2, 1.4)
    theirs = paired_bootstrap(
        a["label"], probabilities_of(a), probabilities_of(b), groups_of(a), a["patient"],
        n_resamples=200, seed=3,
    )  # fmt: skip
    for metric in METRICS:
        found = patient_interval([draws(b)], [draws(a)], metric)
        assert found.estimate == pytest.approx(theirs[metric].estimate)
        assert found.n_patients == a["patient"].nunique()
        assert found.low < found.estimate < found.high
        assert found.high - found.low == pytest.approx(
            theirs[metric].high - theirs[metric].low, rel=0.2
        )  # other resamples: rows are put in the order of their images


def test_the_order_of_rows_does_not_matter() -> None:
    a, b = predictions(1), predictions(2, 1.4)
    shuffled = b.sample(frac=1, random_state=0, ignore_index=True)
    one = patient_interval([draws(b)], [draws(a)], "auroc")
    other = patient_interval([draws(shuffled)], [draws(a)], "auroc")
    assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_a_model_against_itself_does_not_differ() -> None:
    mine = [draws(predictions(1)), draws(predictions(2))]
    found = patient_interval(mine, mine, "worst_group_auroc")
    assert (found.estimate, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def drawn(estimate: float, values: ArrayLike) -> list[PatientDraws]:
    return [PatientDraws({"gap": estimate}, {"gap": np.asarray(values, float)}, 50)]


def test_the_bias_of_the_draws_is_taken_off() -> None:
    even = np.linspace(-0.1, 0.1, 201)
    found = patient_interval(drawn(0.02, 0.3 + even), None, "gap")
    assert (found.low, found.high) == pytest.approx((0.02 - 0.095, 0.02 + 0.095))
    # Of 201 draws around 0.02, 81 are 0 or less; with their bias of 0.28 none is.
    assert found.p_value == pytest.approx(2 * (1 + 81) / 202, abs=0.011)
    apart = patient_interval(drawn(0.5, 0.7 + even), drawn(0.3, np.full(201, 0.7)), "gap")
    assert (apart.low, apart.high) == pytest.approx((0.2 - 0.095, 0.2 + 0.095))
    assert apart.p_value == pytest.approx(2 / 202)  # not 1: the draws differ by 0 on average


def test_intervals_of_many_seeds_hold_their_estimates() -> None:
    """The least of alike groups is biased in every seed; the mean over seeds narrows the spread."""
    mine = [draws(four_sites(seed)) for seed in range(20)]
    rows = [
        {"method": "full", "metric": metric, **asdict(patient_interval(mine, None, metric))}
        for metric in METRICS
    ]
    for found in rows:
        assert found["low"] < found["estimate"] < found["high"]
    models = pd.DataFrame({"method": "full", "seed": range(20)})
    assert trade_off("t", models, pd.DataFrame(rows)).name == "trade-off-t"


def four_sites(seed: int) -> pd.DataFrame:
    """New data for each seed, as `seed_keys` draws it, of four groups that do not differ."""
    table = predictions(seed, n=1000)
    order = np.random.default_rng(100 + seed).permutation(len(table))
    site = np.array(list("abcd"))[np.arange(len(table)) % 4]
    return table.iloc[order].assign(image=table["image"].array, patient=range(1000), site=site)


def test_an_interval_beside_its_estimate_can_be_drawn() -> None:
    bounds = {"method": "full", "estimate": 0.7, "low": 0.71, "high": 0.72}
    rows = pd.DataFrame([{**bounds, "metric": metric} for metric in METRICS])
    drawing = trade_off("t", pd.DataFrame({"method": ["full"], "seed": [1]}), rows)
    assert "full 0.700, 0.700" in drawing.alt


def row(
    metric: str, mean: float, p: float, low: float = -0.005, **more: object
) -> dict[str, object]:
    return {
        "task": "t", "method": "searched", "reference": "full", "metric": metric, "n": 5, "mean": mean,
        "p_value": p, "low": low, "high": 0.1, "hedges_g": 0.84, "effect_low": -0.12,
        "effect_high": 2.05, "patient_p_value": p, "patient_low": low, "patient_high": 0.1,
        "patient_n_patients": 1234, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "redrawn", "verdict"),
    [
        ([("worst_group_auroc", 0.02, 0.01), ("auroc_gap", -0.02, 0.02)], True, "supported"),
        ([("worst_group_auroc", 0.02, 0.01), ("auroc_gap", -0.02, 0.06)], True, "not decided"),
        ([("worst_group_auroc", -0.02, 0.01), ("auroc_gap", -0.02, 0.02)], True, "contradicted"),
        ([("worst_group_auroc", 0.02, 0.03), ("auroc_gap", -0.02, 0.04)], True, "not decided"),
        ([("worst_group_auroc", 0.02, math.nan), ("auroc_gap", -0.02, 0.01)], True, "not decided"),
    ],
)
def test_the_verdict(rows: list[tuple[str, float, float]], redrawn: bool, verdict: str) -> None:
    from comparison.conftest import comparison_of

    comparison = comparison_of(["full", "searched"])
    task = comparison.tasks[0].model_copy(
        update={"name": "t", "seed_keys": ("data.options.seed",) if redrawn else ()}
    )
    comparison = comparison.model_copy(update={"tasks": (task,)})
    table = pd.DataFrame([*(row(*one) for one in rows), row("auroc", 0.0, 0.9)])
    assert set(judge_claim(table, comparison).table["verdict"]) == {verdict}
    lower = table.assign(low=-0.02)  # overall AUROC may be lower by more than the margin
    expected = "contradicted" if verdict == "contradicted" else "not decided"
    assert set(judge_claim(lower, comparison).table["verdict"]) == {expected}
    shared = comparison.model_copy(update={"tasks": (task.model_copy(update={"seed_keys": ()}),)})
    unsure = table.assign(patient_p_value=0.5)  # over seeds alone is not enough on one test split
    assert set(judge_claim(unsure, shared).table["verdict"]) == {"not decided"}


@pytest.mark.parametrize("left_out", [None, "worst_group_auroc", "auroc_gap", "auroc", "all"])
def test_a_claim_is_not_supported_while_a_figure_is_missing(left_out: str | None) -> None:
    from comparison.conftest import comparison_of

    comparison = comparison_of(["full", "linear", "searched"], references=["full", "linear"])
    table = pd.DataFrame(
        row(metric, mean, p, reference=reference, task="spots")
        for reference in comparison.references
        for metric, mean, p in [
            ("worst_group_auroc", 0.02, 0.001), ("auroc_gap", -0.02, 0.001), ("auroc", 0.0, 0.9),
        ]
    )  # fmt: skip
    lost = (table["reference"] == "linear") & table["metric"].isin(
        set(table["metric"]) if left_out == "all" else {left_out}
    )
    found = judge_claim(table[~lost], comparison)
    assert set(found.table["verdict"]) == {"not decided" if left_out else "supported"}
    assert ("missing of the comparison with `linear`." in found.text) == bool(left_out)
    lines = [line.split(" | ") for line in found.text.splitlines() if line.startswith("| ")]
    assert {line[lines[0].index("patients")] for line in lines[2:]} == {"1234"}
    assert {line[lines[0].index("Hedges' g")] for line in lines[2:]} == {"+0.84"}
    assert {line[-1] for line in lines[2:]} == {"[-0.12, +2.05] |"}


def test_latex_is_escaped() -> None:
    cells = {
        "age & sex #1": "50% ± 2_0",
        "a\\b": "{x}$",
        "mean_gap": "~^",
    }
    table = latex(pd.DataFrame({"task {#}": cells.keys(), "cost_$ & %": cells.values()}))
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert rows == [
        r"task \{\#\} & cost\_\$ \& \% \\",
        r"age \& sex \#1 & 50\% $\pm$ 2\_0 \\",
        r"a\textbackslash b & \{x\}\$ \\",
        r"mean\_gap & \textasciitilde \textasciicircum  \\",
    ]
