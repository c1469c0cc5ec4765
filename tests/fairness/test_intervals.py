"""The bootstrap against explicit resampling, scikit-learn with weights, and DeLong."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from fairtune.errors import InputError
from fairtune.fairness import OBJECTIVES, bootstrap_report, delong_se, evaluate, paired_bootstrap
from fairtune.fairness.resampling import Resampled, multiplicities


def patients(n: int, seed: int = 0) -> np.ndarray:
    return np.array([f"p{i}" for i in np.random.default_rng(seed).integers(0, n // 2, n)])


def two_columns(p):
    return np.stack([1 - p, p], axis=1)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_estimates_are_those_of_evaluate(sample, n_classes):
    data = sample(0, n_classes=n_classes)
    flat = evaluate(data.y, data.score, data.groups).to_dict()
    found = Resampled(data.y, data.score, data.groups, None, None).estimates
    assert {OBJECTIVES[name].name for name in OBJECTIVES} <= set(found)
    assert found == pytest.approx({name: flat[name] for name in found}, abs=1e-12)


@pytest.mark.parametrize(("n_classes", "threshold"), [(2, None), (2, 0.7), (3, None)])
def test_every_resample_equals_evaluate_on_the_copied_rows(sample, n_classes, threshold):
    data = sample(1, n=120, n_classes=n_classes)
    clusters = patients(120)
    small = np.arange(120) % 24 < n_classes - 1  # a group that loses a class now and then
    groups = data.groups.assign(age=np.where(small, "old", "young")).astype("category")
    split = Resampled(data.y, data.score, groups, clusters, threshold)
    weights = next(multiplicities(split.n_clusters, 120, 40, seed=3))
    found = split.values(weights)
    lost = 0
    for i in range(40):
        rows = np.repeat(np.arange(120), weights[split.codes, i].astype(int))
        report = evaluate(data.y[rows], data.score[rows], groups.iloc[rows], threshold=threshold)
        missing = any(entry.metric in ("auroc", "tpr", "fpr") for entry in report.undefined)
        lost += missing
        flat = report.to_dict()
        for name, values in found.items():
            if missing and name in ("worst_group_auroc", "equalized_odds_difference"):
                assert math.isnan(values[i])
            elif not missing or "_by_group" in name:
                assert values[i] == pytest.approx(flat[name], abs=1e-12, nan_ok=True), name
    assert 0 < lost < 40  # both kinds of resample were met


@pytest.mark.parametrize("seed", range(3))
def test_auroc_equals_scikit_learn_with_weights(sample, seed):
    data = sample(seed, n=500)
    split = Resampled(data.y, data.score, data.groups, patients(500), None)
    weights = next(multiplicities(split.n_clusters, 500, 20, seed))
    found = split.values(weights)
    female = (data.groups["sex"] == "female").to_numpy()
    for i in range(20):
        w = weights[split.codes, i]
        p = data.score[:, 1]
        assert found["auroc"][i] == pytest.approx(roc_auc_score(data.y, p, sample_weight=w))
        expected = roc_auc_score(data.y[female], p[female], sample_weight=w[female])
        assert found["auroc_by_group/sex.female"][i] == pytest.approx(expected)


def test_intervals_are_the_quantiles_of_all_resamples(sample):
    data = sample(2, n=200)
    groups = data.groups[["sex"]]
    clusters = patients(200)
    report = bootstrap_report(
        data.y, data.score, groups, clusters, n_resamples=150, level=0.9, seed=5
    )
    split = Resampled(data.y, data.score, groups, clusters, None)
    drawn: dict[str, list[float]] = {"auroc": [], "auroc_gap": [], "range of deviations": []}
    own = evaluate(data.y, data.score, groups)
    for weights in multiplicities(split.n_clusters, 200, 150, seed=5):
        for column in weights.T:
            rows = np.repeat(np.arange(200), column[split.codes].astype(int))
            found = evaluate(data.y[rows], data.score[rows], groups.iloc[rows])
            for name in ("auroc", "auroc_gap"):
                drawn[name].append(found.headline[name])
            off = [
                cell.values["auroc"] - own.groups["sex"][name].values["auroc"]
                for name, cell in found.groups["sex"].items()
            ]
            drawn["range of deviations"].append(np.ptp(off))
    overall, gap = report["auroc"], report["auroc_gap"]
    quantiles = np.quantile(drawn["auroc"], [0.05, 0.95])
    assert (overall.low, overall.high) == pytest.approx(tuple(quantiles))
    far = np.quantile(drawn["range of deviations"], 0.9)
    estimate = own.headline["auroc_gap"]
    expected = (max(estimate - far, 0), estimate + far)
    assert (gap.low, gap.high) == pytest.approx(expected)
    assert gap.standard_error == pytest.approx(np.std(drawn["auroc_gap"], ddof=1))
    assert gap.n_valid == gap.n_resamples == 150
    assert report.n_clusters == len(set(clusters))


def test_no_comparison_is_further_off_than_its_groups_deviate(sample):
    """Why the interval of a worst group or a gap covers: the bound holds in every resample."""
    data = sample(4, n=300)
    split = Resampled(data.y, data.score, data.groups, patients(300), 0.4)
    weights = next(multiplicities(split.n_clusters, 300, 200, seed=1))
    values, deviations = split.values_and_deviations(weights)
    compared = {"auroc_gap", "worst_group_auroc", "worst_group_log_loss"}
    compared |= {"equalized_odds_difference", "demographic_parity_difference"}
    assert deviations.keys() >= compared | {f"{name}_by_attribute/sex" for name in compared}
    for name, far in deviations.items():
        off = np.abs(values[name] - split.estimates[name])
        assert (np.isnan(far) == np.isnan(off)).all()
        assert (off[~np.isnan(off)] <= far[~np.isnan(off)] + 1e-12).all(), name
        assert (far[~np.isnan(off)] > 0).any()


@pytest.mark.parametrize("aurocs", [[0.8, 0.8], [0.8] * 4, [0.85, 0.82, 0.78, 0.75]])
def test_intervals_cover_whether_groups_are_alike_or_not(aurocs):
    """Percentiles never hold a gap of 0; the module's docstring has larger simulations."""
    rng = np.random.default_rng(0)
    group, label = (
        np.repeat(np.arange(len(aurocs)), 200),
        np.tile([0, 0, 1, 0, 1], 40 * len(aurocs)),
    )
    sites = pd.DataFrame({"site": group})
    shift = np.sqrt(2) * norm.ppf(aurocs)[group]
    true = {"auroc_gap": np.ptp(aurocs), "worst_group_auroc": min(aurocs)}
    held = dict.fromkeys(true, 0)
    for seed in range(60):
        p = norm.cdf((rng.normal(size=len(label)) + label * shift) / 2)
        report = bootstrap_report(label, two_columns(p), sites, None, n_resamples=200, seed=seed)
        for name, value in true.items():
            held[name] += report[name].low <= value + 1e-12 and value <= report[name].high
    assert all(count >= 53 for count in held.values()), held  # of 60; 57 expected at the least


