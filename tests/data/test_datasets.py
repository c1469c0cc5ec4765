"""The contract that every data set keeps, on small copies of the official downloads."""

from __future__ import annotations

import inspect
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairtune.data import DATASETS, Manifest, load_dataset, open_store
from fairtune.data.references import ImageReader
from fairtune.errors import InputError

from .official import LAYOUTS

DOWNLOADED = sorted(set(DATASETS) - {"synthetic"})
SLOTS = (
    "Task",
    "Official page",
    "Files",
    "Label rule",
    "Sensitive attributes",
    "Split rule",
    "Counts",
    "Licence",
    "Citation",
)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    made = {}
    for name in DOWNLOADED:
        folder = tmp_path_factory.mktemp(name)
        made[name] = (folder, LAYOUTS[name](folder))
    return made


@pytest.fixture
def loaded(request: pytest.FixtureRequest, downloads: Any) -> Manifest:
    folder, options = downloads[request.param]
    return load_dataset(request.param, folder, **options)


every = pytest.mark.parametrize("loaded", DOWNLOADED, indirect=True)
named = pytest.mark.parametrize("name", DOWNLOADED)


def test_all_data_sets_of_the_method_are_there() -> None:
    method = {"ham10000", "fitzpatrick17k", "papila", "chexpert", "ol3i", "oasis1"}
    assert method | {"harvard_gf3300", "folder"} <= set(DATASETS)
    assert set(DATASETS) <= set(LAYOUTS), "a new data set needs a small copy of its download"


@named
def test_docstring_has_every_slot_in_order(name: str) -> None:
    lines = inspect.getmodule(DATASETS[name]).__doc__.splitlines()  # type: ignore[union-attr]
    assert [line for line in lines if line in SLOTS] == list(SLOTS)


@named
def test_file_stays_short(name: str) -> None:
    module = sys.modules[DATASETS[name].__module__]
    assert len(inspect.getsource(module).splitlines()) <= 125


@every
def test_every_split_has_images_and_training_every_class(loaded: Manifest) -> None:
    for split in ("train", "val", "test"):
        assert len(loaded.rows(split)), split
    labels = loaded.table["label"].iloc[loaded.rows("train")]
    assert labels.nunique() == len(loaded.classes)


@every
def test_no_patient_is_in_two_splits(loaded: Manifest) -> None:
    assert loaded.table.groupby("patient")["split"].nunique().max() == 1


@every
def test_attributes_are_two_groups_at_least(loaded: Manifest) -> None:
    assert loaded.attributes
    for attribute in loaded.attributes:
        column = loaded.table[attribute]
        assert column.notna().all()
        assert column.nunique() == len(column.cat.categories), "an empty group"


@every
def test_every_image_is_read(loaded: Manifest) -> None:
    with ImageReader(loaded.root) as reader:
        for image in loaded.table["image"]:
            decoded = reader.read(image)
            assert decoded.dtype == np.uint8
            assert decoded.shape[2] == 3
            assert decoded.std() > 5, f"{image} is flat"


@every
def test_store_rows_are_manifest_rows(loaded: Manifest) -> None:
    store = open_store(loaded, 16, progress=False)
    assert store.images.shape == (len(loaded), 16, 16, 3)
    with ImageReader(loaded.root) as reader:
        first = reader.read(loaded.table["image"].iloc[0]).mean()
    assert abs(float(store.images[0].mean()) - float(first)) < 4


@every
def test_round_trip_keeps_digest(loaded: Manifest, tmp_path: Path) -> None:
    again = Manifest.load(loaded.save(tmp_path))
    assert again.digest == loaded.digest
    assert again.provenance == loaded.provenance


@named
def test_nested_one_level_is_the_same_data_set(name: str, downloads: Any, tmp_path: Path) -> None:
    if name == "folder":
        pytest.skip("own tables say where their images are")
    folder, options = downloads[name]
    shutil.copytree(folder, tmp_path / "download")
    outer, inner = load_dataset(name, tmp_path, **options), load_dataset(name, folder, **options)
    columns = ["label", "patient", "split", *inner.attributes]
    assert outer.table[columns].equals(inner.table[columns])


@named
def test_without_source_says_what_is_needed(name: str) -> None:
    with pytest.raises(InputError, match="--source"):
        load_dataset(name)


@named
def test_missing_folder_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_dataset(name, tmp_path / "nowhere")


@named
def test_empty_folder_says_what_was_looked_for(name: str, tmp_path: Path) -> None:
    options = {"attributes": ["a"]} if name == "folder" else {}
    with pytest.raises(InputError, match=r"looked for|no file"):
        load_dataset(name, tmp_path, **options)


@named
def test_unknown_option_lists_the_known(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allow_missing"):
        load_dataset(name, tmp_path, alow_missing=True)


@named
def test_option_of_wrong_type_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allow_missing"):
        load_dataset(name, tmp_path, allow_missing="perhaps")


@named
def test_missing_image_is_named_or_dropped(name: str, downloads: Any, tmp_path: Path) -> None:
    folder, options = downloads[name]
    whole = load_dataset(name, folder, **options)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    gone = whole.table["image"].iloc[-1]
    _remove(copy, gone)
    with pytest.raises(InputError, match="missing"):
        load_dataset(name, copy, **options)
    fewer = load_dataset(name, copy, **options, allow_missing=True)
    assert 0 < len(fewer) < len(whole)
    assert fewer.provenance["missing"]
    kept = whole.table.set_index("image")["split"].reindex(fewer.table["image"])
    assert (kept.to_numpy() == fewer.table["split"].to_numpy()).all() or name == "folder"


def _remove(root: Path, reference: str) -> None:
    path, _, member = reference.partition("::")
    if path.endswith(".zip"):
        import zipfile

        with zipfile.ZipFile(root / path) as old:
            rest = {n: old.read(n) for n in old.namelist() if n != member}
        with zipfile.ZipFile(root / path, "w") as new:
            for name, data in rest.items():
                new.writestr(name, data)
    elif path.endswith(".h5"):
        import h5py

        with h5py.File(root / path, "a") as file:
            del file[member.split("?")[0]]
    else:
        (root / path).unlink()
