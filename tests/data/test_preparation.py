"""Preparing and diagnosing: the counts that are shown, and what is found before training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fairtune.data import DATASETS, Finding, Manifest, diagnose, prepare
from fairtune.data.doctor import auroc_standard_error
from fairtune.errors import InputError

from .official import LAYOUTS, encoded, write

DOWNLOADED = sorted(set(DATASETS) - {"synthetic"})


@pytest.mark.parametrize("name", DOWNLOADED)
def test_prepare_every_data_set(name: str, tmp_path: Path) -> None:
    options = LAYOUTS[name](tmp_path)
    ready = prepare(name, tmp_path, size=16, options=options, progress=False)
    assert len(ready.store.images) == len(ready.manifest)
    assert ready.counts.loc[("all", "")].sum() == len(ready.manifest)
    for attribute in ready.manifest.attributes:
        assert ready.counts.loc[attribute].to_numpy().sum() == len(ready.manifest)
    assert ready.matches in (False, None), "a small copy does not have the published counts"


def test_counts_of_an_intersection_and_skipped_images(tmp_path: Path) -> None:
    options = LAYOUTS["folder"](tmp_path)
    write(tmp_path / "pictures" / "5.png", b"broken")
    attributes = ["site*years"]
    with pytest.raises(InputError, match=r"pictures/5\.png"):
        prepare("folder", tmp_path, size=16, options=options, attributes=attributes, progress=False)
    ready = prepare(
        "folder",
        tmp_path,
        size=16,
        options=options,
        attributes=attributes,
        on_bad_image="skip",
        save=tmp_path / "saved",
        progress=False,
    )
    assert ready.counts.loc["site*years"].index.tolist() == [
        "north*<=60",
        "north*>60",
        "south*<=60",
        "south*>60",
    ]
    assert ready.counts.to_numpy()[1:].sum() == 47
    assert ready.matches is None
    assert ready.notes() == ["1 left out: image bad, such as pictures/5.png"]
    saved = Manifest.load(tmp_path / "saved")
    assert saved.digest == ready.manifest.digest
    assert saved.provenance["skipped"][0]["image"] == "pictures/5.png"


def cohort(root: Path, n: int = 240) -> Manifest:
    """Make a data set with nothing wrong: 120 patients, both labels in each group and split."""
    for number in range(n):
        write(root / f"{number}.png", encoded(number, "PNG"))
    index = np.arange(n)
    table = pd.DataFrame(
        {
            "image": [f"{number}.png" for number in range(n)],
            "label": index // 2 % 2,
            "patient": [f"p{number // 2}" for number in range(n)],
            "split": np.repeat(["train", "val", "test"], n // 3),
            "kind": pd.Categorical(np.where(index // 4 % 2, "x", "y")),
        }
    )
    return Manifest("cohort", table, ("kind",), ("no", "yes"), root)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return cohort(tmp_path_factory.mktemp("cohort"))


def found(manifest: Manifest, **options: bool) -> list[Finding]:
    return diagnose(manifest, least=10, progress=False, **options)


def changed(manifest: Manifest, rows: slice, **columns: object) -> Manifest:
    table = manifest.table.copy()
    for name, value in columns.items():
        table.loc[rows, name] = value
    return Manifest("changed", table, manifest.attributes, manifest.classes, manifest.root)


def test_nothing_is_found_where_nothing_is_wrong(good: Manifest) -> None:
    assert found(good) == []


def test_one_class_and_small_groups(good: Manifest) -> None:
    table = good.table
    one = table.index[(table.split == "val") & (table.kind == "x") & (table.label == 1)]
    findings = found(good.keep(table.index.difference(one).to_numpy()), images=False)
    assert [(f.level, f.check) for f in findings] == [("error", "group")]
    assert findings[0].message.startswith("val, kind x: one class only (20 no, 0 yes)")
    few = found(good.keep(table.index.difference(one[4:]).to_numpy()), images=False)
    assert [(f.level, f.check) for f in few] == [("warning", "group")]
    assert "20 no, 4 yes: an AUROC of 0.8 would have a standard error of 0.14" in few[0].message


def test_empty_group_and_empty_split(good: Manifest) -> None:
    no_x = good.table.index[(good.table.split != "val") | (good.table.kind == "y")]
    assert ["kind x: no images" in f.message for f in found(good.keep(no_x), images=False)] == [
        True
    ]
    no_val = found(good.with_split(good.table.split.replace("val", "train")), images=False)
    assert [f.message for f in no_val] == ["val has no images"]
    one_label = changed(good, slice(160, 240), label=0)
    assert "test has no image of yes" in [f.message for f in found(one_label, images=False)]


def test_patient_in_two_splits(good: Manifest) -> None:
    shared = changed(good, slice(80, 81), patient="p0")
    (finding,) = found(shared, images=False)
    assert (finding.level, finding.check) == ("error", "patient")
    assert "'p0'" in finding.message


def test_bad_and_duplicate_images(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    write(tmp_path / "3.png", b"")
    write(tmp_path / "4.png", encoded(200, "PNG"))  # in training; number 200 is in the test split
    write(tmp_path / "9.png", encoded(10, "PNG"))  # number 10 has the other label
    findings = found(made)
    assert [(f.level, f.check) for f in findings] == [
        ("error", "image"),
        ("error", "duplicate"),
        ("error", "duplicate"),
        ("warning", "duplicate"),
    ]
    assert "1 images cannot be read, the first is 3.png: the file is empty" in findings[0].message
    assert "4.png and 200.png" in findings[1].message
    assert "9.png and 10.png" in findings[2].message
    assert found(made, images=False) == []


def test_missing_values_are_told(tmp_path: Path) -> None:
    LAYOUTS["ham10000"](tmp_path)
    messages = [f.message for f in found(prepare("ham10000", tmp_path, size=16).manifest)]
    assert any("no age" in message for message in messages)
    LAYOUTS["chexpert"](tmp_path)
    messages = [f.message for f in found(prepare("chexpert", tmp_path, size=16).manifest)]
    assert any(message.startswith("race: ") and "'unknown'" in message for message in messages)


def test_standard_error_is_that_of_simulation() -> None:
    rng = np.random.default_rng(0)
    shift = 1.19  # of two normal distributions, for an AUROC of 0.8
    aurocs = [
        roc_auc_score(
            np.repeat([0, 1], [200, 40]), np.r_[rng.normal(0, 1, 200), rng.normal(shift, 1, 40)]
        )
        for _ in range(500)
    ]
    assert abs(auroc_standard_error(0.8, 40, 200) - np.std(aurocs)) < 0.006
    assert math.isnan(auroc_standard_error(0.8, 0, 10))
