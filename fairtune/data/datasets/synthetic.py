"""Synthetic skin lesions: the embedded demo, generated on first use.

Task
    Benign or malignant. With `task=source`, another task of the same image model, on other people,
    to pre-train on: eighteen kinds of lesion.
Official page
    None: the data set is made by this file and `_lesions.py`.
Files
    None to download. The images are drawn into the cache, `synthetic/<hash of the options>/images.npy`,
    (N, size, size, 3) uint8, the same in every run of one NumPy on one machine.
Label rule
    The label is drawn first, a fair coin for each lesion, and moves seven visible properties of the
    lesion: lobed and jagged border, blotches, less network, redness, dark rim, one dark side. Each
    is `± effect + variation` in units of its own spread (`EFFECTS`, `VARIATION`), so that no image
    is certain: who knew the properties exactly would reach an AUROC of 0.98 in the majority and
    0.89 in the minority.
    The source task's label is the kind of lesion: border (round, lobed, long) by texture (plain,
    blotchy, network) by colour (brown, red); rim and dark side vary there, but mean nothing.
Sensitive attributes
    `age_group` (<=60: 75 % of people; >60: 25 %) and `sex` (even). Over 60 the
    rim and the dark side tell next to nothing of the label, lesions vary more, and the skin has
    more wrinkles and flush. Sex changes only the number of hairs.
Split rule
    By person, at random within each age group: 11 % train, 44.5 % validation, 44.5 % test. Training
    is small, as medical data sets are; the others are large, so that the minority's AUROC has a
    standard error of 0.02. The source task: 80/10/10.
Counts
    2,400 people with one to three lesions each: about 4,800 images (530 / 2,140 / 2,140), half of
    them malignant.
Licence
    Apache-2.0, as the rest of the package.
Citation
    None.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from filelock import FileLock
from pydantic import Field

from fairtune.data.cache import CACHE_VARIABLE, cache_dir
from fairtune.data.catalog import DATASETS
from fairtune.data.datasets._common import assemble, grouped
from fairtune.data.datasets._lesions import MOST_HAIRS, Lesions, draw
from fairtune.data.manifest import SPLITS, Manifest
from fairtune.errors import InputError
from fairtune.progress import progress_bar
from fairtune.seeding import seed as named_seed

_log = logging.getLogger(__name__)

FORMAT = 2
"""Rises whenever a pixel changes."""
MINORITY = 0.25
VARIATION = {"<=60": 1.0, ">60": 1.15}
"""Standard deviation of a property about its class's middle."""
SHARES = {"lesion": (0.11, 0.445, 0.445), "source": (0.8, 0.1, 0.1)}
EFFECTS = {
    "lobes": {"<=60": 0.45, ">60": 0.45},
    "jags": {"<=60": 0.45, ">60": 0.45},
    "blotches": {"<=60": 0.45, ">60": 0.45},
    "network": {"<=60": -0.42, ">60": -0.42},
    "redness": {"<=60": 0.42, ">60": 0.42},
    "rim": {"<=60": 0.9, ">60": 0.1},
    "asymmetry": {"<=60": 0.7, ">60": 0.1},
}
"""How far a lesion lies from the middle, up if malignant and down if benign, by age group."""
BORDERS = ("round", "lobed", "long")
TEXTURES = ("plain", "blotchy", "network")
COLOURS = ("brown", "red")
CHUNK = 256
"""Images drawn at once, each chunk with its own seed."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@DATASETS.register("synthetic")
def synthetic(
    source: Path | None = None,
    *,
    task: Literal["lesion", "source"] = "lesion",
    seed: Annotated[int, Field(ge=0)] = 0,
    n_patients: Annotated[int, Field(ge=50, le=100_000)] = 2400,
    size: Annotated[int, Field(ge=16, le=256)] = 48,
) -> Manifest:
    """Draw synthetic lesions; see the module for their law.

    Parameters
    ----------
    source
        Not read: there is nothing to download.
    task
        `lesion` is the data set, `source` the task to pre-train on.
    seed
        Of people, lesions and pixels. The two tasks share no draw, whatever their seeds.
    n_patients
        How many people; each has one to three lesions.
    size
        Height and width of the images, in pixels.
    """
    options = {"task": task, "seed": seed, "n_patients": n_patients, "size": size}
    people = _people(named_seed(seed, "synthetic", task, "people"), n_patients, SHARES[task])
    rng = np.random.default_rng(named_seed(seed, "synthetic", task, "lesions"))
    table = people.loc[people.index.repeat(rng.integers(1, 4, n_patients))]
    table = table.rename_axis("person").reset_index()
    if task == "lesion":
        classes = ["benign", "malignant"]
        label, lesions = _lesions(table, rng)
    else:
        classes = [f"{b}-{t}-{c}" for b in BORDERS for t in TEXTURES for c in COLOURS]
        label, lesions = _kinds(table, rng)
    table["label"] = label
    table["image"] = [f"images.npy::{row}" for row in range(len(table))]
    table["patient"] = table["person"].map("{:06d}".format)
    root = _drawn(lesions, size, named_seed(seed, "synthetic", task, "pixels"), options)
    return assemble("synthetic", root, table, classes, options=options)


def _people(seed: int, n: int, shares: tuple[float, float, float]) -> pd.DataFrame:
    """Draw people: attributes, split, and what all their images share."""
    rng = np.random.default_rng(seed)
    old, female = rng.random(n) < MINORITY, rng.random(n) < 0.5
    split = np.empty(n, dtype=object)
    for group in (old, ~old):
        rows = rng.permutation(np.flatnonzero(group))
        ends = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for name, part in zip(SPLITS, np.split(rows, ends), strict=True):
            split[part] = name
    return pd.DataFrame(
        {
            "split": split,
            "age_group": grouped(pd.Series(np.where(old, ">60", "<=60")), ["<=60", ">60"]),
            "sex": grouped(pd.Series(np.where(female, "female", "male")), ["female", "male"]),
            "skin": 0.15 + 0.35 * rng.beta(2, 3, n) + 0.05 * old,
            "flush": rng.uniform(0.1, 0.3, n) + 0.05 * old,
            "wrinkles": np.abs(rng.standard_normal(n)) * np.where(old, 0.25, 0.08),
            "hairiness": rng.gamma(2, 0.5, n) * np.where(female, 1.0, 2.0),
        }
    )


def _lesions(table: pd.DataFrame, rng: np.random.Generator) -> tuple[Ints, Lesions]:
    """Draw labels, and the lesions that they move."""
    n = len(table)
    label = rng.integers(0, 2, n)
    group = table["age_group"].astype(str)
    sign = 2 * label - 1
    variation = group.map(VARIATION).to_numpy()
    z = {
        name: sign * group.map(effect).to_numpy() + variation * rng.standard_normal(n)
        for name, effect in EFFECTS.items()
    }
    return label, _seen(
        table,
        rng,
        radius=np.clip(rng.normal(0.52, 0.08, n), 0.3, 0.75),
        elongation=np.exp(0.15 * rng.standard_normal(n)),
        lobes=0.10 * np.exp(0.45 * z["lobes"]),
        jags=0.035 * np.exp(0.6 * z["jags"]),
        blotches=0.22 * np.exp(0.5 * z["blotches"]),
        network=0.18 * np.exp(0.5 * z["network"]),
        rim=0.5 * z["rim"],
        asymmetry=0.45 * np.exp(0.5 * z["asymmetry"]),
        pigment=0.9 * np.exp(0.35 * rng.standard_normal(n)),
        redness=0.25 * np.exp(0.5 * z["redness"] + np.where(group == ">60", 0.3, 0.0)),
    )


def _kinds(table: pd.DataFrame, rng: np.random.Generator) -> tuple[Ints, Lesions]:
    """Draw the source task: the kind of lesion is the label."""
    n = len(table)
    border, texture = rng.integers(0, len(BORDERS), n), rng.integers(0, len(TEXTURES), n)
    colour = rng.integers(0, len(COLOURS), n)

    def spread(values: Floats, deviation: float = 0.3) -> Floats:
        return values * np.exp(deviation * rng.standard_normal(n))

    label = (border * len(TEXTURES) + texture) * len(COLOURS) + colour
    return label, _seen(
        table,
        rng,
        radius=np.clip(rng.normal(0.52, 0.1, n), 0.25, 0.8),
        elongation=spread(np.exp(0.5 * (border == 2)), 0.1),
        lobes=spread(np.where(border == 1, 0.3, 0.04)),
        jags=spread(np.full(n, 0.02), 0.5),
        blotches=spread(np.where(texture == 1, 0.6, 0.1)),
        network=spread(np.where(texture == 2, 0.6, 0.08)),
        rim=0.35 * rng.standard_normal(n),
        asymmetry=spread(np.full(n, 0.35), 0.5),
        pigment=spread(np.where(colour == 0, 1.1, 0.35)),
        redness=spread(np.where(colour == 0, 0.15, 1.0)),
    )


def _seen(table: pd.DataFrame, rng: np.random.Generator, **lesion: Floats) -> Lesions:
    """Put lesions on their people's skin, under a light of their own."""
    n = len(table)
    drawn = {
        **lesion,
        "x": rng.normal(0, 0.12, n),
        "y": rng.normal(0, 0.12, n),
        "softness": rng.uniform(0.03, 0.1, n),
        "skin": table["skin"].to_numpy(),
        "flush": table["flush"].to_numpy(),
        "wrinkles": table["wrinkles"].to_numpy(),
        "hairs": np.minimum(rng.poisson(table["hairiness"]), MOST_HAIRS),
        "exposure": np.clip(rng.normal(0.93, 0.06, n), 0.7, 1.1),
    }
    return Lesions(**{name: values.astype(np.float32) for name, values in drawn.items()})


def _drawn(lesions: Lesions, size: int, seed: int, options: Mapping[str, object]) -> Path:
    """Return the folder in the cache that holds the images; draw them if nobody has."""
    code = hashlib.sha256(json.dumps([FORMAT, options], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir() / "synthetic" / code
    path = folder / "images.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not path.is_file():
                _log.info("drawing %d synthetic images into %s", len(lesions), folder)
                partial = folder / "images.partial"
                with partial.open("wb") as file:
                    np.save(file, _all(lesions, size, seed))
                os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"cannot write synthetic images to {folder}: {error.strerror or error}; free "
            f"{len(lesions) * size * size * 3 / 1e6:,.0f} MB there, or name another folder "
            f"by {CACHE_VARIABLE}"
        ) from error
    return folder


def _all(lesions: Lesions, size: int, seed: int) -> npt.NDArray[np.uint8]:
    chunks = []
    starts = range(0, len(lesions), CHUNK)
    for start in progress_bar(
        starts, desc="drawing synthetic images", unit=f"{CHUNK} images", delay=2
    ):
        rng = np.random.default_rng(named_seed(seed, start))
        chunks.append(draw(lesions[start : start + CHUNK], size, rng))
    return np.concatenate(chunks)
