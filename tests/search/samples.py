"""A data set and a model so small that a whole search takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairtune.config import Config, parse_config

N_IMAGES = 200
SIDE = 16


def write_data(folder: Path, *, n: int = N_IMAGES, seed: int = 0) -> Path:
    """Write `images.npy` and a table: bright spots mark class 1, less clearly in group b."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    group = rng.choice(["a", "b"], n, p=[0.6, 0.4])
    images = rng.normal(110, 30, (n, SIDE, SIDE, 3))
    strength = np.where(group == "a", 40, 20)
    images[:, 4:10, 4:10] += (label * strength)[:, None, None, None]
    np.save(folder / "images.npy", images.clip(0, 255).astype(np.uint8))
    split = np.where(
        np.arange(n) < 0.5 * n, "train", np.where(np.arange(n) < 0.8 * n, "val", "test")
    )
    pd.DataFrame(
        {
            "image": [f"images.npy::{i}" for i in range(n)],
            "label": np.where(label == 1, "ill", "well"),
            "patient": [f"p{i:03d}" for i in range(n)],
            "ward": group,
            "split": split,
        }
    ).to_csv(folder / "manifest.csv", index=False)
    return folder


def tiny_config(**changes: Any) -> Config:
    """Return a configuration of seconds; `changes` are dotted keys with `__` for the dot."""
    raw: dict[str, Any] = {
        "seed": 3,
        "device": "cpu",
        "data": {
            "name": "folder",
            "attributes": ["ward"],
            "image_size": SIDE,
            "options": {
                "attributes": ["ward"],
                "patient_column": "patient",
                "split_column": "split",
                "positive": "ill",
            },
        },
        "model": {
            "architecture": "vit_tiny_patch16_224",
            "weights": "none",
            "options": {
                "img_size": SIDE,
                "patch_size": 8,
                "embed_dim": 24,
                "depth": 2,
                "num_heads": 2,
            },
        },
        "train": {"epochs": 2, "batch_size": 32, "learning_rate": 3e-3, "precision": "fp32"},
        "search": {
            "space": "auto_peft1",
            "trials": 6,
            "startup_trials": 5,
            "final": {"candidates": 2, "seeds": 2},
        },
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = raw
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return parse_config(raw, "tiny configuration")
