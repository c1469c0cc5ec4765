"""The groups that strategies train with: one index per row, whatever the number of attributes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairtune.fairness.grouping import SEPARATOR, groupings


def group_index(groups: pd.DataFrame) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Give every combination of all attributes that occurs a number.

    With the columns ``colour`` and ``size`` the groups are ``red*small``, ``red*large``, ... A
    column that is itself an intersection of others adds nothing. A combination without a row gets
    no index, so that no strategy waits for an empty group.

    Parameters
    ----------
    groups
        n rows, one column per attribute.

    Returns
    -------
    index
        (n,) int64, in 0…G-1.
    names
        G names, in the order of the attributes' own groups.

    Raises
    ------
    InputError
        When a row has no value in some column.
    """
    parts = groupings(groups, len(groups))
    codes = np.stack([part.codes for part in parts], axis=1)  # (n, A)
    present, index = np.unique(codes, axis=0, return_inverse=True)
    names = tuple(
        SEPARATOR.join(part.names[code] for part, code in zip(parts, row, strict=True))
        for row in present
    )
    return index.reshape(-1).astype(np.int64), names
