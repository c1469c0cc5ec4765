"""The statistics against SciPy, published tables and figures worked out by hand."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from comparison.conftest import comparison_of
from numpy.typing import ArrayLike
from scipy import stats

from fairtune.comparison.claim import judge_claim
from fairtune.comparison.figures import trade_off
from fairtune.comparison.output import overall_intervals
from fairtune.comparison.results import HEADLINE
from fairtune.comparison.statistics import (
    PatientDraws,
    hedges_correction,
    holm,
    patient_draws,
    patient_interval,
    seed_difference,
)
from fairtune.comparison.tables import latex
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
        {
            "method": "full",
            "metric": metric,
            "over": "patients",
            **asdict(patient_interval(mine, None, metric)),
        }
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
    bounds = {"method": "full", "over": "seeds", "estimate": 0.7, "low": 0.71, "high": 0.72}
    rows = pd.DataFrame([{**bounds, "metric": metric} for metric in METRICS])
    drawing = trade_off("t", pd.DataFrame({"method": ["full"], "seed": [1]}), rows)
    assert "full 0.700, 0.700" in drawing.alt
    assert "95 % over seeds" in drawing.caption


def test_intervals_are_over_seeds_where_each_draws_new_people() -> None:
    models = pd.DataFrame({"task": "spots", "method": "full", "seed": [1, 2, 3]})
    for metric, values in zip(
        HEADLINE, ([0.8, 0.82, 0.84], [0.7, 0.7, 0.76], [0.1] * 3), strict=True
    ):
        models[f"test/{metric}"] = values
    drawn = {
        ("spots", "full", seed): patient_draws(four_sites(seed), HEADLINE, n_resamples=99, seed=3)
        for seed in (1, 2, 3)
    }
    same, redrawn = (
        comparison_of(["full", "linear"], candidate="linear", redrawn=new) for new in (False, True)
    )
    over_seeds = overall_intervals(models, drawn, redrawn).set_index("metric")
    auroc = over_seeds.loc["auroc"]
    assert auroc["over"] == "seeds"
    half = 4.302653 * 0.02 / 3**0.5  # t of 2 degrees of freedom
    assert (auroc["low"], auroc["high"]) == pytest.approx((0.82 - half, 0.82 + half))
    assert set(overall_intervals(models, drawn, same)["over"]) == {"patients"}
    assert set(overall_intervals(models[:1], drawn, redrawn)["over"]) == {"patients"}


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

    comparison = comparison_of(["full", "searched"], redrawn=redrawn)
    task = comparison.tasks[0].model_copy(update={"name": "t"})
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


def test_a_candidate_among_the_references_is_not_missing() -> None:
    comparison = comparison_of(["full", "searched"], references=["full", "searched"], redrawn=True)
    table = pd.DataFrame(
        row(metric, mean, p, task="spots")
        for metric, mean, p in [
            ("worst_group_auroc", 0.02, 0.001), ("auroc_gap", -0.02, 0.001), ("auroc", 0.0, 0.9),
        ]
    )  # fmt: skip
    found = judge_claim(table, comparison)
    assert set(found.table["verdict"]) == {"supported"}
    assert "missing" not in found.text
    none = judge_claim(table, comparison_of(["full", "linear", "searched"], references=["linear"]))
    assert "missing of the comparison with `linear`." in none.text


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
