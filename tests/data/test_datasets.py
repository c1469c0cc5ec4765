"""The contract that every data set keeps, on small copies of the official downloads."""

from __future__ import annotations

import inspect
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairtune.data import DATASETS, Manifest, diagnose, load_dataset, open_store
from fairtune.data.references import ImageReader
from fairtune.errors import InputError

from .official import LAYOUTS

EVERY = sorted(DATASETS)
DOWNLOADED = sorted(set(DATASETS) - {"synthetic"})
MOST_READ = 200  # images of a data set, of which the generated one has many
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
def downloads(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Path | None, dict[str, Any]]]:
    made: dict[str, tuple[Path | None, dict[str, Any]]] = {"synthetic": (None, {})}
    for name in DOWNLOADED:
        folder = tmp_path_factory.mktemp(name)
        made[name] = (folder, LAYOUTS[name](folder))
    return made


@pytest.fixture
def loaded(request: pytest.FixtureRequest, downloads: Any) -> Manifest:
    folder, options = downloads[request.param]
    return load_dataset(request.param, folder, **options)


every = pytest.mark.parametrize("loaded", EVERY, indirect=True)
named = pytest.mark.parametrize("name", DOWNLOADED)


def test_all_data_sets_of_the_method_are_there() -> None:
    method = {"ham10000", "fitzpatrick17k", "papila", "chexpert", "ol3i", "oasis1"}
    assert method | {"harvard_gf3300", "folder"} <= set(DATASETS)
    assert set(DATASETS) <= set(LAYOUTS), "a new data set needs a small copy of its download"


@pytest.mark.parametrize("name", EVERY)
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
        for image in loaded.table["image"][:MOST_READ]:
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


@pytest.mark.parametrize("places", [("", ""), ("_part_1", "_part_2")])
def test_unpacked_images_are_the_same_data_set(places: tuple[str, str], tmp_path: Path) -> None:
    LAYOUTS["ham10000"](tmp_path)
    packed = load_dataset("ham10000", tmp_path).table.drop(columns="image")
    for part, place in zip("12", places, strict=True):
        archive = tmp_path / f"HAM10000_images_part_{part}.zip"
        shutil.unpack_archive(archive, tmp_path / f"HAM10000_images{place}")
        archive.unlink()
    unpacked = load_dataset("ham10000", tmp_path).table
    assert unpacked["image"].str.match(r"HAM10000_images(_part_\d)?/ISIC_\d+\.jpg$").all()
    assert unpacked.drop(columns="image").equals(packed)


def test_everything_in_one_large_folder(tmp_path: Path) -> None:
    LAYOUTS["ham10000"](tmp_path)
    packed = load_dataset("ham10000", tmp_path).table.drop(columns="image")
    for archive in tmp_path.glob("*.zip"):
        shutil.unpack_archive(archive, tmp_path)
        archive.unlink()
    (tmp_path / "HAM10000_metadata.csv").rename(tmp_path / "HAM10000_metadata")
    for number in range(1100):
        (tmp_path / f"more_{number}.jpg").touch()
    assert load_dataset("ham10000", tmp_path).table.drop(columns="image").equals(packed)


def test_harvard_gf3300_without_its_summary(tmp_path: Path) -> None:
    LAYOUTS["harvard_gf3300"](tmp_path)
    columns = ["label", "split", "race", "sex", "age_group"]
    with_summary = load_dataset("harvard_gf3300", tmp_path)
    (tmp_path / "data_summary.csv").unlink()
    without = load_dataset("harvard_gf3300", tmp_path)
    keyed = [m.table.set_index("patient")[columns].sort_index() for m in (with_summary, without)]
    assert keyed[0].equals(keyed[1])


