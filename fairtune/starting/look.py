"""What a folder of images with a table looks like: which column holds what.

Columns are told from their values and from words that tables use everywhere. Which columns are
sensitive attributes is never guessed: the person who asks must say it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairtune.data.columns import MOST_GROUPS
from fairtune.data.datasets.folder import SPLITS as SPLIT_WORDS
from fairtune.data.images import ImageError
from fairtune.data.layout import IMAGE_SUFFIXES
from fairtune.data.references import MEMBER, ImageReader
from fairtune.data.tables import Table, read_table
from fairtune.errors import InputError

TABLES = (".csv", ".tsv", ".xlsx", ".parquet")
LOOKED_AT = 20
EVEN_ENOUGH = 0.8
"""Share of the most even cut's smaller half that a rounder cut must keep."""
LABEL = re.compile(r"(^|_)(label|target|class|diagnosis|dx|outcome|y)($|_)", re.I)
PATIENT = re.compile(r"(patient|subject|person|participant|case|lesion)", re.I)
POSITIVE = ("1", "yes", "true", "positive", "malignant", "abnormal", "disease", "ill")


@dataclass(frozen=True)
class Column:
    """One column of the table, as far as a question about it needs to know."""

    name: str
    n_values: int
    n_empty: int
    numeric: bool
    example: str
    edge: float
    """Of numbers: what cuts them in two halves, near their median; NaN of others."""

    def __str__(self) -> str:
        kind = "numbers" if self.numeric and self.n_values > MOST_GROUPS else "values"
        empty = f", {self.n_empty:,} empty" if self.n_empty else ""
        return f"{self.name} ({self.n_values:,} {kind}, such as {self.example!r}{empty})"


@dataclass(frozen=True)
class Sight:
    """What a folder with a table looks like.

    Attributes
    ----------
    root
        The folder that image references are relative to: the given one, or one inside it.
    table
        The table's path.
    columns
        Its columns by name.
    image, label, patient, split
        The columns that seem to hold these; None where none does.
    suffix
        What must be appended to the image column.
    side
        Median of the shorter sides of some images, in pixels.
    """

    root: Path
    table: Path
    n_rows: int
    columns: Mapping[str, Column]
    image: str | None
    label: str | None
    patient: str | None
    split: str | None
    suffix: str = ""
    side: int = 0

    @property
    def candidates(self) -> list[Column]:
        """The columns that could be sensitive attributes: few values, or numbers."""
        used = {self.image, self.label, self.patient, self.split}
        return [
            column
            for column in self.columns.values()
            if column.name not in used
            and column.n_values > 1
            and (column.n_values <= MOST_GROUPS or column.numeric)
        ]


def look(source: Path, table: str = "") -> Sight:
    """Look at a folder and its table.

    Raises
    ------
    InputError
        No folder, no table, several tables of which none was named, or a table without rows.
    """
    if not source.is_dir():
        raise InputError(f"no folder {str(source)!r}: --source is the folder with your images")
    path = _table(source, table)
    read = read_table(path)
    columns = {name: _column(read, name) for name in read.columns}
    image, root, suffix = _images(source, read)
    used = {image}
    patient = _first(columns, PATIENT, used)
    split = next((n for n in columns if n not in used and _is_split(read, n)), None)
    label = _label(columns, {image, patient, split})
    side = _side(root, read, image, suffix) if image else 0
    rows = len(read.text(next(iter(columns)), required=False))
    return Sight(root, path, rows, columns, image, label, patient, split, suffix, side)


def label_values(sight: Sight, label: str) -> list[str]:
    """Return the values of the label column, most frequent first."""
    text = read_table(sight.table).text(label)
    return [str(value) for value in text.value_counts().index]


def likely_positive(values: Sequence[str]) -> str | None:
    """Return which of two label values means that the condition is there, if words tell."""
    known = [value for value in values if value.lower() in POSITIVE]
    return known[0] if len(values) == 2 and len(known) == 1 else None


