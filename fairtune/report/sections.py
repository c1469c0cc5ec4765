"""The tables and texts of the report, ready to be shown: every figure with its n and its spread."""

from __future__ import annotations

import math
import platform
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import pandas as pd

from fairtune.fairness import Interval, slug
from fairtune.report.answer import SPLIT_WORDS
from fairtune.report.story import CANDIDATE, CROSSTEST, FOLD, MONITOR, WINNER_MARK, Story
from fairtune.report.table import with_error
from fairtune.report.trials import CUT_OFF, FAILED, FINISHED, STOPPED

COMPARISONS = {
    "auroc_gap": "AUROC gap: best minus worst group",
    "worst_group_auroc": "AUROC of the worst group",
    "demographic_parity_difference": "Demographic parity difference",
    "equalized_odds_difference": "Equalized odds difference",
    "equal_opportunity_difference": "Equal opportunity difference",
    "accuracy_gap": "Accuracy gap",
}
LIBRARIES = (
    "fairtune",
    "torch",
    "timm",
    "mlflow",
    "hyperopt",
    "fairlearn",
    "scikit-learn",
    "numpy",
    "pandas",
    "matplotlib",
)
DASH = "not defined"
STRATEGY_OPTION, DROP_PATH = "strategy.", "drop_path"
"""What a search calls the options of `train.strategy`, and what no key of `train` stands for."""


@dataclass(frozen=True)
class GroupRow:
    """One group, or the whole split, on the answer's split."""

    group: str
    n: int
    classes: str
    value: float
    low: float
    high: float
    auroc: str
    difference: str
    accuracy: str
    tpr: str
    fpr: str


@dataclass(frozen=True)
class AttributeTable:
    """The groups of one attribute, and what they say together."""

    attribute: str
    rows: list[GroupRow]
    comparisons: list[tuple[str, str]]
    scale: float
    """Left end of the little axis on which the intervals are drawn; the right end is 1."""


def group_tables(story: Story) -> list[AttributeTable]:
    """Tabulate every attribute on the answer's split."""
    report, spread = story.report, story.spread
    if report is None:
        return []

    def found(name: str) -> Interval | None:
        return spread.intervals.get(name) if spread is not None else None

    tables = []
    for attribute, cells in report.groups.items():
        overall = _row("all images", report.overall, found("auroc"), None)
        base = report.overall.values["auroc"]
        where = f"auroc_by_group/{slug(attribute)}."
        rows = [overall] + [
            _row(group, cell, found(where + slug(group)), base) for group, cell in cells.items()
        ]
        values = report.by_attribute[attribute]
        comparisons = [
            (title, estimate(values[name], found(f"{name}_by_attribute/{slug(attribute)}")))
            for name, title in COMPARISONS.items()
        ]
        lowest = min((v for r in rows for v in (r.value, r.low) if not math.isnan(v)), default=0.5)
        scale = min(0.5, math.floor(lowest * 10) / 10)
        tables.append(AttributeTable(attribute, rows, comparisons, scale))
    return tables


def _row(name: str, cell: object, found: Interval | None, overall: float | None) -> GroupRow:
    flat = cell.flat()  # type: ignore[attr-defined]
    auroc = flat["auroc"]
    return GroupRow(
        group=name,
        n=cell.n,  # type: ignore[attr-defined]
        classes=" / ".join(f"{n:,}" for n in cell.n_by_class),  # type: ignore[attr-defined]
        value=auroc,
        low=found.low if found else math.nan,
        high=found.high if found else math.nan,
        auroc=estimate(auroc, found),
        difference="" if overall is None else number(auroc - overall, sign=True),
        accuracy=number(flat["accuracy"]),
        tpr=number(flat.get("tpr", math.nan)),
        fpr=number(flat.get("fpr", math.nan)),
    )


def number(value: float, *, sign: bool = False) -> str:
    """Write a figure with three decimals, or that it is not defined."""
    if math.isnan(value):
        return DASH
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def estimate(value: float, found: Interval | None) -> str:
    """Write a figure with its interval."""
    if math.isnan(value):
        return DASH
    if found is None or math.isnan(found.low):
        return f"{value:.3f} (no interval)"
    return f"{value:.3f} ({found.low:.3f} to {found.high:.3f})"


def comparison_rows(story: Story) -> list[dict[str, str]]:
    """Lay out winner and baselines: means ± standard errors over seeds."""
    if story.comparison is None:
        return []
    columns = {
        "test worst-group AUROC": "test/worst_group_auroc",
        "test AUROC": "test/auroc",
        "gap, train": "train/auroc_gap",
        "gap, validation": "val/auroc_gap",
        "gap, test": "test/auroc_gap",
        "gap, test minus train": "test/fairness_generalization_gap",
    }
    return [
        {"model": str(row["model"]).replace(WINNER_MARK, ", winner"), "seeds": str(row["n"])}
        | {title: with_error(row[key], row[f"{key}_se"]) for title, key in columns.items()}
        for row in story.comparison.to_dict("records")
    ]


