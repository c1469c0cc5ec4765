"""Figures about groups: ROC, calibration, rates, and the fairness generalisation gap."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from fairlearn.experimental.enable_metric_frame_plotting import plot_metric_frame
from fairlearn.metrics import plot_roc_curve_by_group
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fairtune.fairness import FairnessReport, slug
from fairtune.fairness.frame import metric_frames
from fairtune.report.answer import SPLIT_WORDS
from fairtune.report.story import CROSSTEST, WINNER_MARK, Story
from fairtune.report.style import (
    FAINT,
    FILL,
    INK,
    MARKERS,
    SERIES,
    Drawing,
    legend_below,
    line_style,
    new_figure,
    short,
)
from fairtune.tracking.predictions import groups_of, probabilities_of

BINS = 10
MIN_IN_BIN = 5
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
RATE_NAMES = {
    "accuracy": "Accuracy",
    "selection_rate": "Selection rate",
    "tpr": "True positive rate",
    "fpr": "False positive rate",
}


def group_drawings(story: Story) -> Iterator[Drawing]:
    """Draw, for each attribute, ROC curves, calibration and rates on the answer's split."""
    table, report = story.predictions.get(story.split), story.report
    if table is None or report is None:
        return
    scores, split = probabilities_of(table), SPLIT_WORDS[story.split]
    if scores.shape[1] == 2:
        for attribute in report.groups:
            yield roc(table, scores[:, 1], attribute, report, split)
            if story.kind != CROSSTEST:  # scores of several models on one scale, not probabilities
                yield calibration(table, scores[:, 1], attribute, split)
    frames = metric_frames(table["label"], scores, groups_of(table), report.threshold)
    for attribute, frame in frames.items():
        yield rates(frame, attribute, split)


def roc(
    table: pd.DataFrame, score: np.ndarray, attribute: str, report: FairnessReport, split: str
) -> Drawing:
    """Draw ROC curves by group with fairlearn; groups with one class have none and are named."""
    cells = report.groups[attribute]
    curves = sorted(g for g, cell in cells.items() if min(cell.n_by_class) > 0)
    without = [g for g in cells if g not in curves]
    names = table[attribute].astype(str)
    rows = names.isin(curves).to_numpy()
    figure, axes = new_figure(5.0, 4.4 + 0.22 * len(curves))
    if curves:
        plot_roc_curve_by_group(
            table["label"].to_numpy()[rows],
            score[rows],
            sensitive_features=names[rows],
            plot_overall=False,
            ax=axes,
        )
    for index, (line, group) in enumerate(zip(axes.lines[1:], curves, strict=True)):
        line.set(**line_style(index))
        line.set_label(f"{short(group)}: AUROC {cells[group].values['auroc']:.3f}")
    if axes.lines:
        axes.lines[0].set(color=FAINT, linestyle=":", label="chance")
    axes.set(xlabel="False positive rate", ylabel="True positive rate", title=None)
    axes.set_aspect("equal")
    legend_below(axes)
    figures = ", ".join(f"{g} {cells[g].values['auroc']:.3f}" for g in curves)
    note = f" No curve (one class only): {', '.join(without)}." if without else ""
    return Drawing(
        name=f"roc-{slug(attribute)}",
        title=f"ROC by {attribute}",
        alt=f"ROC curves on {split} for the groups of {attribute}. AUROC: {figures or 'none'}.",
        caption=f"Sensitivity against false alarms on {split}, for every threshold.{note}",
        figure=figure,
    )


