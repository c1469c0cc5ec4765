"""The figures of a comparison, in the report's style."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import scikit_posthocs

from fairtune.comparison.ranks import Ranking
from fairtune.comparison.settings import Comparison
from fairtune.comparison.tables import say_blocks
from fairtune.fairness import slug
from fairtune.report.style import (
    INK,
    MARKERS,
    SERIES,
    Drawing,
    legend_below,
    line_style,
    look,
    new_figure,
)
from fairtune.search.standings import standard_error

SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}


def draw_all(
    models: pd.DataFrame, intervals: pd.DataFrame, ranks: Ranking | None, comparison: Comparison
) -> Iterator[Drawing]:
    """Draw a comparison: the ranks, and for each task the trade-off and the gaps."""
    with look():
        if ranks is not None and ranks.n_blocks > 1 and len(ranks.ranks) > 2:
            yield critical_difference(ranks)
        for task, mine in models.groupby("task", sort=False):
            yield trade_off(str(task), mine, intervals[intervals["task"] == task])
            yield gaps(str(task), mine)


def critical_difference(ranks: Ranking) -> Drawing:
    """Draw the average ranks; a bar joins methods whose ranks do not differ at 0.05."""
    figure, axes = new_figure(8.0, 1.8 + 0.22 * len(ranks.ranks))
    axes.grid(False)
    scikit_posthocs.critical_difference_diagram(
        ranks.ranks,
        ranks.nemenyi,
        ax=axes,
        label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}",
        crossbar_props={"color": INK, "marker": None},
        color_palette=dict.fromkeys(ranks.ranks.index, INK),
    )
    title = f"{say_blocks(ranks)}, critical difference {ranks.critical_difference:.2f}"
    axes.set_title(title, pad=20)
    said = ", ".join(f"{name} {value:.2f}" for name, value in ranks.ranks.items())
    return Drawing(
        name="critical-difference",
        title="Average ranks by test worst-group AUROC",
        alt=f"Critical-difference diagram over {say_blocks(ranks)}. {said}.",
        caption=f"Over {say_blocks(ranks)}; rank 1 is best. A bar joins methods that do not differ at "
        "0.05 (Nemenyi).",
        figure=figure,
        wide=True,
    )


def trade_off(task: str, models: pd.DataFrame, intervals: pd.DataFrame) -> Drawing:
    """Draw overall against worst-group AUROC on test, with the intervals that `overall_intervals` gives."""
    names = list(dict.fromkeys(models["method"]))
    figure, axes = new_figure(6.4, 4.4 + 0.13 * len(names))
    bounds = intervals.set_index(["method", "metric"])
    over = {"patients": "resampled patients", "seeds": "seeds"}[intervals["over"].iloc[0]]
    said = []
    for index, name in enumerate(names):
        x, y = (bounds.loc[(name, metric)] for metric in ("auroc", "worst_group_auroc"))
        style = {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}
        axes.errorbar(
            x["estimate"],
            y["estimate"],
            xerr=_beside(x),
            yerr=_beside(y),
            label=name,
            linestyle="none",
            elinewidth=0.6,
            markersize=6,
            **style,
        )
        said.append(f"{name} {x['estimate']:.3f}, {y['estimate']:.3f}")
    axes.set(xlabel="AUROC, test", ylabel="worst-group AUROC, test")
    axes.set_title(f"{task} (seeds: {models['seed'].nunique()})")
    legend_below(axes, ncols=3)
    return Drawing(
        name=f"trade-off-{slug(task)}",
        title=f"Overall and worst-group AUROC: {task}",
        alt=f"Overall and worst-group AUROC on test: {'; '.join(said)}.",
        caption=f"Means over {models['seed'].nunique()} seeds; bars: 95 % over {over}. "
        "The bars of two methods move together: the tests are on paired differences.",
        figure=figure,
        wide=True,
    )


def _beside(found: pd.Series) -> list[list[float]]:
    """Return the lengths of an error bar; no part is below 0, which Matplotlib refuses."""
    parts = (found["estimate"] - found["low"], found["high"] - found["estimate"])
    return [[float(np.maximum(part, 0))] for part in parts]


def gaps(task: str, models: pd.DataFrame) -> Drawing:
    """Draw each method's AUROC gap between groups on train, validation and test."""
    names = list(dict.fromkeys(models["method"]))
    figure, axes = new_figure(6.4, 3.8 + 0.13 * len(names))
    where = np.arange(len(SPLIT_NAMES), dtype=float)
    said = []
    for index, name in enumerate(names):
        mine = models[models["method"] == name]
        columns = [mine[f"{split}/auroc_gap"] for split in SPLIT_NAMES]
        means = [float(values.mean()) for values in columns]
        errors = np.nan_to_num([standard_error(values.tolist()) for values in columns])
        axes.errorbar(
            where + 0.03 * (index - (len(names) - 1) / 2),
            means,
            yerr=errors,
            label=name,
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            elinewidth=0.8,
            **line_style(index),
        )
        said.append(f"{name} {', '.join(f'{value:.3f}' for value in means)}")
    axes.set_xticks(where, list(SPLIT_NAMES.values()))
    axes.set(ylabel="AUROC gap between groups")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{task} (seeds: {models['seed'].nunique()})")
    legend_below(axes, ncols=3)
    return Drawing(
        name=f"generalisation-gap-{slug(task)}",
        title=f"The gap from train to test: {task}",
        alt=f"AUROC gap on train, validation, test: {'; '.join(said)}.",
        caption="A line that rises is a fairness generalisation gap. Bars: ± standard error over seeds.",
        figure=figure,
        wide=True,
    )
