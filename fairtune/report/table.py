"""Tables for a terminal."""

from __future__ import annotations

import math

import pandas as pd


def comparison_table(comparison: pd.DataFrame) -> str:
    """Lay out the comparison of winner and baselines: mean ± standard error over seeds.

    `comparison` is what `fairtune.search.winner.comparison` returns.
    """
    shown = {
        "val worst-group AUROC": "val/worst_group_auroc",
        "val AUROC gap": "val/auroc_gap",
        "test worst-group AUROC": "test/worst_group_auroc",
        "test AUROC gap": "test/auroc_gap",
        "test AUROC": "test/auroc",
    }
    table = pd.DataFrame({"model": comparison["model"]})
    for title, key in shown.items():
        pairs = zip(comparison[key], comparison[f"{key}_se"], strict=True)
        table[title] = [with_error(mean, error) for mean, error in pairs]
    table["seeds"] = comparison["n"]
    return table.to_string(index=False)


def with_error(mean: float, error: float) -> str:
    """Write mean ± standard error with three decimals; the error is left out where undefined."""
    text = "undefined" if math.isnan(mean) else f"{mean:.3f}"
    return text if math.isnan(error) else f"{text} ± {error:.3f}"
