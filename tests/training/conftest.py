"""A small task that a small model can learn, made here."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from fairtune.training import Augment, ImageSpec, Recipe, Split

SIZE = 32


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_split(name: str, n: int, seed: int) -> Split:
    """Bright or dark squares: class 1 is brighter; group b is noisier."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    groups = rng.integers(0, 2, n)
    level = 110 + 40 * labels
    noise = rng.normal(0, 12 + 25 * groups, n)
    images = np.clip((level + noise)[:, None, None, None], 0, 255) + np.zeros((n, SIZE, SIZE, 3))
    return Split(
        name=name,
        images=images.astype(np.uint8),
        rows=np.arange(n),
        labels=labels.astype(np.int64),
        groups=pd.DataFrame({"site": pd.Categorical.from_codes(groups, ["a", "b"])}),
        patients=np.arange(n),
        references=np.array([f"{i}.png" for i in range(n)]),
        classes=("dark", "bright"),
    )


@pytest.fixture(scope="module")
def train() -> Split:
    return make_split("train", 96, 0)


@pytest.fixture(scope="module")
def val() -> Split:
    return make_split("val", 64, 1)


@pytest.fixture
def spec() -> ImageSpec:
    return ImageSpec(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        epochs=2, batch_size=16, learning_rate=3e-3, augment=Augment(crop_scale=(0.5, 1.0))
    )
