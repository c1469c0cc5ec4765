"""Preparing and diagnosing: the counts that are shown, and what is found before training."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from sklearn.metrics import roc_auc_score

from fairtune.cli import main
from fairtune.data import DATASETS, Finding, Manifest, diagnose, prepare
from fairtune.data.doctor import auroc_standard_error
from fairtune.data.references import ImageReader
from fairtune.data.splits import k_folds
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


def test_a_group_that_lacks_one_of_three_classes(good: Manifest) -> None:
    table = good.table.assign(label=np.arange(240) // 2 % 3)
    table["kind"] = pd.Categorical(np.where(np.arange(240) // 6 % 2, "x", "y"))
    three = Manifest("three", table, good.attributes, ("none", "mild", "severe"), good.root)
    assert found(three, images=False) == []
    for split, level in (("train", "warning"), ("val", "error"), ("test", "error")):
        gone = table.index[(table.split == split) & (table.kind == "x") & (table.label == 1)]
        (finding,) = found(three.keep(table.index.difference(gone).to_numpy()), images=False)
        assert (finding.level, finding.check) == (level, "group")
        start = f"{split}, kind x: no image of mild ("
        assert finding.message.startswith(start)


def test_folds_are_judged_instead_of_the_own_splits(good: Manifest) -> None:
    own = good.with_split(np.full(240, "train", dtype=object))
    assert {f.message for f in found(own, images=False)} == {
        "val has no images",
        "test has no images",
    }
    assert diagnose(own, least=5, folds=4, images=False, progress=False) == []
    # Twelve images of this kind, all of three patients, cannot be in val and test of four folds.
    table = good.table.copy()
    rare = table.index[:12]
    table["kind"] = pd.Categorical(np.where(table.index.isin(rare), "x", "y"))
    table.loc[rare, "patient"] = np.repeat(["a", "b", "c"], 4)
    few = Manifest("few", table, good.attributes, good.classes, good.root)
    every = diagnose(few, least=0, folds=4, images=False, progress=False)
    assert {f.level for f in every} == {"error"}
    assert all(f.message.startswith("fold") for f in every)
    assert any("test, kind x: no images" in f.message for f in every)
    for number, division in enumerate(k_folds(few, 4)):
        one = diagnose(few, least=0, folds=4, fold=number, images=False, progress=False)
        alone = diagnose(division, least=0, images=False, progress=False)
        assert [f.message for f in one] == [f"fold {number}: {f.message}" for f in alone]
        assert {(f.level, f.message.partition(": ")[2]) for f in one} <= {
            (f.level, f.message.partition(": ")[2]) for f in every
        }
    uneven = np.random.default_rng(0).random(120).repeat(2) < 0.3
    drawn = changed(good, slice(None), kind=pd.Categorical(np.where(uneven, "x", "y")))
    seeds = [
        diagnose(drawn, least=999, folds=4, fold_seed=seed, images=False, progress=False)
        for seed in range(4)
    ]
    assert any(other != seeds[0] for other in seeds[1:])


def test_images_are_read_once_for_all_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cohort(tmp_path, 60)
    splits = [fold.table["split"] for fold in k_folds(made, 3)]
    same = made.table["label"].eq(made.table["label"][4])
    other = int(np.flatnonzero(same & (splits[0] != splits[0][4]))[0])
    write(tmp_path / "4.png", encoded(other, "PNG"))
    read: list[str] = []
    real = ImageReader.read
    monkeypatch.setattr(
        ImageReader, "read", lambda self, name: (read.append(name), real(self, name))[1]
    )
    findings = diagnose(made, least=0, folds=3, progress=False)
    assert sorted(read) == sorted(made.table["image"])
    repeats = [f for f in findings if f.check == "duplicate"]
    assert [f.level for f in repeats] == ["error", "warning"]
    apart = [str(number) for number, split in enumerate(splits) if split[4] != split[other]]
    told = f"folds {', '.join(apart)}: 1 images occur more than once"
    assert repeats[0].message.startswith(told)
    assert "4.png" in repeats[0].message


def test_images_that_are_skipped_are_a_warning_and_not_counted(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    val = made.table[(made.table.split == "val") & (made.table.kind == "x")]
    for name in val[val.label == 1]["image"]:
        write(tmp_path / name, b"")
    failed = diagnose(made, least=10, progress=False)
    assert [(f.level, f.check) for f in failed] == [("error", "image")]
    skipped = diagnose(made, least=10, on_bad_image="skip", progress=False)
    assert [(f.level, f.check) for f in skipped] == [("error", "group"), ("warning", "image")]
    assert skipped[0].message.startswith("val, kind x: one class only (20 no, 0 yes)")
    assert "20 images cannot be read and are left out, the first is" in skipped[1].message
    for name in made.table["image"]:
        write(tmp_path / name, b"")
    none_left = diagnose(made, least=10, on_bad_image="skip", progress=False)
    assert [(f.level, f.check) for f in none_left] == [("error", "image")]


def test_empty_group_and_empty_split(good: Manifest) -> None:
    no_x = good.table.index[(good.table.split != "val") | (good.table.kind == "y")]
    assert ["kind x: no images" in f.message for f in found(good.keep(no_x), images=False)] == [
        True
    ]
    no_val = found(good.with_split(good.table.split.replace("val", "train")), images=False)
    assert [f.message for f in no_val] == ["val has no images"]
    one_label = changed(good, slice(160, 240), label=0)
    assert "test has no image of yes" in [f.message for f in found(one_label, images=False)]


def test_an_attribute_of_one_group_compares_nothing(good: Manifest) -> None:
    table = good.table.assign(kind=pd.Categorical(["x"] * len(good.table)))
    same = Manifest("same", table, good.attributes, good.classes, good.root)
    (finding,) = found(same, images=False)
    assert (finding.level, finding.check) == ("error", "attribute")
    assert "all images are of the group 'x', so nothing is compared" in finding.message


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


@pytest.fixture
def configuration(tmp_path: Path) -> tuple[Path, Path]:
    """Write a configuration of own data, of which one image is bad; returns it and the folder."""
    folder = tmp_path / "own"
    folder.mkdir()
    options = LAYOUTS["folder"](folder)
    write(folder / "pictures" / "5.png", b"broken")
    data = {"name": "folder", "options": options, "attributes": ["site"], "image_size": 16}
    config = {"data": data, "model": {"architecture": "resnet18"}, "search": {"space": "fullft"}}
    return write(tmp_path / "own.yaml", json.dumps(config)), folder


def fairtune(command: str, config: Path, source: Path, *arguments: str) -> Result:
    given = ["--config", str(config), "--source", str(source)]
    return CliRunner().invoke(main, [command, *given, *arguments])


def test_doctor_judges_what_a_search_of_the_configuration_would_use(
    configuration: tuple[Path, Path],
) -> None:
    config, source = configuration

    def doctor(*overrides: str) -> str:
        given = [word for override in overrides for word in ("-o", override)]
        return fairtune("doctor", config, source, "--no-machine", *given).stdout

    assert "error   image      1 images cannot be read, the first is pictures/5.png" in doctor()
    skipped = doctor("data.on_bad_image=skip")
    assert "warning image      1 images cannot be read and are left out" in skipped
    assert "fold" not in skipped
    every = doctor("data.folds=3", "data.on_bad_image=skip")
    assert set(", ".join(re.findall(r"folds? ([\d, ]+): ", every)).split(", ")) == {"0", "1", "2"}
    one = doctor("data.folds=3", "data.fold=1", "data.fold_seed=7", "data.on_bad_image=skip")
    assert set(re.findall(r"folds? ([\d, ]+): ", one)) == {"1"}


def test_prepare_takes_on_bad_image_of_the_configuration_unless_it_is_given(
    configuration: tuple[Path, Path],
) -> None:
    config, source = configuration
    failed = fairtune("prepare", config, source)
    assert failed.exit_code == 2
    assert "leave it out with -o data.on_bad_image=skip (prepare: --on-bad-image skip)" in str(
        failed.stderr
    )
    assert fairtune("prepare", config, source, "--on-bad-image", "skip").exit_code == 0
    text = config.read_text().replace('"image_size"', '"on_bad_image": "skip", "image_size"')
    skips = write(config.with_name("skips.yaml"), text)
    assert json.loads(fairtune("prepare", skips, source).stdout.splitlines()[-1])["images"] == 47
    assert fairtune("prepare", skips, source, "--on-bad-image", "fail").exit_code == 2


def test_rows_without_an_image_are_left_out_by_what_the_message_names(
    configuration: tuple[Path, Path],
) -> None:
    config, source = configuration
    (source / "pictures" / "5.png").unlink()
    named = "-o data.options.allow_missing=true (prepare: --on-missing-image skip)"
    for command in ("prepare", "doctor"):
        told = fairtune(command, config, source)
        assert told.exit_code == 2
        assert f"leave their rows out with {named}" in told.stderr
    assert fairtune("prepare", config, source, "--on-missing-image", "skip").exit_code == 0
    option = ("-o", "data.options.allow_missing=true")
    done = fairtune("doctor", config, source, "--no-machine", *option)
    assert "1 rows were left out, as they have no image" in done.stdout


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
