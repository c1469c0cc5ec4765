"""Figures about the search: its course, the trade-off, which bits mattered, all trials at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from mlflow.entities import Run

from fairtune.fairness import Objective
from fairtune.report.story import Story
from fairtune.report.style import (
    FAINT,
    FILL,
    INK,
    MARKERS,
    SERIES,
    Drawing,
    legend_below,
    new_figure,
    short,
)
from fairtune.report.trials import (
    FAILED,
    FINISHED,
    STOPPED,
    Trials,
    bit_effects,
    bits_on,
    pareto_front,
)
from fairtune.tracking.runs import RUNG

MAX_BITS = 40
MANY_AXES = 9


def search_drawings(story: Story) -> Iterator[Drawing]:
    """Draw all that can be drawn of a search's trials."""
    trials = story.trials
    if trials is None or not trials.judged.any():
        return
    yield history(trials, story.objective)
    if trials.curves:
        yield curves(trials, story)
    yield pareto(trials, story)
    if trials.bits.shape[1]:
        yield bits_that_mattered(trials, story.objective)
    if trials.judged.sum() > 1:
        yield parallel(trials, story.objective)


def history(trials: Trials, objective: Objective) -> Drawing:
    """Draw the objective of every trial in order, and the best so far."""
    table, judged = trials.table, trials.judged
    figure, axes = new_figure(5.0, 4.2)
    styles = {
        FINISHED: {"marker": "o", "color": SERIES[0]},
        STOPPED: {"marker": "v", "color": SERIES[1], "facecolors": "none"},
    }
    for status, style in styles.items():
        rows = table[judged & (table["status"] == status)]
        if len(rows):
            axes.scatter(rows["number"], rows["value"], label=status, s=34, zorder=3, **style)
    failed = table[table["status"] == FAILED]
    if len(failed):
        bottom = np.full(len(failed), table["value"].min())
        axes.scatter(failed["number"], bottom, marker="x", color=FAINT, label="failed (no value)")
    done = table[judged & (table["status"] == FINISHED)]
    best = done["value"].cummax() if objective.direction == "maximize" else done["value"].cummin()
    axes.step(done["number"], best, where="post", color=INK, linewidth=1.2, label="best so far")
    axes.set(xlabel="Trial", ylabel=f"{_words(objective.name)}, validation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(axes)
    counts = ", ".join(f"{n} {status}" for status, n in table["status"].value_counts().items())
    top = f"{best.iloc[-1]:.3f}" if len(best) else "none"
    return Drawing(
        name="search-history",
        title="The search, trial by trial",
        alt=f"{_words(objective.name)} on validation by trial. {counts}; best finished {top}.",
        caption=f"{len(table)} trials: {counts}. The best of many noisy figures owes part of its "
        "value to luck; the comparison above is of fine-tunes with fresh seeds.",
        figure=figure,
    )


def curves(trials: Trials, story: Story) -> Drawing:
    """Draw the objective after each epoch, with the rungs at which trials were stopped."""
    objective = story.objective
    names = [name for name in story.run.data.metrics if name.startswith(RUNG)]
    rungs = sorted(int(name.removeprefix(RUNG)) for name in names)
    status = dict(zip(trials.table["number"], trials.table["status"], strict=True))
    figure, axes = new_figure(5.0, 4.2)
    for number, points in trials.curves.items():
        epochs, values = zip(*points, strict=True)
        stopped = status[number] == STOPPED
        axes.plot(
            epochs,
            values,
            color=SERIES[1] if stopped else SERIES[0],
            linestyle="--" if stopped else "-",
            linewidth=1.1,
            alpha=0.75,
        )
        axes.plot(epochs[-1], values[-1], marker="v" if stopped else "o", markersize=4, color=INK)
    for rung in rungs:
        axes.axvline(rung, color=FAINT, linestyle=":", linewidth=1.4)
    n_stopped = sum(status[number] == STOPPED for number in trials.curves)
    axes.set(xlabel="Epoch", ylabel=f"{_words(objective.name)}, validation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    where = f" Dotted: the rungs, after epoch {', '.join(map(str, rungs))}." if rungs else ""
    return Drawing(
        name="search-curves",
        title="What each trial reached, epoch by epoch",
        alt=f"{_words(objective.name)} after each epoch of {len(trials.curves)} trials, "
        f"{n_stopped} of them stopped at a rung.",
        caption=f"Solid to a circle: finished. Dashed to a triangle: stopped.{where}",
        figure=figure,
    )


def pareto(trials: Trials, story: Story) -> Drawing:
    """Draw overall against worst-group AUROC on validation, with the front that none beats."""
    table = trials.table[trials.judged].reset_index(drop=True)
    figure, axes = new_figure(5.0, 4.8)
    for status, style in (
        (FINISHED, {"marker": "o", "color": SERIES[0], "facecolors": FILL}),
        (STOPPED, {"marker": "v", "color": SERIES[1], "facecolors": "none"}),
    ):
        rows = table[table["status"] == status]
        if len(rows):
            axes.scatter(
                rows["auroc"], rows["worst_group_auroc"], s=34, label=f"trial, {status}", **style
            )
    front = pareto_front(list(table["auroc"]), list(table["worst_group_auroc"]))
    axes.plot(
        table["auroc"].iloc[front],
        table["worst_group_auroc"].iloc[front],
        color=INK,
        linewidth=1.2,
        linestyle="--",
        label="front: no trial is better in both",
    )
    for index, (name, runs) in enumerate(story.finals.items()):
        _final(axes, name, runs, index, winner=name == story.winner)
    axes.set(xlabel="AUROC, all images", ylabel="AUROC, worst group")
    legend_below(axes)
    numbers = ", ".join(str(table["number"].iloc[i]) for i in front)
    return Drawing(
        name="pareto",
        title="Accuracy for all against the worst group",
        alt=f"Overall against worst-group AUROC on validation of {len(table)} trials. On the front: "
        f"trials {numbers}.",
        caption="Validation. Filled marks with an edge are the means of the final fine-tunes over "
        f"seeds. Trials on the front: {numbers}.",
        figure=figure,
    )


def _final(axes: Axes, name: str, runs: Sequence[Run], index: int, *, winner: bool) -> None:
    pairs = [
        (run.data.metrics.get("val/auroc"), run.data.metrics.get("val/worst_group_auroc"))
        for run in runs
    ]
    known = np.array([pair for pair in pairs if None not in pair], dtype=float)
    if known.size:
        x, y = known.mean(axis=0)
        axes.scatter(
            [x],
            [y],
            marker=MARKERS[(index + 1) % len(MARKERS)],
            s=95,
            color=SERIES[(index + 2) % len(SERIES)],
            edgecolors=INK,
            zorder=4,
            label=f"{short(name)}{', winner' if winner else ''}",
        )


def bits_that_mattered(trials: Trials, objective: Objective) -> Drawing:
    """Draw, for each bit, the objective with it on minus with it off."""
    rows = trials.judged
    effects = bit_effects(trials.bits[rows], trials.table["value"][rows])
    effects["size"] = effects["effect"].abs()
    shown = effects[effects["effect"].notna()].sort_values("size", ascending=False)[:MAX_BITS]
    shown = shown.sort_index()[::-1]
    figure, axes = new_figure(5.0, 1.6 + 0.27 * max(len(shown), 1))
    where = np.arange(len(shown))
    axes.barh(where, shown["effect"], color=FILL, edgecolor=SERIES[0], height=0.62)
    axes.errorbar(
        shown["effect"], where, xerr=shown["se"].fillna(0), fmt="none", color=INK, capsize=2
    )
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.set_yticks(where, [short(name) for name in shown.index], fontsize=9)
    axes.set(xlabel=f"{_words(objective.name)}: on minus off")
    axes.grid(axis="y", visible=False)
    constant = len(effects) - int(effects["effect"].notna().sum())
    largest = shown.sort_values("size", ascending=False)[:5]
    listed = ", ".join(f"{name} {row.effect:+.3f}" for name, row in largest.iterrows())
    better = "right" if objective.direction == "maximize" else "left"
    notes = f" {constant} bits were never varied." if constant else ""
    if len(effects) - constant > MAX_BITS:
        notes += f" The {MAX_BITS} largest are shown."
    return Drawing(
        name="bits",
        title="Which bits mattered",
        alt=f"Mean objective with a bit on minus off. Largest: {listed or 'none was varied'}.",
        caption=f"Mean over {int(rows.sum())} trials with the bit on, minus off; lines are ± one "
        f"standard error; {better} of 0 is better on. The search did not draw bits at random, so "
        f"this describes its trials and proves no cause.{notes}",
        figure=figure,
    )


def parallel(trials: Trials, objective: Objective) -> Drawing:
    """Draw every trial as a line across what was tried and what came of it."""
    frame = _axes_of(trials, objective)
    values = trials.table["value"][trials.judged].to_numpy(float)
    figure, axes = new_figure(max(5.0, 0.95 * frame.shape[1]), 3.9)
    places = np.arange(frame.shape[1])
    spans = {name: _span(frame[name]) for name in frame}
    order = np.argsort(values if objective.direction == "maximize" else -values)
    ranks = np.empty(len(order))
    ranks[order] = np.linspace(0, 1, len(order)) if len(order) > 1 else 1
    top = ranks >= 0.75
    for i in order:
        heights = [(frame[n].iloc[i] - low) / (high - low) for n, (low, high) in spans.items()]
        jitter = (i % 7 - 3) * 0.006  # trials that share a mask would hide each other
        axes.plot(
            places,
            np.array(heights) + jitter,
            color=SERIES[0] if top[i] else FAINT,
            linestyle="-" if top[i] else ":",
            linewidth=1.8 if top[i] else 1.0,
            alpha=0.9 if top[i] else 0.7,
        )
    for place, (name, (low, high)) in zip(places, spans.items(), strict=True):
        axes.axvline(place, color=FAINT, linewidth=0.8)
        for height, value in ((0, low), (1, high)):
            axes.annotate(
                _end(str(name), value),
                (place, height),
                (0, 8 if height else -14),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=INK,
            )
    axes.set_xticks(places, [_tick(name) for name in frame.columns], fontsize=9)
    axes.set(ylim=(-0.12, 1.12), xlim=(-0.5, len(places) - 0.5))
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", length=0, pad=10)
    return Drawing(
        name="parallel",
        title="All trials at once",
        alt=f"Parallel coordinates of {len(frame)} trials over {', '.join(frame.columns)}. The best "
        "quarter is solid, the rest dotted.",
        caption="One line a trial; solid: the best quarter by the objective, dotted: the others. "
        "Components count the blocks in which they train.",
        figure=figure,
        wide=frame.shape[1] > 5,
    )


def _axes_of(trials: Trials, objective: Objective) -> pd.DataFrame:
    table = trials.table[trials.judged]
    on = bits_on(trials.bits[trials.judged])
    if on.shape[1] > MANY_AXES:  # a space with a bit per tensor
        on = pd.DataFrame({"bits on": on.sum(axis=1)})
    frame = on.assign(
        **{
            "log10 learning rate": np.log10(table["learning_rate"]),
            "trained share": table["share"],
            "AUROC overall": table["auroc"],
            "AUROC worst group": table["worst_group_auroc"],
        }
    )
    if objective.name not in ("auroc", "worst_group_auroc"):
        frame[_words(objective.name)] = table["value"]
    return frame.dropna(axis=1)


def _tick(name: str) -> str:
    """Break a name into short lines, at spaces and after dots."""
    return "\n".join(short(part, 12) for part in re.split(r" |(?<=\.)(?=.)", name))


def _span(column: pd.Series) -> tuple[float, float]:
    low, high = float(column.min()), float(column.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _end(name: str, value: float) -> str:
    if name.startswith("log10"):
        return f"{10**value:.1e}"
    if name == "trained share":
        return f"{value:.0%}"
    return f"{value:.0f}" if math.isclose(value, round(value)) else f"{value:.3f}"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("auroc", "AUROC")
