"""The generated data set: the same every time, by its law, and written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fairtune.data import Manifest, load_dataset
from fairtune.data.datasets import synthetic as module
from fairtune.data.datasets._lesions import Lesions, draw
from fairtune.errors import InputError

SMALL = {"n_patients": 60, "size": 24}


def pixels(manifest: Manifest) -> np.ndarray:
    return np.load(manifest.root / "images.npy", mmap_mode="r")


LOAD = """
import hashlib, json, sys
from fairtune.data import load_dataset
import numpy as np

manifest = load_dataset("synthetic", None, **json.loads(sys.argv[1]))
images = np.load(manifest.root / "images.npy")
print(manifest.digest + hashlib.sha256(images.tobytes()).hexdigest())
"""


def load_in(cache: Path) -> subprocess.Popen[str]:
    """Load in another process, in a cache that others may be filling; it prints a digest."""
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, json.dumps(SMALL)],
        env={**os.environ, "FAIRTUNE_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAIRTUNE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """The law alone, of many people, without images."""
    people = module._people(0, 20_000, module.SHARES["lesion"])
    return people.rename_axis("person").reset_index()


def test_a_row_is_its_image(cache: Path) -> None:
    manifest = load_dataset("synthetic", None, **SMALL)
    images = pixels(manifest)
    assert images.shape == (len(manifest), 24, 24, 3)
    assert images.dtype == np.uint8
    assert manifest.table["image"].tolist() == [f"images.npy::{i}" for i in range(len(manifest))]
    assert images.reshape(len(images), -1).std(axis=1).min() > 5


def test_two_processes_at_once_draw_the_same_images(tmp_path: Path) -> None:
    processes = [load_in(tmp_path / name) for name in ("a", "a", "b")]
    told = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(told) == 1
    assert len(list(tmp_path.glob("a/synthetic/*/images.npy"))) == 1
    assert not list(tmp_path.glob("*/synthetic/*/*.partial"))


@pytest.mark.parametrize("change", [{"seed": 1}, {"task": "source"}, {"n_patients": 61}])
def test_other_options_draw_other_images(cache: Path, change: dict[str, object]) -> None:
    one = load_dataset("synthetic", None, **SMALL)
    other = load_dataset("synthetic", None, **(SMALL | change))
    assert one.root != other.root
    first = {image.tobytes() for image in pixels(one)}
    assert first.isdisjoint(image.tobytes() for image in pixels(other))


def test_images_are_not_drawn_again(cache: Path) -> None:
    path = load_dataset("synthetic", None, **SMALL).root / "images.npy"
    before = path.stat().st_mtime_ns
    assert load_dataset("synthetic", None, **SMALL).root / "images.npy" == path
    assert path.stat().st_mtime_ns == before


def test_an_interrupted_drawing_leaves_nothing_that_passes_for_images(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_all", broken)
    with pytest.raises(InputError, match=r"No space left on device.*FAIRTUNE_CACHE"):
        load_dataset("synthetic", None, **SMALL)
    assert not list(cache.glob("synthetic/*/images.npy"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "'seed'"),
        ({"n_patients": 5}, "'n_patients'"),
        ({"size": 8}, "'size'"),
        ({"task": "lesoin"}, "'task'"),
        ({"patients": 99}, "did you mean 'n_patients'"),
    ],
)
def test_wrong_options_are_named(cache: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset("synthetic", None, **options)


def test_the_default_has_enough_of_the_minority_to_judge_it(table: pd.DataFrame) -> None:
    shares = table.groupby("split")["age_group"].value_counts(normalize=True).unstack()
    assert shares[">60"].to_numpy() == pytest.approx([module.MINORITY] * 3, abs=0.01)
    sizes = table["split"].value_counts(normalize=True)
    assert sizes[["train", "val", "test"]].to_numpy() == pytest.approx(
        [0.11, 0.445, 0.445], abs=1e-3
    )
    # Hanley and McNeil's standard error of an AUROC of 0.75 in the default's minority.
    each = 2400 * 0.445 * 2 * module.MINORITY / 2
    a = 0.75
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    variance = (a * (1 - a) + (each - 1) * (q1 + q2 - 2 * a * a)) / each**2
    assert variance**0.5 < 0.022


def test_the_label_moves_what_is_seen_and_the_minority_less(table: pd.DataFrame) -> None:
    label, lesions = module._lesions(table, np.random.default_rng(1))
    old = (table["age_group"] == ">60").to_numpy()
    for name, effect in module.EFFECTS.items():
        seen = getattr(lesions, name)
        seen = seen if name == "rim" else np.log(seen)

        def distance(group: np.ndarray, seen: np.ndarray = seen) -> float:
            """Return the two classes' difference in standard deviations (Cohen's d)."""
            benign, malignant = (seen[group & (label == y)] for y in (0, 1))
            return float((malignant.mean() - benign.mean()) / benign.std())

        for group, rows in (("<=60", ~old), (">60", old)):
            wanted = 2 * effect[group] / module.VARIATION[group]
            assert distance(rows) == pytest.approx(wanted, abs=0.12), (name, group)
    assert all(abs(by[">60"]) <= abs(by["<=60"]) for by in module.EFFECTS.values())
    female = (table["sex"] == "female").to_numpy()
    assert lesions.hairs[~female].mean() > 1.5 * lesions.hairs[female].mean()
    assert lesions.rim[female].mean() == pytest.approx(lesions.rim[~female].mean(), abs=0.05)


def test_a_dark_rim_is_seen_as_one() -> None:
    values = {
        "x": 0, "y": 0, "radius": 0.6, "elongation": 1, "softness": 0.03, "lobes": 0, "jags": 0,
        "blotches": 0, "network": 0, "rim": 0, "asymmetry": 0, "pigment": 0.9, "redness": 0.2,
        "skin": 0.2, "flush": 0.1, "wrinkles": 0, "hairs": 0, "exposure": 0.9,
    }  # fmt: skip
    columns = {name: np.full(2, value, np.float32) for name, value in values.items()}
    columns["rim"] = np.array([1.5, -1.5], np.float32)
    dark_rim, dark_centre = draw(Lesions(**columns), 48, np.random.default_rng(0)).mean(axis=3)
    centre, corner = np.s_[22:26, 22:26], np.s_[:4, :4]
    assert dark_rim[22:26, 12:14].mean() < dark_rim[centre].mean() - 20
    assert dark_centre[22:26, 12:14].mean() > dark_centre[centre].mean() + 20
    for image in (dark_rim, dark_centre):
        assert image[corner].mean() > image[22:26, 15:33].mean() + 20