def edges_of(sight: Sight, text: str) -> tuple[str, tuple[float, ...]]:
    """Read ``COLUMN`` or ``COLUMN:EDGE,EDGE``; numbers without edges are cut at their median.

    Raises
    ------
    InputError
        The column is not in the table, or an edge is no number.
    """
    name, mark, edges = text.rpartition(":")
    if not mark or name not in sight.columns:
        name, edges = text, ""
    if name not in sight.columns:
        raise InputError(
            f"{sight.table} has no column {name!r} (columns: {', '.join(sight.columns)})"
        )
    if edges:
        try:
            return name, tuple(float(edge) for edge in edges.split(","))
        except ValueError:
            raise InputError(
                f"--attribute {text!r}: edges are numbers, as in {name}:40,60"
            ) from None
    column = sight.columns[name]
    return name, ((column.edge,) if column.numeric and column.n_values > 6 else ())


def _table(source: Path, name: str) -> Path:
    if name:
        for path in (source / name, Path(name)):
            if path.is_file():
                return path
        raise InputError(f"no table {name!r}, neither in {source} nor here")
    found = sorted(p for p in source.iterdir() if p.suffix.lower() in TABLES)
    if len(found) == 1:
        return found[0]
    listed = ", ".join(path.name for path in found) or "none"
    kinds = ", ".join(TABLES)
    raise InputError(f"{source}: name the table with --table (tables of {kinds} there: {listed})")


def _column(read: Table, name: str) -> Column:
    text = read.text(name, required=False)
    known = text.dropna()
    numbers = pd.to_numeric(known, errors="coerce")
    numeric = bool(len(known)) and bool(numbers.notna().all())
    return Column(
        name=name,
        n_values=int(known.nunique()),
        n_empty=int(text.isna().sum()),
        numeric=numeric,
        example=str(known.iloc[0]) if len(known) else "",
        edge=_edge(numbers) if numeric else float("nan"),
    )


def _edge(numbers: pd.Series) -> float:
    """Return the roundest number near the median that cuts about as evenly as can be."""
    numbers = numbers[np.isfinite(numbers)]
    if numbers.empty:
        return float("nan")
    median = float(numbers.median())
    below_highest = float(numbers[numbers < numbers.max()].max())
    edges = (round(median), float(f"{median:.3g}"), median, below_highest)
    smaller = [min((numbers <= edge).sum(), (numbers > edge).sum()) for edge in edges]
    return next(
        edge for edge, n in zip(edges, smaller, strict=True) if n >= EVEN_ENOUGH * max(smaller)
    )


def _images(source: Path, read: Table) -> tuple[str | None, Path, str]:
    """Find the column whose values are images, the folder they are relative to, and the suffix."""
    roots = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    best: tuple[int, str | None, Path, str] = (0, None, source, "")
    for name in read.columns:
        values = read.text(name, required=False).dropna().head(LOOKED_AT).tolist()
        for root in roots:
            for suffix in ("", *IMAGE_SUFFIXES):
                # Not Path.is_file: it raises where a text is longer than a file name can be.
                there = sum(os.path.isfile(root / f"{v}{suffix}".split(MEMBER)[0]) for v in values)
                if there > best[0]:
                    best = (there, name, root, suffix)
    return best[1:]


def _first(columns: Mapping[str, Column], words: re.Pattern[str], used: set[Any]) -> str | None:
    return next((name for name in columns if name not in used and words.search(name)), None)


def _is_split(read: Table, name: str) -> bool:
    values = set(read.text(name, required=False).dropna().str.lower().unique())
    return len(values) > 1 and values <= set(SPLIT_WORDS)


def _label(columns: Mapping[str, Column], used: set[Any]) -> str | None:
    fit = {n: c for n, c in columns.items() if 1 < c.n_values <= MOST_GROUPS and n not in used}
    return _first(fit, LABEL, used)


def _side(root: Path, read: Table, column: str, suffix: str) -> int:
    """Return the median shorter side of some images in pixels; 0 when none can be read."""
    references = (read.text(column).head(LOOKED_AT) + suffix).tolist()
    return int(np.median([*_sides(root, references)] or [0]))


def _sides(root: Path, references: Sequence[str]) -> Iterator[int]:
    with ImageReader(root) as reader:
        for reference in references:
            try:
                yield min(reader.read(reference).shape[:2])
            except (
                ImageError
            ):  # `fairtune doctor` names each bad image; here one is only not looked at
                continue
