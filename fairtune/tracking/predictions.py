"""Predictions of a whole split as a table: what intervals, gates and figures are computed from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairtune.errors import InputError

if TYPE_CHECKING:
    from fairtune.training import Split

PROBABILITY = "probability_"
COLUMNS = ("image", "patient", "label")


def predictions_table(split: Split, probabilities: NDArray[np.float64]) -> pd.DataFrame:
    """Make the table of a split's predictions.

    Returns
    -------
    DataFrame
        n rows; columns image, patient, label, ``probability_<c>`` for each class index c, then one
        column per sensitive attribute.
    """
    table = pd.DataFrame(
        {"image": split.references, "patient": split.patients, "label": split.labels}
    )
    for c in range(probabilities.shape[1]):
        table[f"{PROBABILITY}{c}"] = probabilities[:, c]
    return pd.concat([table, split.groups], axis=1)


def probabilities_of(table: pd.DataFrame) -> NDArray[np.float64]:
    """Return the (n, C) class probabilities of a predictions table."""
    names = [name for name in table.columns if str(name).startswith(PROBABILITY)]
    return table[names].to_numpy(float)


def groups_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return the sensitive attributes of a predictions table."""
    return table[
        [n for n in table.columns if n not in COLUMNS and not str(n).startswith(PROBABILITY)]
    ]


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a predictions table back; raises `InputError` when columns are missing."""
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    missing = [name for name in (*COLUMNS, f"{PROBABILITY}1") if name not in table.columns]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r} (predictions of a split have one)")
    return table
