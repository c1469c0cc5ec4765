"""From the columns of anyone's table to labels and groups, as a configuration says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from fairtune.data.tables import Table
from fairtune.errors import InputError

MOST_GROUPS = 20
UNKNOWN = "unknown"
Missing = Literal["fail", "drop", "unknown"]


class Attribute(BaseModel):
    """One sensitive attribute: which column, and how its values become groups."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    """The table's column."""
    bins: tuple[float, ...] | None = None
    """Edges between groups of numbers; each belongs to the group below: [60] is <=60 and >60."""
    names: tuple[str, ...] | None = None
    """Names of the groups that the bins make, one more than there are edges."""
    values: dict[str, str] | None = None
    """Groups by value, ignoring case; other values are refused."""


def as_labels(
    table: Table,
    column: str,
    positive: Sequence[str | int] | str | int | None,
    classes: Sequence[str | int] | None,
) -> tuple[pd.Series, list[str]]:
    """Return each row's label, 0..C-1, and the names of the C classes.

    `positive` names the values of the positive class of two; `classes` the values in order; without
    either each value is a class, in alphabetical order. What they name is never an empty cell.
    """
    if positive is not None and classes is not None:
        raise InputError("options 'positive' and 'classes' exclude each other")
    wanted = [positive] if isinstance(positive, str | int) else list(positive or ())
    text = table.text(column, named=[*wanted, *(classes or ())])
    if positive is not None:
        for value in wanted:
            if not text.eq(str(value)).any():
                known = ", ".join(sorted(text.unique())[:MOST_GROUPS])
                raise InputError(
                    f"{table.path}: no row has {value!r} in column {column!r} (it has: {known})"
                )
        chosen = text.isin([str(value) for value in wanted])
        for value in wanted:
            alike = text[~chosen & text.str.lower().eq(str(value).lower())]
            if len(alike):  # would count as negative
                raise table.differ_by_case(column, [str(value), alike.iloc[0]])
        codes = chosen.astype(int)
        if codes.all():
            raise InputError(f"{table.path}: column {column!r}: every row is positive")
        return codes, ["negative", "positive"]
    names = [str(value) for value in classes] if classes else sorted(text.unique())
    codes = table.choices(column, values={name: number for number, name in enumerate(names)})
    if len(names) < 2:
        raise InputError(f"{table.path}: column {column!r} holds one value only, {names[0]!r}")
    return codes.astype(int), names


def as_groups(table: Table, spec: Attribute, missing: Missing) -> pd.Series:
    """Return one attribute as a categorical column; empty cells as `missing` says."""
    name, required = table.column(spec.column), missing == "fail"
    if spec.bins:
        edges = [-np.inf, *spec.bins, np.inf]
        names = list(spec.names or _bin_names(spec.bins))
        if sorted(set(spec.bins)) != list(spec.bins) or len(names) != len(edges) - 1:
            raise InputError(
                f"attribute of column {name!r}: bins must rise, and {len(edges) - 1} groups need "
                f"as many names; got bins {list(spec.bins)} and names {names}"
            )
        column = pd.Series(pd.cut(table.numbers(name, required=required), edges, labels=names))
    elif spec.values is not None:
        values = {**spec.values}
        found = table.choices(name, values=values, required=required)
        column = found.astype(pd.CategoricalDtype(list(dict.fromkeys(values.values()))))
    else:
        column = table.text(name, required=required).astype("object").astype("category")
    if len(column.cat.categories) > MOST_GROUPS:
        raise InputError(
            f"{table.path}: column {name!r} has {len(column.cat.categories)} different values; "
            "give 'bins' if they are numbers, else 'values'"
        )
    if missing == "unknown" and column.isna().any():
        there = [group for group in column.cat.categories if str(group).lower() == UNKNOWN]
        if not there:
            column = column.cat.add_categories([UNKNOWN])
        column = column.fillna(there[-1] if there else UNKNOWN)  # sorted, lower case comes last
    return column


def _bin_names(bins: Sequence[float]) -> list[str]:
    inner = [f"{a:g}-{b:g}" for a, b in itertools.pairwise(bins)]
    return [f"<={bins[0]:g}", *inner, f">{bins[-1]:g}"]
