"""Reading the tables that come with images, and saying exactly what is wrong with them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairtune.errors import InputError

_DELIMITERS = ",;\t|"
_SNIFFED = 1 << 16
EMPTY = ("", "nan", "na", "n/a", "#n/a", "<na>", "null")
"""Texts of an empty cell, ignoring case: nothing, and what programs write for it. All else is a value."""
NO_VALUE = (*EMPTY, "none")
"""The same for numbers, which none of them is, and for tables whose owners write so."""


class Table:
    """A table as it was read, which knows its file, so that errors name file, row and column.

    Rows are numbered as a spreadsheet shows them: the header is row 1.

    Parameters
    ----------
    frame
        All values as text, missing ones as NaN.
    path
        The file.
    first_row
        The number of the first data row in the file.
    empty
        The texts that count as an empty cell, in lower case.
    """

    def __init__(
        self, frame: pd.DataFrame, path: Path, first_row: int = 2, empty: Sequence[str] = EMPTY
    ) -> None:
        self.frame = frame
        self.path = path
        self.first_row = first_row
        self.empty = empty
        self.columns = [str(name) for name in frame.columns]

    def __len__(self) -> int:
        return len(self.frame)

    def error(self, row: int, column: str, what: str) -> InputError:
        """Build an error about one cell; `row` is a position."""
        return InputError(f"{self.path}: row {row + self.first_row}, column {column!r}: {what}")

    def differ_by_case(self, column: str, values: Sequence[str]) -> InputError:
        """Build an error about values of a column that differ by case alone."""
        told = " and ".join(map(repr, values))
        return InputError(
            f"{self.path}: column {column!r}: {told} differ by case alone; write them alike in the "
            "table, or name one of them ('classes', 'values'), which stands for all"
        )

    def column(self, *names: str) -> str:
        """Return the first of these columns that the table has, ignoring case; refuse if none."""
        known = {name.lower(): name for name in self.columns}
        for name in names:
            if name.lower() in known:
                return known[name.lower()]
        raise InputError(
            f"{self.path}: no column {' or '.join(map(repr, names))} "
            f"(it has: {', '.join(self.columns)})"
        )

    def has(self, name: str) -> bool:
        """Tell whether the table has a column, ignoring case."""
        return name.lower() in {column.lower() for column in self.columns}

    def text(self, *names: str, required: bool = True, named: Iterable[object] = ()) -> pd.Series:
        """Return a column as stripped text; with `required`, an empty cell is refused.

        Texts in `named`, which somebody spelt out as values, are never taken for empty cells.
        """
        known = {str(value).lower() for value in named}
        return self._text(names, required, [text for text in self.empty if text not in known])

    def _text(self, names: Sequence[str], required: bool, empty: Sequence[str]) -> pd.Series:
        name = self.column(*names)
        values = self.frame[name].astype("string").str.strip()
        values = values.mask(values.str.lower().isin(["", *empty]))
        if required and values.isna().any():
            raise self.error(int(np.argmax(values.isna())), name, "is empty")
        return values

    def unique(self, *names: str) -> pd.Series:
        """Return a column of ids: none empty, none twice."""
        values = self.text(*names)
        repeated = values.duplicated()
        if repeated.any():
            row = int(np.argmax(repeated))
            raise self.error(row, self.column(*names), f"{values.iloc[row]!r} occurs twice")
        return values

    def numbers(
        self,
        *names: str,
        least: float = -np.inf,
        most: float = np.inf,
        required: bool = False,
    ) -> pd.Series:
        """Return a column of numbers, NaN where empty; refuse text and what is out of bounds."""
        text = self._text(names, required, NO_VALUE)
        values = pd.to_numeric(text, errors="coerce").astype(float)
        name = self.column(*names)
        wrong = (text.notna() & values.isna()).to_numpy(bool)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise self.error(row, name, f"{text.iloc[row]!r} is not a number")
        outside = ((values < least) | (values > most)).to_numpy(bool)
        if outside.any():
            row = int(np.argmax(outside))
            raise self.error(row, name, f"{text.iloc[row]!r} is not within {least:g} to {most:g}")
        return values

    def choices(self, *names: str, values: Mapping[str, Any], required: bool = True) -> pd.Series:
        """Return a column with each text replaced by what `values` maps it to, ignoring case.

        Empty cells stay missing unless `required`; a text that is not in `values` is refused, as a
        misspelt one would otherwise be lost in silence. So are two of `values` that differ by case
        alone, of which one would never be found.
        """
        text = self.text(*names, required=required, named=values)
        lower: dict[str, Any] = {}
        for key, value in values.items():
            if lower.setdefault(str(key).lower(), value) != value:
                alike = [str(k) for k in values if str(k).lower() == str(key).lower()]
                raise self.differ_by_case(self.column(*names), alike)
        found = text.str.lower().map(lower)
        wrong = (text.notna() & ~text.str.lower().isin(list(lower))).to_numpy(bool)
        if wrong.any():
            row = int(np.argmax(wrong))
            known = ", ".join(map(str, values))
            raise self.error(row, self.column(*names), f"{text.iloc[row]!r} is not one of: {known}")
        return found

    def where(self, keep: pd.Series | np.ndarray) -> np.ndarray:
        """Return a mask as plain booleans, missing as False."""
        return np.asarray(pd.Series(keep).fillna(False), dtype=bool)


def read_table(
    path: Path,
    *,
    only: Sequence[str] | None = None,
    sheet_header: Sequence[str] | None = None,
    skip: int = 0,
    empty: Sequence[str] = EMPTY,
) -> Table:
    """Read CSV (any usual delimiter, with or without BOM, any line ends), Excel or Parquet as text.

    Parameters
    ----------
    path
        The file; the kind is told from its suffix, CSV if there is none that is known.
    only
        The columns of a large CSV that are wanted; others need not be held in memory.
    sheet_header
        Names for the columns of an Excel sheet whose own header is of no use.
    skip
        Header rows of that sheet.
    empty
        As in `Table`.

    Raises
    ------
    InputError
        If the file is missing, empty, of one column only or no table.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".xlsx", ".xls"):
            frame = _read_excel(path, sheet_header, skip)
        elif suffix in (".parquet", ".pq"):
            # Whole numbers beside empty cells are stored as floats: 1.0 is the label "1".
            frame = pd.read_parquet(path).convert_dtypes()
        else:
            frame = _read_csv(path, only)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"no file {path}") from None
    except Exception as error:  # each parser has errors of its own
        raise InputError(f"{path}: no readable table ({' '.join(str(error).split())})") from None
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise InputError(f"{path}: column {repeated[0]!r} occurs twice")
    if len(frame) == 0:
        raise InputError(f"{path}: the table has no rows")
    return Table(frame, path, 2 if sheet_header is None else skip + 1, empty)


