"""Random predictions, among them the awkward ones: ties, tiny groups, missing classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest


@dataclass(frozen=True)
class Sample:
    y: np.ndarray
    score: np.ndarray
    groups: pd.DataFrame


def draw(seed: int, n: int = 600, n_classes: int = 2) -> Sample:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    logits = rng.normal(size=(n, n_classes)).round(1)  # rounding makes ties
    logits[np.arange(n), y] += 0.7
    score = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    groups = pd.DataFrame(
        {
            "sex": rng.choice(["female", "male"], n),
            "age": rng.choice(["<=60", ">60", "80+"], n, p=[0.6, 0.37, 0.03]),
        }
    )
    return Sample(y, score, groups)


@pytest.fixture
def sample() -> Callable[..., Sample]:
    return draw