@pytest.mark.parametrize("good", [True, False])
def test_no_interval_leaves_what_its_figure_can_be(good):
    """Small groups that the model tells apart nearly always, or nearly never."""
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 40)
    p = np.where(y == (1 if good else 0), 0.7, 0.3) + rng.normal(0, 0.12, 80)
    groups = pd.DataFrame({"site": np.repeat(["a", "b", "c", "d"], 20)})
    report = bootstrap_report(y, two_columns(p.clip(0.01, 0.99)), groups, None, n_resamples=200)
    assert report["worst_group_log_loss"].high > (0.5 if good else 1)
    reached = {0.0: 0, 1.0: 0}
    for name, found in report.intervals.items():
        if "log_loss" not in name:
            assert 0 <= found.low <= found.estimate <= found.high <= 1, name
            reached[0.0] += found.low == 0
            reached[1.0] += found.high == 1
        else:
            assert 0 <= found.low <= found.estimate <= found.high, name
    assert reached[1.0 if good else 0.0] > 0
    pair = paired_bootstrap(
        y, two_columns(p.clip(0.01, 0.99)), two_columns(1 - p.clip(0.01, 0.99)), groups, None
    )
    difference = pair["worst_group_auroc"]
    assert difference.high < -0.5 if good else difference.low > 0.5
    assert (difference.low < 0) == good, "a difference has its sign"


def test_resamples_draw_as_many_patients_as_there_are_and_repeat_by_seed():
    blocks = list(multiplicities(50, 2**18, 100, seed=1))
    assert len(blocks) > 1  # the memory limit splits them
    weights = np.concatenate(blocks, axis=1)
    assert weights.shape == (50, 100)
    assert (weights.sum(axis=0) == 50).all()
    assert weights.var() == pytest.approx(1, abs=0.15)  # Poisson-like, not all ones
    again = np.concatenate(list(multiplicities(50, 2**18, 100, seed=1)), axis=1)
    other = np.concatenate(list(multiplicities(50, 2**18, 100, seed=2)), axis=1)
    assert (weights == again).all()
    assert (weights != other).any()


