"""From columns of sensitive attributes to named groups of rows, and intersections of attributes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairtune.errors import InputError
from fairtune.fairness.naming import slugs

SEPARATOR = "*"


@dataclass(frozen=True, eq=False)
class Grouping:
    """The groups of one attribute: `codes` (N,) index into `names`; a name may have no row."""

    attribute: str
    names: tuple[str, ...]
    codes: NDArray[np.intp]


def groupings(groups: pd.DataFrame, n_rows: int) -> tuple[Grouping, ...]:
    """Read every column of `groups` as an attribute.

    Parameters
    ----------
    groups
        `n_rows` rows in the order of the labels (its index is not looked at), one column per
        attribute. The levels of a categorical column are groups even when they have no row.

    Raises
    ------
    InputError
        Wrong type or length, a missing value (with row and column), two attributes or two groups
        that would be logged under one name.
    """
    if not isinstance(groups, pd.DataFrame):
        raise InputError(
            f"groups must be a DataFrame with a column per attribute, not {type(groups).__name__}"
        )
    if len(groups) != n_rows:
        raise InputError(f"groups has {len(groups)} rows for {n_rows} labels")
    slugs("attributes", [str(column) for column in groups.columns])
    return tuple(_grouping(str(name), groups.iloc[:, i]) for i, name in enumerate(groups.columns))


def _grouping(attribute: str, column: pd.Series) -> Grouping:
    missing = np.flatnonzero(column.isna().to_numpy())
    if missing.size:
        raise InputError(
            f"attribute {attribute!r} has no value in {missing.size} of {len(column)} rows "
            f"(first: row {missing[0]}): drop these rows or give them a group of their own"
        )
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = [str(level) for level in column.cat.categories]
        codes = column.cat.codes.to_numpy()
    else:
        codes, levels = pd.factorize(column.to_numpy())
        names = [str(level) for level in levels]
        order = _order(levels)
        names = [names[i] for i in order]
        codes = np.argsort(order)[codes]
    slugs(f"groups of {attribute!r}:", names)
    return Grouping(attribute, tuple(names), codes.astype(np.intp))


def _order(levels: NDArray[np.generic]) -> NDArray[np.intp]:
    try:
        return np.argsort(levels, kind="stable")
    except TypeError:  # values of several types have no order of their own
        return np.argsort([str(level) for level in levels], kind="stable")


def with_intersections(groups: pd.DataFrame, intersections: Iterable[str]) -> pd.DataFrame:
    """Add a categorical column for every intersection such as ``"age_group*sex"``.

    Its groups are the combinations that occur, in the order of the attributes' own groups. Call it
    on the table of all splits, so that each split knows the same groups.

    Raises
    ------
    InputError
        An intersection of fewer than two attributes, or of one that `groups` has no column for.
    """
    result = groups.copy()
    for spec in intersections:
        parts = [part.strip() for part in spec.split(SEPARATOR)]
        if len(parts) < 2 or len(set(parts)) < len(parts):
            raise InputError(
                f"intersection {spec!r} must join different attributes by {SEPARATOR!r}"
            )
        unknown = [part for part in parts if part not in groups.columns]
        if unknown:
            known = ", ".join(map(str, groups.columns))
            raise InputError(f"intersection {spec!r}: no attribute {unknown[0]!r} (known: {known})")
        result[SEPARATOR.join(parts)] = _intersect(groupings(groups[parts], len(groups)))
    return result


def _intersect(parts: tuple[Grouping, ...]) -> pd.Categorical[str]:
    sizes = tuple(len(part.names) for part in parts)
    cells = np.ravel_multi_index(tuple(part.codes for part in parts), sizes)
    present, codes = np.unique(cells, return_inverse=True)
    names = [
        SEPARATOR.join(part.names[i] for part, i in zip(parts, index, strict=True))
        for index in zip(*np.unravel_index(present, sizes), strict=True)
    ]
    return pd.Categorical.from_codes(codes, categories=pd.Index(names))
