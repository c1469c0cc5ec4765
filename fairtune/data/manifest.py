"""The manifest: one validated table that says what a data set is."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairtune.errors import InputError
from fairtune.registry import unknown_name

SPLITS = ("train", "val", "test")
COLUMNS = ("image", "label", "patient", "split")
INTERSECTION = "*"
_TABLE_FILE = "manifest.parquet"
_FACTS_FILE = "manifest.json"


@dataclass(frozen=True, eq=False)
class Manifest:
    """Images with their labels, patients, splits and sensitive attributes.

    Parameters
    ----------
    name
        The data set's name.
    table
        One row an image: `image` (a reference relative to `root`, see `fairtune.data.references`),
        `label` (int, an index into `classes`), `patient` (images that must stay in one split),
        `split` (train, val or test), then one categorical column per attribute.
    attributes
        Names of the attribute columns, in the table's order.
    classes
        Names of the labels; with two classes the second is the positive one.
    root
        The folder that image references are resolved against.
    provenance
        Plain JSON values: where the table came from, what was dropped, and why.

    Raises
    ------
    InputError
        If the table breaks one of these rules; names the row and the column.
    """

    name: str
    table: pd.DataFrame
    attributes: tuple[str, ...]
    classes: tuple[str, ...]
    root: Path
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", tuple(self.attributes))
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "table", _validated(self))

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of table and classes: the same in every process, wherever the files lie."""
        return _digest(self.table, list(self.classes))

    def rows(self, split: str) -> np.ndarray:
        """Return the positions of a split's rows, ascending, shape (n,), int64."""
        _check_split(split)
        return np.flatnonzero(self.table["split"].to_numpy() == split)

    def groups(self, split: str | None = None) -> pd.DataFrame:
        """Return the attribute columns of one split (of all rows without one), index 0..n-1."""
        columns = self.table[list(self.attributes)]
        if split is not None:
            columns = columns.iloc[self.rows(split)]
        return columns.reset_index(drop=True)

    def counts(self) -> pd.DataFrame:
        """Count images: columns `split, label, attribute, group, n`, with zeros for empty cells."""
        labels = pd.Categorical.from_codes(self.table["label"].to_numpy(), pd.Index(self.classes))
        split = pd.Categorical(self.table["split"], list(SPLITS))
        parts = []
        for attribute in self.attributes:
            groups = self.table[attribute].array
            cells = pd.DataFrame({"split": split, "label": labels, "group": groups})
            count = cells.groupby(["split", "label", "group"], observed=False).size()
            part = count.rename("n").reset_index()
            part.insert(2, "attribute", attribute)
            parts.append(part.astype({"split": str, "label": str, "group": str}))
        if not parts:
            return pd.DataFrame(columns=["split", "label", "attribute", "group", "n"])
        return pd.concat(parts, ignore_index=True)

    def select(self, attributes: Sequence[str]) -> Manifest:
        """Return the manifest with these attributes only, in this order.

        `a*b` is the intersection of `a` and `b`: a group `x*y` for each pair that occurs.

        Raises
        ------
        InputError
            For an unknown or repeated attribute; lists the known ones.
        """
        columns = {name: self._column(name) for name in attributes}
        if len(columns) != len(attributes):
            raise InputError(f"an attribute is named twice in {list(attributes)}")
        table = pd.concat([self.table[list(COLUMNS)], pd.DataFrame(columns)], axis=1)
        return replace(self, table=table, attributes=tuple(attributes))

    def with_split(self, split: np.ndarray) -> Manifest:
        """Return the manifest with other splits; `split` has shape (N,) of train, val, test."""
        return replace(self, table=self.table.assign(split=np.asarray(split, dtype=object)))

    def keep(self, rows: np.ndarray, **provenance: Any) -> Manifest:
        """Return the manifest with these rows only; notes go to the provenance."""
        table = self.table.iloc[rows].reset_index(drop=True)
        return replace(self, table=table, provenance={**self.provenance, **provenance})

    def save(self, folder: Path | str) -> Path:
        """Write `manifest.parquet` and `manifest.json`; a crash leaves the old files or the new."""
        folder = Path(folder)
        facts = {
            "name": self.name,
            "attributes": self.attributes,
            "classes": self.classes,
            "root": str(self.root.absolute()),
            "digest": self.digest,
            "provenance": dict(self.provenance),
        }
        text = json.dumps(facts, indent=2, ensure_ascii=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(folder / _TABLE_FILE, lambda path: self.table.to_parquet(path, index=False))
            _replace(folder / _FACTS_FILE, lambda path: path.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot write the manifest to {folder}: {error}") from error
        return folder

    @classmethod
    def load(cls, folder: Path | str, root: Path | str | None = None) -> Manifest:
        """Read what `save` wrote; `root` says where the images lie now, if they moved.

        Raises
        ------
        InputError
            If a file is missing or unreadable, or the two do not belong together.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / _FACTS_FILE).read_text(encoding="utf-8"))
            table = pd.read_parquet(folder / _TABLE_FILE)
            manifest = cls(
                name=facts["name"],
                table=table,
                attributes=tuple(facts["attributes"]),
                classes=tuple(facts["classes"]),
                root=Path(root if root is not None else facts["root"]),
                provenance=facts["provenance"],
            )
        except InputError as error:
            raise InputError(f"{folder / _TABLE_FILE}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder} holds no readable manifest: {error}") from error
        if manifest.digest != facts.get("digest"):
            raise InputError(
                f"{folder}: {_TABLE_FILE} and {_FACTS_FILE} do not belong together; prepare again"
            )
        return manifest

    def _column(self, name: str) -> pd.Series:
        if name in self.attributes:  # an intersection that was made before is one, too
            return self.table[name]
        parts = name.split(INTERSECTION)
        for part in parts:
            if part not in self.attributes:
                raise unknown_name("attribute", part, self.attributes)
        if len(set(parts)) != len(parts):
            raise InputError(f"attribute {name!r} names one attribute twice")
        column = self.table[parts[0]]
        for part in parts[1:]:
            column = _cross(column, self.table[part])
        return column.rename(name)


def _cross(left: pd.Series, right: pd.Series) -> pd.Series:
    """Cross two categorical columns; only pairs that some row has become groups."""
    lefts, rights = left.cat.categories, right.cat.categories
    cells = left.cat.codes.to_numpy().astype(np.int64) * len(rights) + right.cat.codes.to_numpy()
    present, codes = np.unique(cells, return_inverse=True)
    pairs = (divmod(int(cell), len(rights)) for cell in present)
    names = [f"{lefts[a]}{INTERSECTION}{rights[b]}" for a, b in pairs]
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(names)), index=left.index)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)


def _validated(manifest: Manifest) -> pd.DataFrame:
    """Return the table with its exact types and a plain index, or say what is wrong with it."""
    table, where = manifest.table, f"manifest of {manifest.name!r}"
    expected = [*COLUMNS, *manifest.attributes]
    if list(table.columns) != expected:
        raise InputError(f"{where}: columns are {list(table.columns)}, not {expected}")
    if len(table) == 0:
        raise InputError(f"{where}: the table has no rows")
    if len(manifest.classes) < 2 or len(set(manifest.classes)) != len(manifest.classes):
        raise InputError(f"{where}: needs two or more different classes, got {manifest.classes}")
    table = table.reset_index(drop=True)
    for column in expected:
        _refuse(where, column, table[column], table[column].isna(), "is missing")
    image, label = table["image"].astype(str), table["label"]
    _refuse(where, "image", image, image.duplicated(), "occurs twice")
    if not pd.api.types.is_integer_dtype(label.dtype):
        raise InputError(f"{where}: column 'label' must hold integers, not {label.dtype}")
    outside = (label < 0) | (label >= len(manifest.classes))
    _refuse(where, "label", label, outside, f"is no index into {list(manifest.classes)}")
    split = table["split"].astype(str)
    _refuse(where, "split", split, ~split.isin(SPLITS), f"is not one of {list(SPLITS)}")
    columns: dict[str, Any] = {
        "image": image,
        "label": label.astype(np.int64),
        "patient": table["patient"].astype(str),
        "split": split,
    }
    for name in manifest.attributes:
        columns[name] = _as_groups(table[name])
    return pd.DataFrame(columns)


def _as_groups(column: pd.Series) -> pd.Series:
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(str).astype("category")
    return column.cat.rename_categories([str(group) for group in column.cat.categories])


def _refuse(where: str, column: str, values: pd.Series, bad: pd.Series, what: str) -> None:
    rows = np.flatnonzero(bad.to_numpy())
    if len(rows):
        more = f" ({len(rows)} such rows)" if len(rows) > 1 else ""
        value = values.iloc[rows[0]]
        raise InputError(f"{where}: row {rows[0]}, column {column!r}: {value!r} {what}{more}")


def _digest(table: pd.DataFrame, facts: list[str]) -> str:
    sha = hashlib.sha256(json.dumps(facts).encode())
    for name in table.columns:
        column = table[name]
        sha.update(json.dumps([name, column.astype(object).tolist()]).encode())
    return sha.hexdigest()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name beside `path`, then rename it into place."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