def test_images_of_one_patient_are_not_taken_for_independent(sample):
    data = sample(3, n=400)
    y, score = np.tile(data.y, 4), np.tile(data.score, (4, 1))
    groups = pd.concat([data.groups] * 4)
    once = bootstrap_report(data.y, data.score, data.groups, None, n_resamples=300)["auroc"]
    by_patient = bootstrap_report(y, score, groups, np.tile(np.arange(400), 4), n_resamples=300)
    by_image = bootstrap_report(y, score, groups, None, n_resamples=300)
    assert by_patient["auroc"].standard_error == pytest.approx(once.standard_error, abs=1e-12)
    assert by_image["auroc"].standard_error < 0.7 * once.standard_error


def test_tiny_group_gets_no_interval_and_its_valid_resamples_are_counted():
    rng = np.random.default_rng(0)
    y = np.r_[rng.integers(0, 2, 200), 0, 1, 1]
    p = np.r_[rng.random(200), 0.1, 0.8, 0.9]
    groups = pd.DataFrame({"site": ["a"] * 100 + ["b"] * 100 + ["tiny"] * 3})
    report = bootstrap_report(y, two_columns(p), groups, None, n_resamples=400)
    tiny = report["auroc_by_group/site.tiny"]
    assert tiny.estimate == 1.0
    assert 100 < tiny.n_valid < 300
    assert math.isnan(tiny.low)
    assert math.isnan(tiny.high)
    assert report["worst_group_auroc"].n_valid == tiny.n_valid
    assert report["auroc_by_group/site.a"].n_valid == 400
    assert not math.isnan(report["auroc"].low)


def test_group_that_the_split_does_not_define_is_undefined_but_others_are_compared():
    rng = np.random.default_rng(0)
    y = np.r_[rng.integers(0, 2, 200), np.ones(20, int)]
    groups = pd.DataFrame({"site": ["a"] * 100 + ["b"] * 100 + ["one_class"] * 20})
    score = two_columns(rng.random(220))
    report = bootstrap_report(y, score, groups, None, n_resamples=100)
    undefined = report["auroc_by_group/site.one_class"]
    assert undefined.n_valid == 0
    assert math.isnan(undefined.estimate)
    assert report["auroc_gap"].n_valid == 100
    assert report["equalized_odds_difference"].n_valid == 100
    assert report["auroc_gap"].estimate == evaluate(y, score, groups).headline["auroc_gap"]


def test_without_attributes_the_overall_figures_remain(sample):
    data = sample(0, n=100)
    report = bootstrap_report(data.y, data.score, data.groups[[]], None, n_resamples=50)
    assert set(report.intervals) == {"auroc", "accuracy", "balanced_accuracy", "log_loss"}


def test_standard_error_agrees_with_delong(sample):
    data = sample(4, n=1500)
    error = bootstrap_report(data.y, data.score, data.groups, None, n_resamples=1000)
    for name, rows in {
        "auroc": np.ones(1500, bool),
        "auroc_by_group/sex.male": (data.groups["sex"] == "male").to_numpy(),
    }.items():
        expected = delong_se(data.y[rows] == 1, data.score[rows, 1])
        assert error[name].standard_error == pytest.approx(expected, rel=0.12)