def test_official_tables_may_say_none(tmp_path: Path) -> None:
    LAYOUTS["ol3i"](tmp_path)
    table = pd.read_csv(tmp_path / "clinical_data.csv", dtype=str, keep_default_na=False)
    table.loc[1, "label_1y"], table.loc[2, "sex"] = "NA", "None"
    table.to_csv(tmp_path / "clinical_data.csv", index=False)
    dropped = load_dataset("ol3i", tmp_path).provenance["dropped"]
    assert dropped == {"no label": 2, "no age or sex": 1}
    LAYOUTS["harvard_gf3300"](tmp_path)
    table = pd.read_csv(tmp_path / "data_summary.csv", dtype=str)
    table.loc[1, "ethnicity"] = "None"
    table.to_csv(tmp_path / "data_summary.csv", index=False)
    found = load_dataset("harvard_gf3300", tmp_path).table
    assert found.set_index("patient").loc["data_0002", "ethnicity"] == "unknown"


@pytest.mark.parametrize("whole", [True, False])
def test_harvard_gf3300_zipped_without_its_summary(whole: bool, tmp_path: Path) -> None:
    LAYOUTS["harvard_gf3300"](tmp_path)
    expected = load_dataset("harvard_gf3300", tmp_path).table
    (tmp_path / "data_summary.csv").unlink()
    for part in ("Training", "Validation", "Test"):
        with zipfile.ZipFile(tmp_path / ("GF3300.zip" if whole else f"{part}.zip"), "a") as archive:
            for path in (tmp_path / part).iterdir():
                archive.write(path, f"{part}/{path.name}" if whole else path.name)
        shutil.rmtree(tmp_path / part)
    zipped = load_dataset("harvard_gf3300", tmp_path)
    columns = ["label", "split", "race", "sex", "age_group"]
    keyed = [t.set_index("patient")[columns].sort_index() for t in (expected, zipped.table)]
    assert keyed[0].equals(keyed[1])
    findings = diagnose(zipped, least=0, progress=False)
    assert [f for f in findings if f.check in ("image", "duplicate")] == []


def test_papila_as_csv_is_the_same_data_set(tmp_path: Path) -> None:
    LAYOUTS["papila"](tmp_path)
    sheets = load_dataset("papila", tmp_path)
    for path in tmp_path.rglob("*.xlsx"):
        frame = pd.read_excel(path, header=None, skiprows=3).iloc[:, :4]
        header = ["ID", "Age", "Gender", "Diagnosis"]
        frame.to_csv(path.with_suffix(".csv"), index=False, header=header)
        path.unlink()
    assert load_dataset("papila", tmp_path).digest == sheets.digest


def test_oasis1_gives_several_images_a_subject(tmp_path: Path) -> None:
    options = LAYOUTS["oasis1"](tmp_path)
    more = load_dataset("oasis1", tmp_path, slices=2, **options)
    assert more.table.groupby("patient").size().unique().tolist() == [2]
    skull = load_dataset("oasis1", tmp_path, skull_stripped=False, **options)
    assert not skull.table["image"].str.contains("masked").any()


def test_chexpert_races(tmp_path: Path) -> None:
    LAYOUTS["chexpert"](tmp_path)
    manifest = load_dataset("chexpert", tmp_path)
    races = manifest.table.drop_duplicates("patient").set_index("patient")
    races = races[["race", "race_binary"]]
    assert races.loc["patient00001"].tolist() == ["Black", "non-White"]
    assert races.loc["patient00003"].tolist() == ["other", "non-White"]
    assert races.loc["patient00004"].tolist() == ["unknown", "unknown"]
    assert races.loc["patient00007"].tolist() == ["unknown", "unknown"]
    assert races.loc["patient00008"].tolist() == ["White", "White"]
    assert "patient00000" not in races.index, "no demographics"
    dropped = load_dataset("chexpert", tmp_path, unknown_race="drop")
    assert "unknown" not in set(dropped.table["race"])


def test_ol3i_labels_have_their_own_splits(tmp_path: Path) -> None:
    LAYOUTS["ol3i"](tmp_path)
    one, five = (load_dataset("ol3i", tmp_path, label=f"label_{years}y") for years in "15")
    assert (len(one), len(five)) == (39, 40)
    assert not one.table["split"].equals(five.table["split"].iloc[1:])
    assert one.table["image"].str.endswith("?window=-160,240").all(), "Hounsfield units"


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
