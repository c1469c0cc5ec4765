"""The real HAM10000 and the real table of Fitzpatrick17k, where they are at hand."""

from __future__ import annotations

import shutil
import time
import zipfile
from pathlib import Path

import pytest

from fairtune.data import load_dataset, open_store, prepare
from fairtune.data.references import ImageReader
from fairtune.errors import InputError

from .official import encoded


@pytest.fixture(scope="module")
def ham(shared_data: Path) -> Path:
    return shared_data / "ham10000"


def test_ham10000_has_the_official_counts(ham: Path) -> None:
    manifest = load_dataset("ham10000", ham)
    counts = [len(manifest.rows(split)) for split in ("train", "val", "test")]
    assert counts == [7967, 969, 1012]
    assert manifest.table["label"].sum() == 1438
    assert (manifest.table["age_group"] == ">60").sum() == 2799
    val = manifest.table.iloc[manifest.rows("val")].query("age_group == '>60'")
    assert (len(val), val["label"].sum()) == (297, 94)
    assert load_dataset("ham10000", ham, label="seven_class").classes[5] == "nv"
    assert load_dataset("ham10000", ham, label="malignant_with_bcc").table["label"].sum() > 1438


def test_ham10000_is_prepared_once(ham: Path, tmp_path: Path) -> None:
    ready = prepare("ham10000", ham, size=32, cache=tmp_path, progress=False)
    assert ready.matches is True
    start = time.perf_counter()
    again = prepare("ham10000", ham, size=32, cache=tmp_path, progress=False)
    assert time.perf_counter() - start < 2, "the second start is measured to be under 1 s"
    assert again.store.path == ready.store.path
    with ImageReader(ready.manifest.root) as reader:
        whole = reader.read(ready.manifest.table["image"].iloc[9000])
    assert abs(whole.mean() - ready.store.images[9000].mean()) < 1.5


def test_fitzpatrick17k_has_the_official_counts(shared_data: Path, tmp_path: Path) -> None:
    table = (shared_data / "fitzpatrick17k" / "fitzpatrick17k.csv").read_bytes()
    (tmp_path / "fitzpatrick17k.csv").write_bytes(table)
    names = [line.split(b",")[0].decode() for line in table.splitlines()[1:]]
    picture = encoded(1)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in names:
            archive.writestr(f"{name}.jpg", picture)
    manifest = load_dataset("fitzpatrick17k", tmp_path)
    assert len(manifest) == 16012
    assert manifest.table["label"].sum() == 2160
    assert manifest.table["skin_tone"].value_counts().to_dict() == {"light": 11063, "dark": 4949}
    assert manifest.provenance["dropped"] == {"no skin type": 565}


def test_fitzpatrick17k_with_dead_links(shared_data: Path, tmp_path: Path) -> None:
    shutil.copy(shared_data / "fitzpatrick17k" / "fitzpatrick17k.csv", tmp_path)
    rows = (tmp_path / "fitzpatrick17k.csv").read_text().splitlines()[1:]
    for row in rows[:300]:
        (tmp_path / f"{row.split(',')[0]}.jpg").write_bytes(encoded(1))
    with pytest.raises(InputError, match=r"of 16,012 images are missing.*allow_missing=true"):
        load_dataset("fitzpatrick17k", tmp_path)
    manifest = load_dataset("fitzpatrick17k", tmp_path, allow_missing=True)
    assert len(manifest) + len(manifest.provenance["missing"]) == 16012
    assert open_store(manifest, 16, progress=False).images.shape[0] == len(manifest)