def test_delong_equals_its_definition(sample):
    data = sample(5, n=150)
    positive, score = data.y == 1, data.score[:, 1]
    a, b = score[positive], score[~positive]
    order = (a[:, None] > b) + 0.5 * (a[:, None] == b)  # all pairs
    variance = order.mean(1).var(ddof=1) / len(a) + order.mean(0).var(ddof=1) / len(b)
    assert delong_se(positive, score) == pytest.approx(np.sqrt(variance), rel=1e-12)
    assert math.isnan(delong_se([True, False, False], [0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match="NaN"):
        delong_se([True, False], [0.1, math.nan])


def test_a_model_does_not_differ_from_itself(sample):
    data = sample(6, n=300)
    report = paired_bootstrap(
        data.y, data.score, data.score, data.groups[["sex"]], patients(300), n_resamples=100
    )
    for difference in report.differences.values():
        assert difference.estimate == difference.low == difference.high == 0
        assert difference.standard_error == 0
        assert difference.p_value == difference.p_greater == difference.p_less == 1


def noisy(data, scale):
    logit = np.log(data.score[:, 1] / data.score[:, 0])
    logit = logit + scale * np.random.default_rng(9).normal(size=len(logit))
    return two_columns(1 / (1 + np.exp(-logit)))


def test_a_worse_model_is_found_and_swapping_turns_the_sign(sample):
    data = sample(7, n=1500)
    groups, clusters = data.groups[["sex"]], patients(1500)
    worse = noisy(data, 2.0)
    ab = paired_bootstrap(data.y, data.score, worse, groups, clusters, n_resamples=400)
    ba = paired_bootstrap(data.y, worse, data.score, groups, clusters, n_resamples=400)
    for name in ("auroc", "worst_group_auroc"):
        down, up = ab[name], ba[name]
        assert down.estimate == down.b - down.a < 0
        assert down.high < 0
        assert down.p_less == pytest.approx(1 / 401)
        assert down.p_value == pytest.approx(2 / 401)
        assert down.p_greater > 0.99
        assert down.low < down.lower_bound < down.estimate < down.upper_bound < down.high
        assert (up.low, up.high) == pytest.approx((-down.high, -down.low))
        assert (up.p_greater, up.p_less) == (down.p_less, down.p_greater)


def test_pairing_is_sharper_than_two_intervals(sample):
    data = sample(8, n=1000)
    close = noisy(data, 0.1)
    groups = data.groups[["sex"]]
    pair = paired_bootstrap(data.y, data.score, close, groups, None, n_resamples=300)["auroc"]
    alone = bootstrap_report(data.y, data.score, groups, None, n_resamples=300)["auroc"]
    assert pair.standard_error < 0.5 * alone.standard_error


def test_each_model_is_judged_at_its_own_threshold(sample):
    data = sample(9, n=500)
    report = paired_bootstrap(
        data.y,
        data.score,
        data.score,
        data.groups[["sex"]],
        None,
        threshold_a=0.2,
        threshold_b=0.6,
        n_resamples=50,
    )
    low = evaluate(data.y, data.score, data.groups, threshold=0.2).headline["accuracy"]
    high = evaluate(data.y, data.score, data.groups, threshold=0.6).headline["accuracy"]
    assert report["accuracy"].estimate == pytest.approx(high - low)
    assert report["auroc"].estimate == 0


def test_p_value_is_uniform_enough_under_no_difference():
    below = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = np.arange(150) % 2
        signal = y + rng.normal(size=150)
        a, b = (1 / (1 + np.exp(-(signal + rng.normal(size=150)))) for _ in range(2))
        groups = pd.DataFrame({"a": np.arange(150) // 2 % 2})
        report = paired_bootstrap(y, two_columns(a), two_columns(b), groups, None, n_resamples=200)
        below += report["auroc"].p_value < 0.1
    assert below <= 14  # 6 expected of 60; 15 and more has a chance below 0.1 %


def test_tables(sample):
    data = sample(0, n=200)
    groups = data.groups[["sex"]]
    table = bootstrap_report(data.y, data.score, groups, None, n_resamples=20).table()
    assert list(table.columns)[:5] == ["metric", "estimate", "low", "high", "standard_error"]
    assert "auroc_by_group/sex.female" in set(table["metric"])
    pairs = paired_bootstrap(data.y, data.score, data.score, groups, None, n_resamples=20).table()
    assert list(pairs["metric"]) == list(table["metric"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters": ["a", "b"]}, "2 clusters for 60 rows"),
        ({"clusters": [None] + ["a"] * 59}, "row 0 has no cluster"),
        ({"clusters": ["a"] * 59 + [math.nan]}, "row 59 has no cluster"),
        ({"clusters": ["a"] * 60}, "one cluster"),
        ({"n_resamples": 1}, "n_resamples is 1"),
        ({"level": 95}, "level is 95"),
        ({"y_score": np.full((60, 2), np.nan)}, "score nan"),
    ],
)
def test_bad_input_is_named(sample, changes, message):
    data = sample(0, n=60)
    given = {"y_true": data.y, "y_score": data.score, "groups": data.groups, "clusters": None}
    with pytest.raises(InputError, match=message):
        bootstrap_report(**(given | changes))


def test_two_thousand_resamples_of_ten_thousand_images_take_under_ten_seconds(sample):
    data = sample(0, n=10_000)
    other = noisy(data, 0.5)
    start = time.process_time()
    paired_bootstrap(data.y, data.score, other, data.groups, patients(10_000))
    assert time.process_time() - start < 20  # seconds of two cores
