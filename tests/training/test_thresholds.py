from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fairtune.errors import InputError
from fairtune.training.thresholds import decide_by_group


def sample(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Scores that separate classes equally well in two groups, but lie higher in one."""
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, 2, n), rng.integers(0, 2, n)
    logit = 1.5 * labels + 2.0 * groups - 1.75 + rng.normal(0, 0.8, n)
    positive = 1 / (1 + np.exp(-logit))
    return labels, np.stack([1 - positive, positive], 1), pd.DataFrame({"site": groups})


def rates(labels: np.ndarray, decisions: np.ndarray, groups: pd.DataFrame) -> np.ndarray:
    """True and false positive rate of each group, (2, 2)."""
    site = groups["site"].to_numpy()
    return np.array(
        [[decisions[(site == g) & (labels == y)].mean() for y in (1, 0)] for g in (0, 1)]
    )


def test_error_rates_are_alike_in_all_groups() -> None:
    labels, scores, groups = sample(20_000, 0)
    new_labels, new_scores, new_groups = sample(20_000, 1)
    decisions = decide_by_group(labels, scores, groups, new_scores, new_groups)
    before = rates(new_labels, (new_scores[:, 1] > 0.5).astype(int), new_groups)
    after = rates(new_labels, decisions, new_groups)
    assert np.abs(before[0] - before[1]).max() > 0.4
    assert np.abs(after[0] - after[1]).max() < 0.03


def test_a_seed_gives_the_same_decisions() -> None:
    labels, scores, groups = sample(200, 0)
    runs = [decide_by_group(labels, scores, groups, scores, groups, seed=s) for s in (0, 0, 1)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_what_cannot_be_decided_says_why() -> None:
    labels, scores, groups = sample(60, 0)
    other = groups.assign(site=groups["site"] + 1)
    with pytest.raises(InputError, match="no threshold was fitted for group '2'"):
        decide_by_group(labels, scores, groups, scores, other)
    with pytest.raises(InputError, match="group '0' has one class only"):
        decide_by_group(np.where(groups["site"] == 0, 1, labels), scores, groups, scores, groups)
    with pytest.raises(InputError, match="for two classes, the scores have 3"):
        decide_by_group(labels, np.ones((60, 3)), groups, scores, groups)
    with pytest.raises(InputError, match=r"unknown constraint 'equality' \(known: demographic"):
        decide_by_group(labels, scores, groups, scores, groups, constraint="equality")
