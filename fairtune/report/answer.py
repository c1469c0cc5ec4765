"""The answer in three sentences: what was reached, against what, and does it hold on unseen images."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from fairtune.fairness import Interval, PairedDifference
from fairtune.report.story import CROSSTEST, MONITOR, WINNER_MARK, Story
from fairtune.report.table import with_error

SPLIT_WORDS = {
    "train": "train",
    "val": "validation",
    "test": "test",
    MONITOR: "logged predictions",
}
BASELINES = ("full fine-tuning", "linear probe")
COMPARED = ("worst_group_auroc", "auroc", "auroc_gap")
Row = Mapping[Hashable, Any]


def answer(story: Story) -> list[str]:
    """Return up to three sentences with numbers, for a reader who reads nothing else."""
    if story.watches is not None:
        return _monitored(story, story.watches)
    if story.report is None:
        return _unfinished(story)
    if story.kind == CROSSTEST:
        models = f"the models of {len(story.folds)} folds, each judged on patients it has not seen,"
        return [_one_run(story, f"{models} together reach"), _apart(story), _fold_means(story)]
    if story.comparison is not None:
        rows = story.comparison.to_dict("records")
        return [_reached(story, rows[0]), _compared(story, rows), _held(rows)]
    share = f", which trains {story.picture.share:.1%} of the parameters," if story.picture else ""
    return [_one_run(story, f"this fine-tune{share} reaches"), _apart(story), _one_gap(story)]


def interval(found: Interval | None, estimate: float) -> str:
    """Write an estimate with its interval."""
    if math.isnan(estimate):
        return "not defined"
    if found is None or math.isnan(found.low):
        return f"{estimate:.3f} (no interval)"
    return f"{estimate:.3f} (95% interval {found.low:.3f} to {found.high:.3f})"


def verdict(difference: PairedDifference, *, larger_is_better: bool = True) -> str:
    """Say what a difference's interval shows, and no more."""
    if math.isnan(difference.low):
        return "too few resamples define it to say more"
    if difference.low <= 0 <= difference.high:
        return "the interval contains 0, so these data do not settle which is better"
    better = (difference.estimate > 0) == larger_is_better
    return f"the interval lies on the {'better' if better else 'worse'} side of 0"


def where(story: Story) -> str:
    """Name the split with its counts."""
    table, report = story.predictions.get(story.split), story.report
    n = report.overall.n if report else 0
    patients = f" of {table['patient'].nunique():,} patients" if table is not None else ""
    whole = story.split == MONITOR
    split = "" if whole else f"the {SPLIT_WORDS[story.split]} split of "
    return f"{split}{story.dataset} ({n:,} images{patients})"


def _reached(story: Story, row: Row) -> str:
    name = str(row["model"]).removesuffix(WINNER_MARK)
    seeds = int(str(row["n"]))
    chosen = (
        f"{name} won, as no searched mask did better on validation;"
        if name in BASELINES
        else f"the search, by {words(story.objective.name)} on validation, chose {name}, which trains "
        f"{story.picture.share:.1%} of the parameters of {story.picture.architecture};"
        if story.picture
        else f"the search chose {name};"
    )
    return (
        f"On {where(story)}, {chosen} it reaches a worst-group AUROC of "
        f"{_mean(row, 'test/worst_group_auroc')} and an overall AUROC of {_mean(row, 'test/auroc')} "
        f"({f'mean ± standard error over {seeds} seeds' if seeds > 1 else 'one seed'})."
    )


def _compared(story: Story, rows: Sequence[Row]) -> str:
    others = [row for row in rows[1:] if str(row["model"]) in BASELINES]
    if not others:
        return "There is no baseline to compare it with."
    reached = " and that of ".join(
        f"{row['model']} is {_mean(row, 'test/worst_group_auroc')}" for row in others
    )
    text = f"On the same images the worst-group AUROC of {reached}"
    paired = story.against(str(others[0]["model"]))
    if paired is None:
        return f"{text}."
    found = paired["worst_group_auroc"]
    return (
        f"{text}; fine-tuned once, the winner differs from {others[0]['model']} by {found.estimate:+.3f} "
        f"(95% interval over patients {found.low:+.3f} to {found.high:+.3f}): {verdict(found)}."
    )


