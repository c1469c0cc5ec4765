"""The figures of a search, drawn without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SHOWN = 30
"""Dimensions that the importance figure has room for."""


def _figure(width: float = 6, height: float = 4.5) -> tuple[Figure, Axes]:
    # Without pyplot: it keeps global state, and worker threads draw too.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_pareto(table: pd.DataFrame, path: Path) -> Path:
    """Draw overall AUROC against worst-group AUROC of all trials, the front as a line."""
    figure, axes = _figure()
    for pruned, marker, label in ((False, "o", "whole"), (True, "x", "pruned")):
        part = table[table["pruned"] == pruned]
        if len(part):
            axes.scatter(part["auroc"], part["worst_group_auroc"], marker=marker, label=label)
    front = table[table["on_front"]].sort_values("auroc")
    axes.plot(front["auroc"], front["worst_group_auroc"], "k-", lw=1, label="Pareto front")
    for _, row in front.iterrows():
        axes.annotate(f"{row['trial']}", (row["auroc"], row["worst_group_auroc"]), fontsize=8)
    axes.set_xlabel("overall AUROC, validation")
    axes.set_ylabel("worst-group AUROC, validation")
    axes.set_title(f"{len(table)} trials, one seed each; numbers name trials", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    return path


def draw_progress(table: pd.DataFrame, objective: str, path: Path) -> Path:
    """Draw the objective of each trial and the best so far against the epochs spent."""
    figure, axes = _figure()
    spent = table["epochs"].cumsum()
    axes.scatter(spent, table["objective"], s=14, label="trial")
    axes.step(spent, table["best"], where="post", color="k", lw=1, label="best so far")
    axes.set_xlabel("epochs spent")
    axes.set_ylabel(f"{objective}, validation")
    axes.set_title(f"{len(table)} trials, one seed each", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    return path


def draw_importance(table: pd.DataFrame, n_trials: int, path: Path) -> Path:
    """Draw which dimensions mattered most, with their spread over shuffles."""
    shown = table.head(SHOWN)[::-1]
    figure, axes = _figure(height=1 + 0.22 * len(shown))
    axes.barh(np.arange(len(shown)), shown["importance"], xerr=shown["std"])
    axes.set_yticks(np.arange(len(shown)), shown["dimension"].tolist(), fontsize=8)
    axes.set_xlabel("fall of R² when shuffled, mean ± standard deviation")
    axes.set_title(f"permutation importance over {n_trials} trials", fontsize=10)
    figure.savefig(path, dpi=120)
    return path
