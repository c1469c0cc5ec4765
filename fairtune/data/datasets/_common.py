"""What the data sets share: groups of ages, spellings of sex, and putting a manifest together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairtune.data.manifest import Manifest
from fairtune.errors import InputError

OLDEST = 120
SEX = {"male": "male", "m": "male", "female": "female", "f": "female"}
_BAND_EDGES = (0, 20, 40, 60, 80, np.inf)
_BANDS = ("0-19", "20-39", "40-59", "60-79", "80+")


def age_group(ages: pd.Series, threshold: float = 60) -> pd.Series:
    """Two groups, `<=60` and `>60`; missing stays missing."""
    names = [f"<={threshold:g}", f">{threshold:g}"]
    return pd.Series(pd.cut(ages, [-np.inf, threshold, np.inf], labels=names), index=ages.index)


def age_band(ages: pd.Series) -> pd.Series:
    """Five bands: 0-19, 20-39, 40-59, 60-79, 80+; missing stays missing."""
    return pd.Series(pd.cut(ages, _BAND_EDGES, right=False, labels=list(_BANDS)), index=ages.index)


def grouped(values: pd.Series, order: Sequence[str]) -> pd.Series:
    """Make a column categorical with its groups in a given order."""
    return pd.Series(pd.Categorical(values, categories=list(order)), index=values.index)


def assemble(
    name: str,
    root: Path,
    table: pd.DataFrame,
    classes: Sequence[str],
    *,
    options: Mapping[str, Any],
    dropped: Mapping[str, int] | None = None,
    official: Mapping[str, int] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Manifest:
    """Put a manifest together from a table that has its columns, in any order, and more.

    Parameters
    ----------
    name, root, classes
        As in `Manifest`.
    table
        Columns `image, label, patient, split` and, as categoricals, the attributes.
    options
        The data set's options, for the provenance.
    dropped
        How many rows were dropped, by reason.
    official
        Published image counts by split (or "all"), where these options have such.
    notes
        Further provenance.
    """
    if len(table) == 0:
        raise InputError(f"data set {name!r}: no image is left of {dict(dropped or {})}")
    attributes = tuple(
        str(column)
        for column in table.columns
        if isinstance(table[column].dtype, pd.CategoricalDtype)
    )
    columns = ["image", "label", "patient", "split", *attributes]
    ordered = table[columns].reset_index(drop=True)
    for attribute in attributes:
        ordered[attribute] = ordered[attribute].cat.remove_unused_categories()
    provenance: dict[str, Any] = {
        "options": dict(options),
        "dropped": {reason: int(n) for reason, n in (dropped or {}).items() if n},
        **({"official_counts": dict(official)} if official else {}),
        **(notes or {}),
    }
    return Manifest(name, ordered, attributes, tuple(classes), root, provenance)