def fold_rows(story: Story) -> list[dict[str, str]]:
    """Lay out the folds of a cross-test: each with its own figures on its own test part."""
    figures = {"worst-group AUROC": "worst_group_auroc", "AUROC": "auroc", "gap": "auroc_gap"}
    return [
        {
            "fold": run.data.tags[FOLD],
            **{
                title: number(run.data.metrics.get(f"test/{name}", math.nan))
                for title, name in figures.items()
            },
            "mask": run.data.params.get("mask", ""),
            "learning rate": run.data.params.get("learning_rate", ""),
            "run": run.info.run_id,
        }
        for run in story.folds
    ]


def class_names(story: Story) -> list[str]:
    """Name the classes: as the run knows them, else by number."""
    report = story.report
    n = len(report.overall.n_by_class) if report else 0
    known = [str(name) for name in story.facts.get("classes") or []]
    names = known if len(known) == n else [f"class {k}" for k in range(n)]
    return [f"{name} (positive)" if n == 2 and k == 1 else name for k, name in enumerate(names)]


@dataclass(frozen=True)
class Counts:
    """Images by group (rows) and by split and class (columns)."""

    splits: list[str]
    classes: list[str]
    rows: list[tuple[str, str, list[int]]]
    patients: dict[str, int]


def counts(story: Story) -> Counts:
    """Count images per split, class and group from the reports."""
    splits = list(story.reports)
    rows = [("all", "", [n for r in story.reports.values() for n in r.overall.n_by_class])]
    names = dict.fromkeys(
        (attribute, group)
        for report in story.reports.values()
        for attribute, groups in report.groups.items()
        for group in groups
    )
    for attribute, group in names:
        cells = [report.groups.get(attribute, {}).get(group) for report in story.reports.values()]
        width = len(class_names(story))
        rows.append(
            (attribute, group, [n for c in cells for n in (c.n_by_class if c else [0] * width)])
        )
    patients = {
        SPLIT_WORDS[name]: int(table["patient"].nunique())
        for name, table in story.predictions.items()
    }
    return Counts([SPLIT_WORDS[name] for name in splits], class_names(story), rows, patients)


def undefined(story: Story) -> list[str]:
    """Name, split by split, the metrics that have no value, and why."""
    lines: dict[tuple[str, str, str, int], list[str]] = {}
    for split, report in story.reports.items():
        for entry in report.undefined:
            where = " ".join(part for part in (entry.attribute, entry.group) if part)
            key = (SPLIT_WORDS[split], where or "all images", entry.reason, entry.n)
            lines.setdefault(key, []).append(entry.metric.replace("_", " "))
    return [
        f"{split}, {where}: {', '.join(metrics)} not defined or incomplete: {reason} (n = {n:,})."
        for (split, where, reason, n), metrics in lines.items()
    ]


def excluded(story: Story) -> Iterator[str]:
    """Say what was left out: images, trials, candidates, intervals."""
    metrics = story.run.data.metrics
    if waiting := metrics.get("monitor/n_logged", 0) - metrics.get("monitor/n_judged", 0):
        yield f"{waiting:,.0f} logged predictions have no outcome yet."
    provenance = story.facts.get("provenance") or {}
    for reason, n in (provenance.get("dropped") or {}).items():
        yield f"{n:,} images left out: {reason}."
    for key, what in (("missing", "not there"), ("skipped", "unreadable")):
        if provenance.get(key):
            yield f"{len(provenance[key]):,} images left out: {what}."
    if story.trials is not None and len(story.trials.table):
        table = story.trials.table
        number_of = table["status"].value_counts()
        if number_of.get(STOPPED):
            yield f"{_trials(number_of[STOPPED])} stopped at a rung, no candidates for the finals."
        if number_of.get(CUT_OFF):
            yield f"{_trials(number_of[CUT_OFF])} cut off, without a value."
        for row in table[table["status"] == FAILED].to_dict("records"):
            yield f"Trial {row['number']} failed: {row['reason']}"
    for name, runs in story.finals.items():
        failed = [run for run in runs if "fairtune.error" in run.data.tags]
        if failed:
            yield f"{name} is no candidate: {failed[0].data.tags['fairtune.error']}"
        elif story.comparison is not None and not any("test/auroc" in r.data.metrics for r in runs):
            yield f"{name} was a candidate, lost on validation, and was never read on test."
    if story.spread is not None:
        for name, found in story.spread.intervals.items():
            if math.isnan(found.low) and not math.isnan(found.estimate):
                yield (
                    f"{name} has no interval: it is defined in {found.n_valid:,} of "
                    f"{found.n_resamples:,} resamples."
                )


def _trials(n: int) -> str:
    return "1 trial was" if n == 1 else f"{n} trials were"