def _read_csv(path: Path, only: Sequence[str] | None) -> pd.DataFrame:
    with path.open("rb") as file:
        start = file.read(_SNIFFED).removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    if not start.strip():
        raise InputError(f"{path}: the file is empty")
    header = re.split(r"[\r\n]", start.decode("utf-8", errors="replace"), maxsplit=1)[0]
    delimiter = max(_DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark))))
    wanted = None if only is None else {name.lower() for name in only}

    def read(encoding: str, errors: str) -> pd.DataFrame:
        return pd.read_csv(
            path,
            sep=delimiter,
            dtype=str,
            keep_default_na=False,
            usecols=None if wanted is None else lambda name: str(name).strip().lower() in wanted,
            encoding=encoding,
            encoding_errors=errors,
        )

    try:
        return read("utf-8-sig", "strict")
    except UnicodeDecodeError:  # what spreadsheets write where they do not write UTF-8
        return read("cp1252", "replace")


def _read_excel(path: Path, names: Sequence[str] | None, skip: int) -> pd.DataFrame:
    try:
        import openpyxl  # noqa: F401
    except ImportError:
        raise InputError(f"{path} needs openpyxl: pip install 'fairtune[medical]'") from None
    whole = names is None
    frame = pd.read_excel(
        path,
        header=0 if whole else None,
        skiprows=0 if whole else skip,
        dtype=str,
        keep_default_na=False,
        na_values=[""],
    )
    if names is None:
        return frame
    frame = frame.iloc[:, : len(names)]
    if frame.shape[1] < len(names):
        raise InputError(f"{path}: {frame.shape[1]} columns, not {', '.join(names)}")
    frame.columns = pd.Index(list(names))
    return frame
