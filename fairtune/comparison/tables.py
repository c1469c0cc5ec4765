"""Tables of a comparison for people: Markdown and LaTeX."""

from __future__ import annotations

import math

import pandas as pd

from fairtune.comparison.ranks import Ranking
from fairtune.comparison.settings import Comparison
from fairtune.comparison.unit import OVERLAP
from fairtune.search.standings import standard_error
from fairtune.search.winner import GAP

SHOWN = {
    "test/worst_group_auroc": "worst group",
    "test/auroc_gap": "gap",
    "test/auroc": "AUROC",
    "val/worst_group_auroc": "worst group, val",
    "train/auroc_gap": "gap, train",
    "val/auroc_gap": "gap, val",
    f"test/{GAP}": "generalisation gap",
}


def mean_and_error(values: pd.Series) -> str:
    """Write mean ± standard error to three digits; the mean alone for one value."""
    mean, error = float(values.mean()), standard_error(values.tolist())
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"


def _share_and_n(values: pd.Series) -> str:
    """Write a mean share; how many it is of where not all have it."""
    there = values.dropna()
    if there.empty:
        return ""
    n = "" if len(there) == len(values) else f" (n = {len(there)})"
    return f"{there.mean():.0%}{n}"


def method_rows(models: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """Tabulate methods by task: mean ± standard error over seeds, n, and what trains.

    Figures are of the test split unless a column says otherwise. ``trials`` counts the fine-tunes
    that a choice is made among, for each seed.
    """
    fine_tunes = {m.name: comparison.fine_tunes(m) for m in comparison.methods}
    rows = []
    for (task, name), mine in models.groupby(["task", "method"], sort=False):
        row: dict[str, object] = {"task": task, "method": name, "n": len(mine)}
        row |= {title: mean_and_error(mine[key]) for key, title in SHOWN.items()}
        folds = [f"test/{m}_fold_mean" for m in ("worst_group_auroc", "auroc")]
        for key, title in zip(folds, ("worst group, fold mean", "AUROC, fold mean"), strict=True):
            if key in mine and mine[key].notna().any():
                row[title] = mean_and_error(mine[key])
        row["trains"] = f"{mine['share'].mean():.0%}"
        if OVERLAP in models and models[OVERLAP].notna().any():
            row["overlap"] = _share_and_n(mine[OVERLAP])
        row["trials"] = fine_tunes[str(name)]
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    lines = [[str(name) for name in table.columns], ["---"] * table.shape[1]]
    lines += [["" if value != value else str(value) for value in row] for row in table.to_numpy()]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def latex(table: pd.DataFrame) -> str:
    """Return a table as LaTeX, escaped, with the rules of the package booktabs."""
    text = table.astype(str).rename(columns=str).style.hide(axis="index")
    text = text.format(escape="latex").format_index(escape="latex", axis="columns")
    styled: str = text.to_latex(hrules=True)
    return styled.replace("±", r"$\pm$")


def say_ranks(found: Ranking | None, comparison: Comparison) -> str:
    """Say in a paragraph how methods rank by worst-group AUROC."""
    if found is None or math.isnan(found.critical_difference):
        return ""
    listed = ", ".join(f"{name} {value:.2f}" for name, value in found.ranks.items())
    p = (
        ""
        if math.isnan(found.p_value)
        else (f" Friedman's chi-squared {found.statistic:.1f}, p = {found.p_value:.2g}.")
    )
    return (
        f"Average rank by test worst-group AUROC over {say_blocks(found)}, 1 is best: {listed}.{p} Ranks "
        f"that differ by {found.critical_difference:.2f} or more differ at 0.05 (Nemenyi, "
        f"k = {len(found.ranks)}).{_unranked(comparison)}"
    )


def say_blocks(found: Ranking) -> str:
    """Name what methods were ranked within."""
    if found.block == "task":
        return f"{found.n_blocks} tasks (means over their seeds)"
    return f"{found.n_blocks} seeds of one task"


def _unranked(comparison: Comparison) -> str:
    names = [m.name for m in comparison.methods if m.best_of]
    return f" Not ranked, as it is one of the others: {', '.join(names)}." if names else ""
