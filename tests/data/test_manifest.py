"""The manifest: what it refuses, what it counts, that it survives the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairtune.data import Manifest
from fairtune.errors import InputError


def table(**changes: Any) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "image": ["a.png", "b.png", "c.png", "d.png"],
        "label": [0, 1, 1, 0],
        "patient": ["p", "q", "r", "s"],
        "split": ["train", "train", "val", "test"],
        "tall": pd.Categorical(["yes", "no", "yes", "no"], ["yes", "no"]),
        "shoe": pd.Categorical(["41", "42", "42", "42"]),
    }
    return pd.DataFrame(columns | changes)


def manifest(root: Path = Path("here"), **changes: Any) -> Manifest:
    return Manifest("toy", table(**changes), ("tall", "shoe"), ("well", "ill"), root)


def test_rows_and_groups_of_a_split() -> None:
    toy = manifest()
    assert toy.rows("train").tolist() == [0, 1]
    assert toy.groups("val").to_dict("list") == {"tall": ["yes"], "shoe": ["42"]}
    assert len(toy.groups()) == len(toy) == 4
    with pytest.raises(InputError, match=r"'valid'.*did you mean 'val'"):
        toy.rows("valid")


def test_counts_name_empty_cells() -> None:
    counts = manifest().counts()
    assert list(counts.columns) == ["split", "label", "attribute", "group", "n"]
    assert counts.groupby("attribute")["n"].sum().to_dict() == {"tall": 4, "shoe": 4}
    cell = counts[
        (counts.split == "test")
        & (counts.label == "ill")
        & (counts.attribute == "tall")
        & (counts.group == "no")
    ]
    assert cell["n"].tolist() == [0]


def test_intersection_has_the_pairs_that_occur() -> None:
    both = manifest().select(["tall*shoe", "tall"])
    assert both.attributes == ("tall*shoe", "tall")
    assert list(both.table["tall*shoe"].cat.categories) == ["yes*41", "yes*42", "no*42"]
    assert both.table["tall*shoe"].tolist() == ["yes*41", "no*42", "yes*42", "no*42"]


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["tal"], "did you mean 'tall'"),
        (["tall*size"], "'size'"),
        (["tall", "tall"], "twice"),
        (["tall*tall"], "twice"),
    ],
)
def test_selecting_nonsense_is_refused(names: list[str], what: str) -> None:
    with pytest.raises(InputError, match=what):
        manifest().select(names)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"image": ["a.png", "b.png", "a.png", "d.png"]}, r"row 2, column 'image': 'a.png' occurs"),
        ({"image": ["a.png", None, "c.png", "d.png"]}, r"row 1, column 'image'.*missing"),
        ({"label": [0, 1, 2, 0]}, r"row 2, column 'label': .*2.* is no index"),
        ({"label": [0, 1, -1, 0]}, r"row 2, column 'label'"),
        ({"label": ["0", "1", "1", "0"]}, "integers"),
        ({"split": ["train", "train", "valid", "test"]}, r"row 2, column 'split': 'valid'"),
        ({"patient": ["p", None, "r", "s"]}, r"row 1, column 'patient'"),
        ({"tall": pd.Categorical(["yes", None, "no", None])}, r"row 1, column 'tall'.*2 such rows"),
        ({"extra": 1}, "columns are"),
    ],
)
def test_bad_tables_are_refused_by_row_and_column(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        manifest(**changes)


def test_empty_table_and_one_class_are_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        Manifest("toy", table().iloc[:0], ("tall", "shoe"), ("well", "ill"), Path())
    with pytest.raises(InputError, match="two or more"):
        Manifest("toy", table(label=0), ("tall", "shoe"), ("well",), Path())


def test_digest_follows_content_alone() -> None:
    assert manifest().digest == manifest(Path("elsewhere")).digest
    assert manifest().digest != manifest(label=[1, 1, 1, 0]).digest
    assert manifest().digest != manifest(split=["train", "val", "val", "test"]).digest
    other_classes = Manifest("toy", table(), ("tall", "shoe"), ("ill", "well"), Path())
    assert manifest().digest != other_classes.digest


def test_digest_is_the_same_in_another_process() -> None:
    code = "from tests.data.test_manifest import manifest; print(manifest().digest)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": "17", "PATH": "/usr/bin:/bin"},
    )
    assert found.stdout.strip() == manifest().digest


def test_save_and_load(tmp_path: Path) -> None:
    toy = manifest(tmp_path).select(["tall*shoe"])
    again = Manifest.load(toy.save(tmp_path / "saved"))
    assert again.digest == toy.digest
    assert again.classes == toy.classes
    assert again.root == tmp_path
    pd.testing.assert_frame_equal(again.table, toy.table)
    assert Manifest.load(tmp_path / "saved", root="moved").root == Path("moved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "manifest.json",
        "manifest.parquet",
    ]


def test_load_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    manifest().save(tmp_path / "a")
    manifest(label=[1, 1, 1, 0]).save(tmp_path / "b")
    (tmp_path / "a" / "manifest.parquet").replace(tmp_path / "b" / "manifest.parquet")
    with pytest.raises(InputError, match="do not belong together"):
        Manifest.load(tmp_path / "b")
    with pytest.raises(InputError, match="no readable manifest"):
        Manifest.load(tmp_path / "a")


def test_load_refuses_damaged_files(tmp_path: Path) -> None:
    folder = manifest().save(tmp_path)
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(facts)[:-9])
    with pytest.raises(InputError, match="no readable manifest"):
        Manifest.load(folder)


def test_keep_and_with_split() -> None:
    toy = manifest().keep(np.array([True, False, True, True]), skipped=["b.png"])
    assert toy.table["image"].tolist() == ["a.png", "c.png", "d.png"]
    assert toy.provenance["skipped"] == ["b.png"]
    assert toy.with_split(np.array(["val", "val", "test"])).rows("train").size == 0