def calibration(table: pd.DataFrame, score: np.ndarray, attribute: str, split: str) -> Drawing:
    """Draw the observed share of positives against the predicted one, by group."""
    figure, axes = new_figure(5.0, 4.4 + 0.22 * table[attribute].nunique())
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle=":", label="perfect")
    said = []
    for index, (group, rows) in enumerate(_rows_by_group(table, attribute)):
        points = reliability(table["label"].to_numpy()[rows], score[rows])
        axes.plot(
            points["predicted"],
            points["observed"],
            label=short(group),
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            **line_style(index),
        )
        error = abs(score[rows].mean() - (table["label"].to_numpy()[rows] == 1).mean())
        said.append(f"{group} {error:.3f}")
    axes.set(
        xlabel="Predicted probability",
        ylabel="Observed share",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    axes.set_aspect("equal")
    legend_below(axes)
    return Drawing(
        name=f"calibration-{slug(attribute)}",
        title=f"Calibration by {attribute}",
        alt=f"Observed share of positives against predicted probability on {split}. Difference of "
        f"the means by group of {attribute}: {', '.join(said)}.",
        caption=f"{BINS} bins of equal width on {split}; bins with fewer than {MIN_IN_BIN} images "
        "of a group are not drawn. Above the dotted line the model says too little, below too much.",
        figure=figure,
    )


def reliability(labels: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    """Return mean prediction and observed share of class 1 by bin; columns also hold ``n``."""
    bins = np.clip((score * BINS).astype(int), 0, BINS - 1)
    frame = pd.DataFrame({"predicted": score, "observed": labels == 1, "n": 1})
    found = frame.groupby(bins).agg({"predicted": "mean", "observed": "mean", "n": "sum"})
    return found[found["n"] >= MIN_IN_BIN]


def rates(frame: object, attribute: str, split: str) -> Drawing:
    """Draw accuracy and rates by group from a fairlearn frame, with fairlearn's plot."""
    by_group: pd.DataFrame = frame.by_group  # type: ignore[attr-defined]
    metrics = [name for name in RATE_NAMES if name in by_group.columns]
    columns = min(2, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    height = 0.9 + 0.34 * len(by_group)
    figure, grid = new_figure(
        5.0 if columns == 1 else 7.4, rows * height + 0.5, nrows=rows, ncols=columns, squeeze=False
    )
    panels: list[Axes] = list(grid.ravel()[: len(metrics)])
    plot_metric_frame(frame, kind="barh", metrics=metrics, ax=panels, legend=False, color=FILL)
    for panel, metric in zip(panels, metrics, strict=True):
        panel.set(title=RATE_NAMES[metric], ylabel="", xlim=(0, 1.12))
        panel.set_yticklabels([short(name, 18) for name in by_group.index])
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.grid(axis="y", visible=False)
        panel.invert_yaxis()
        for bar, value in zip(panel.patches, by_group[metric], strict=True):
            bar.set(edgecolor=SERIES[0], linewidth=1)
            text = "not defined" if math.isnan(value) else f"{value:.3f}"
            y = bar.get_y() + bar.get_height() / 2  # type: ignore[attr-defined]
            panel.text(
                0 if math.isnan(value) else value, y, f" {text}", va="center", color=INK, fontsize=9
            )
    figures = "; ".join(
        f"{RATE_NAMES[m].lower()}: "
        + ", ".join(f"{group} {value:.3f}" for group, value in by_group[m].items())
        for m in metrics
    )
    return Drawing(
        name=f"rates-{slug(attribute)}",
        title=f"Accuracy and rates by {attribute}",
        alt=f"Bars on {split}, {figures}.",
        caption=f"At the threshold fitted on validation, on {split}. From fairlearn's MetricFrame.",
        figure=figure,
        wide=True,
    )


def gap_drawing(story: Story) -> Drawing | None:
    """Draw the AUROC gap on train, validation and test, of winner and baselines."""
    rows = _gaps(story)
    if not rows:
        return None
    figure, axes = new_figure(5.0, 3.6 + 0.22 * len(rows))
    said = []
    for index, (name, values) in enumerate(rows.items()):
        splits = [split for split in SPLIT_NAMES if split in values]
        where = np.array([list(SPLIT_NAMES).index(split) for split in splits], dtype=float)
        gaps = [values[split][0] for split in splits]
        errors = [0.0 if math.isnan(values[split][1]) else values[split][1] for split in splits]
        shift = 0.06 * (index - (len(rows) - 1) / 2)
        axes.errorbar(
            where + shift,
            gaps,
            yerr=errors,
            label=short(name, 40),
            marker=MARKERS[index % len(MARKERS)],
            capsize=4,
            **line_style(index),
        )
        listed = ", ".join(f"{SPLIT_NAMES[s]} {g:.3f}" for s, g in zip(splits, gaps, strict=True))
        said.append(f"{name}: {listed}")
    axes.set_xticks(range(3), list(SPLIT_NAMES.values()))
    axes.set(ylabel="AUROC gap between groups", xlim=(-0.3, 2.3))
    axes.set_ylim(bottom=0)
    legend_below(axes)
    spread = " Bars: ± standard error over seeds." if story.comparison is not None else ""
    return Drawing(
        name="generalisation-gap",
        title="The gap between groups, from train to test",
        alt=f"AUROC gap between groups. {'; '.join(said)}.",
        caption="A line that rises to the right is a fairness generalisation gap: the groups lie "
        f"further apart on images that the model has not seen.{spread}",
        figure=figure,
    )


def _gaps(story: Story) -> dict[str, dict[str, tuple[float, float]]]:
    """Return gap and standard error by model and split."""
    if story.comparison is not None:
        return {
            str(row["model"]).replace(WINNER_MARK, ", winner"): {
                split: (float(row[f"{split}/auroc_gap"]), float(row[f"{split}/auroc_gap_se"]))
                for split in SPLIT_NAMES
            }
            for row in story.comparison.to_dict("records")
        }
    if len(story.reports) < 2:
        return {}
    gaps = {s: (report.headline["auroc_gap"], math.nan) for s, report in story.reports.items()}
    return {"this run": gaps}


def _rows_by_group(table: pd.DataFrame, attribute: str) -> Iterator[tuple[str, np.ndarray]]:
    names = table[attribute].astype(str).to_numpy()
    column = table[attribute]
    levels = (
        [str(level) for level in column.cat.categories]
        if isinstance(column.dtype, pd.CategoricalDtype)
        else sorted(set(names))
    )
    for level in levels:
        rows = names == level
        if rows.any():
            yield level, rows