def command(story: Story) -> str:
    """Write the command that makes the run again from its own config.yaml."""
    tags = story.run.data.tags
    if story.kind == MONITOR:
        name = tags.get("fairtune.model", "").partition("/")[0]
        words = ["fairtune", "monitor", "--name", name]
        words += ["--predictions", tags.get("fairtune.predictions", "")]
        return shlex.join([*words, "--margin", tags.get("fairtune.margin", "")])
    source = tags.get("fairtune.source")
    made_by = {"search": "search", CROSSTEST: tags.get("fairtune.command", "search")}
    words = ["fairtune", made_by.get(story.kind, "finetune")]
    words += ["--config", "config.yaml"]
    if story.kind != "search" and story.picture is not None:
        params = story.run.data.params
        words += ["-o", f"search.space={story.picture.space}"]
        words += ["-o", f"train.learning_rate={params.get('learning_rate', '')}"]
        for name, value in _searched(story).items():
            if name != DROP_PATH:
                key = name.replace(STRATEGY_OPTION, "strategy_options.", 1)
                words += ["-o", f"train.{key}={value}"]
        words += ["--bits", story.picture.bits] if story.picture.bits else []
    if story.kind == CROSSTEST and "fairtune.bits" in tags:
        words += ["--bits", tags["fairtune.bits"]]
    return shlex.join(words + (["--source", source] if source else []))


def not_in_command(story: Story) -> str:
    """Say which searched value a fine-tune of its own cannot be given; nothing where there is none."""
    rate = float(_searched(story).get(DROP_PATH, 0.0))
    if story.kind == "search" or not rate:
        return ""
    return (
        f"The run also had a rate of stochastic depth ({DROP_PATH}) of {rate:g}, which only a search can "
        "set: the command trains without it."
    )


def _searched(story: Story) -> dict[str, str]:
    """Return what a run drew beside mask and learning rate, by its name in `search.extra`."""
    params = story.run.data.params
    extra = (story.config.get("search") or {}).get("extra") or {}
    return {name: params[name] for name in extra if name in params}


def origins(story: Story) -> dict[str, str]:
    """Name what the result depends on: run, code, data, weights, seeds, mask."""
    info, tags, params = story.run.info, story.run.data.tags, story.run.data.params
    model = story.config.get("model") or {}
    seconds = (info.end_time - info.start_time) / 1000 if info.end_time else None
    started = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(info.start_time / 1000))
    facts: dict[str, object] = {
        "Run": info.run_id,
        "Started": started,
        "Duration": f"{seconds / 60:.1f} minutes" if seconds else None,
        "Data set": story.dataset,
        "Data digest": tags.get("fairtune.dataset_digest"),
        "Architecture": model.get("architecture"),
        "Base weights": tags.get("fairtune.base_hash"),
        "Seed": story.config.get("seed"),
        "Seed index": params.get("seed_index"),
        "Candidate": tags.get(CANDIDATE),
        "Space": tags.get("fairtune.space"),
        "Mask": params.get("mask"),
        "Mask fingerprint": tags.get("fairtune.mask"),
        "Monitored model": tags.get("fairtune.model"),
        "Learning rate": params.get("learning_rate"),
        "Objective": story.objective.name,
        "Threshold": story.report.threshold if story.report else None,
        "Best run": tags.get("fairtune.best_run_id"),
        "Parent run": tags.get("mlflow.parentRunId"),
        "Code": tags.get("mlflow.source.git.commit"),
        "Registered as": ", ".join(f"{v.name} version {v.version}" for v in story.versions),
        "Trials": _cost(story),
    }
    return {key: str(value) for key, value in facts.items() if value not in (None, "")}


def _cost(story: Story) -> str:
    if story.trials is None or story.trials.table.empty:
        return ""
    table = story.trials.table
    done = int((table["status"] == FINISHED).sum())
    minutes = table["seconds"].sum() / 60
    return f"{len(table)}, of them {done} finished; {minutes:.1f} minutes of fine-tuning"


def versions(story: Story) -> tuple[bool, dict[str, str]]:
    """Return whether they are the run's own, and the versions of what computed it."""
    logged = story.facts.get("versions")
    if isinstance(logged, dict) and logged:
        return True, {str(name): str(found) for name, found in logged.items()}
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return False, found


def trial_rows(story: Story) -> pd.DataFrame:
    """Return the trials as a reader wants them, best first."""
    if story.trials is None or story.trials.table.empty:
        return pd.DataFrame()
    table = story.trials.table
    shown = pd.DataFrame(
        {
            "trial": table["number"],
            "status": table["status"],
            story.objective.name.replace("_", " "): table["value"].map(number),
            "AUROC": table["auroc"].map(number),
            "learning rate": table["learning_rate"].map("{:.2g}".format),
            "trained share": table["share"].map("{:.1%}".format),
            "epochs": table["epochs"].map(lambda n: "" if math.isnan(n) else f"{n:.0f}"),
        }
    )
    sign = -1 if story.objective.direction == "maximize" else 1
    return shown.iloc[(sign * table["value"]).argsort(kind="stable")]