def _held(rows: Sequence[Row]) -> str:
    parts = []
    for i, row in enumerate(rows[:3]):
        gap = _mean(row, "test/fairness_generalization_gap", sign=True)
        name = "its" if i == 0 else f"that of {row['model']}"
        parts.append(
            f"{name} AUROC gap between groups goes from {_mean(row, 'train/auroc_gap')} on train to "
            f"{_mean(row, 'test/auroc_gap')} on test, a fairness generalisation gap of {gap}"
            if i == 0
            else f"{name} {gap}"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _one_run(story: Story, reaches: str) -> str:
    assert story.report is not None
    found, headline = story.spread, story.report.headline
    worst = interval(found["worst_group_auroc"] if found else None, headline["worst_group_auroc"])
    overall = interval(found["auroc"] if found else None, headline["auroc"])
    return (
        f"On {where(story)}, {reaches} a worst-group AUROC of {worst} and an overall AUROC of "
        f"{overall}."
    )


def _apart(story: Story) -> str:
    assert story.report is not None
    found, gap = story.spread, story.report.headline["auroc_gap"]
    return (
        "The AUROC of the groups that lie furthest apart differs by "
        f"{interval(found['auroc_gap'] if found else None, gap)}."
    )


def _one_gap(story: Story) -> str:
    if "train" not in story.reports or story.split == "train":
        return (
            "It was judged on validation alone, where it may also have been chosen; `fairtune "
            f"evaluate --run-id {story.run.info.run_id}` adds train and test."
        )
    before = story.reports["train"].headline["auroc_gap"]
    after = story.reports[story.split].headline["auroc_gap"]
    return (
        f"The AUROC gap between groups goes from {before:.3f} on train to {after:.3f} on "
        f"{SPLIT_WORDS[story.split]}, a fairness generalisation gap of {after - before:+.3f}."
    )


def _fold_means(story: Story) -> str:
    means = {name: story.run.data.metrics[f"test/{name}_fold_mean"] for name in COMPARED}
    return (
        "The folds' own figures, on fewer patients each, have the means: "
        + ", ".join(f"{words(name)} {value:.3f}" for name, value in means.items())
        + "."
    )


def _monitored(story: Story, watches: pd.DataFrame) -> list[str]:
    """Say what the logged predictions show, and which limits are broken."""
    n_logged = int(story.run.data.metrics.get("monitor/n_logged", 0))
    first = [
        f"None of the {n_logged:,} logged predictions has an outcome yet: all that can be judged is "
        "how often each group is called positive."
    ]
    if story.report is not None:
        first = [_one_run(story, "the model reaches"), _apart(story)]
    broken = [words(name) for name in watches["metric"][watches["state"] == "broken"]]
    kept = int((watches["state"] == "kept").sum())
    return [
        *first,
        f"Of {len(watches)} limits {kept} {'is' if kept == 1 else 'are'} kept and {len(broken)} "
        f"broken{': ' if broken else ''}{', '.join(broken)}.",
    ]


def _unfinished(story: Story) -> list[str]:
    assert story.trials is not None
    table = story.trials.table[story.trials.judged]
    status = story.run.info.status.lower()
    first = f"This search has no winner yet: its status is {status}."
    if table.empty:
        return [first, f"None of its {len(story.trials.table)} trials has a value."]
    sign = 1 if story.objective.direction == "maximize" else -1
    best = table.iloc[int((sign * table["value"]).to_numpy().argmax())]
    return [
        first,
        f"Of {len(story.trials.table)} trials {len(table)} have a value; the best on validation is "
        f"trial {best['number']} with {story.objective.name} {best['value']:.3f}.",
        f"`fairtune search --resume {story.run.info.run_id}` with the same configuration continues it.",
    ]


def words(name: str) -> str:
    """Write a metric's name for people."""
    return name.replace("_", " ").replace("auroc", "AUROC")


def _mean(row: Row, key: str, *, sign: bool = False) -> str:
    mean, error = float(str(row[key])), float(str(row.get(f"{key}_se", math.nan)))
    text = with_error(mean, error)
    return f"+{text}" if sign and mean >= 0 else text
