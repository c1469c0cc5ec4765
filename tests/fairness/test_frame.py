"""fairlearn's frames hold the same figures as our report."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fairtune.errors import InputError
from fairtune.fairness import evaluate
from fairtune.fairness.frame import metric_frames

BINARY = ("accuracy", "selection_rate", "tpr", "fpr")


def sample(n_classes: int = 2, n: int = 300) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, n_classes, n)
    scores = rng.dirichlet(np.ones(n_classes), n)
    groups = pd.DataFrame(
        {"ward": rng.choice(["<=60", ">60", "b & c"], n), "site": rng.choice([1, 2], n)}
    )
    return labels, scores, groups


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_frames_equal_the_report(threshold: float | None) -> None:
    labels, scores, groups = sample()
    report = evaluate(labels, scores, groups, threshold=threshold)
    frames = metric_frames(labels, scores, groups, threshold)
    assert list(frames) == ["ward", "site"]
    for attribute, cells in report.groups.items():
        by_group = frames[attribute].by_group
        assert sorted(by_group.index) == sorted(cells)
        for group, cell in cells.items():
            row = by_group.loc[group]
            assert row["count"] == cell.n
            for metric in BINARY:
                assert row[metric] == pytest.approx(cell.flat()[metric], abs=1e-12)
    overall = frames["ward"].overall
    for metric in BINARY:
        assert overall[metric] == pytest.approx(report.overall.flat()[metric], abs=1e-12)


def test_differences_equal_the_report() -> None:
    labels, scores, groups = sample()
    report = evaluate(labels, scores, groups, threshold=0.4)
    frames = metric_frames(labels, scores, groups, 0.4)
    for attribute, found in report.by_attribute.items():
        difference = frames[attribute].difference()
        assert difference["selection_rate"] == pytest.approx(found["demographic_parity_difference"])
        assert max(difference["tpr"], difference["fpr"]) == pytest.approx(
            found["equalized_odds_difference"]
        )


def test_a_rate_that_a_group_cannot_define_is_nan() -> None:
    labels = np.array([1, 1, 0, 1])
    scores = np.array([[0.2, 0.8], [0.7, 0.3], [0.4, 0.6], [0.1, 0.9]])
    groups = pd.DataFrame({"ward": ["a", "a", "b", "b"]})
    by_group = metric_frames(labels, scores, groups)["ward"].by_group
    assert math.isnan(by_group.loc["a", "fpr"])
    assert by_group.loc["a", "tpr"] == 0.5
    assert by_group.loc["b", "fpr"] == 1.0


def test_levels_without_rows_are_left_out() -> None:
    labels, scores, groups = sample()
    groups["ward"] = pd.Categorical(groups["ward"], ["<=60", ">60", "b & c", "nobody"])
    assert "nobody" not in metric_frames(labels, scores, groups)["ward"].by_group.index


def test_more_than_two_classes_have_accuracy_alone() -> None:
    labels, scores, groups = sample(n_classes=3)
    frame = metric_frames(labels, scores, groups)["site"]
    report = evaluate(labels, scores, groups)
    assert set(frame.by_group.columns) == {"accuracy", "count"}
    for group, cell in report.groups["site"].items():
        assert frame.by_group.loc[group, "accuracy"] == pytest.approx(cell.values["accuracy"])


def test_wrong_scores_are_refused() -> None:
    labels, scores, groups = sample()
    with pytest.raises(InputError, match="sum to"):
        metric_frames(labels, scores * 0.5, groups)
