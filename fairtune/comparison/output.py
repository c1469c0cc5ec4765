"""What a comparison writes to its run: tables, tests and figures."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from fairtune.comparison.claim import judge_claim
from fairtune.comparison.figures import draw_all
from fairtune.comparison.ranks import ranking, ranks_table
from fairtune.comparison.results import HEADLINE, KEYS, Key, Results
from fairtune.comparison.settings import Comparison
from fairtune.comparison.statistics import (
    PatientDraws,
    holm,
    patient_draws,
    patient_interval,
    seed_difference,
)
from fairtune.comparison.tables import latex, markdown, method_rows, say_ranks
from fairtune.comparison.thresholds import both_ways, say_thresholds, threshold_rows
from fairtune.report.style import save
from fairtune.seeding import seed as named_seed
from fairtune.tracking.runs import RunLog

Draws = dict[Key, PatientDraws]


def write_results(log: RunLog, comparison: Comparison, results: Results) -> str:
    """Write all tables and figures; returns the main table and the tests as Markdown.

    Without a complete seed nothing is compared: then the models alone, and why there is no more.
    """
    models = whole_seeds(results.models, comparison)
    decided = both_ways(results)
    every_model = results.models.merge(decided, how="left").to_csv(index=False)
    note = _seeds_note(models, results.models, results.status, comparison)
    if models.empty:
        text = f"{note} No seed is complete: nothing is compared.\n"
        log.text("models.csv", every_model)
        log.text("table.md", text)
        return text
    draws = resample(replace(results, models=models), comparison)
    apart = differences(models, draws, comparison)
    intervals = overall_intervals(models, draws, comparison)
    rows = method_rows(models, comparison)
    rankings = {metric: ranking(models, metric, comparison) for metric in HEADLINE}
    claims = judge_claim(apart, comparison)
    judged = models[KEYS].merge(decided)
    thresholds = threshold_rows(judged)
    parts = [note]
    for task in dict.fromkeys(models["task"]):
        parts += [f"### {task}", markdown(rows[rows["task"] == task].drop(columns="task"))]
    parts += [say_ranks(rankings["worst_group_auroc"], comparison), claims.text]
    alone = ["task"] if thresholds["task"].nunique() == 1 else []
    parts += ["### Thresholds by group", say_thresholds(judged)]
    parts.append(markdown(thresholds.drop(columns=alone)))
    text = "\n\n".join(part for part in parts if part) + "\n"
    files = {
        "table.md": text,
        "table.tex": latex(rows),
        "table.csv": rows.to_csv(index=False),
        "models.csv": every_model,
        "thresholds.tex": latex(thresholds),
        "thresholds.csv": thresholds.to_csv(index=False),
        "differences.csv": apart.to_csv(index=False),
        "claim.csv": claims.table.to_csv(index=False),
        "ranks.csv": ranks_table(rankings).to_csv(index=False),
        "intervals.csv": intervals.to_csv(index=False),
    }
    for name, content in files.items():
        log.text(name, content)
    with tempfile.TemporaryDirectory() as folder:
        for drawing in draw_all(models, intervals, rankings["worst_group_auroc"], comparison):
            for path in save(drawing, Path(folder)):
                log.file(path, "figures")
    return text


def whole_seeds(models: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """Keep, within each task, the seeds in which every method that ever worked has a model.

    Tasks and methods stand in the order of the settings. A method that always failed has no rows.
    """
    kept = []
    for _, rows in models.groupby("task", sort=False):
        found = rows.groupby("seed")["method"].nunique()
        whole = found.index[found == rows["method"].nunique()]
        kept.append(rows[rows["seed"].isin(whole)])
    orders = {
        "task": {task.name: i for i, task in enumerate(comparison.tasks)},
        "method": {m.name: i for i, m in enumerate(comparison.methods)},
    }
    return pd.concat(kept).sort_values(
        KEYS,
        key=lambda column: column.map(orders.get(str(column.name), lambda seed: seed)),
        ignore_index=True,
    )


def _seeds_note(
    whole: pd.DataFrame, found: pd.DataFrame, status: pd.DataFrame, comparison: Comparison
) -> str:
    """Say which seeds count, and which methods have no model and why."""
    counts = whole.groupby("task", sort=False)["seed"].nunique()
    planned = len(comparison.seeds)
    said = ", ".join(f"{t.name}: {counts.get(t.name, 0)} of {planned}" for t in comparison.tasks)
    own = any(m.fine_tunes(comparison.trials) != comparison.trials for m in comparison.methods)
    trials = (
        "trials of each method and seed: see the table"
        if own
        else f"{comparison.trials} trials for each method and seed"
    )
    notes = [f"Complete seeds: {said}; {trials}."]
    for task, models in found.groupby("task", sort=False):
        missing = [m.name for m in comparison.methods if m.name not in set(models["method"])]
        if missing:
            notes.append(f"Without a model by {task}: {', '.join(missing)}.")
    failed = status[status["status"] == "FAILED"]
    for (of, name, why), units in failed.groupby(["task", "method", "error"], sort=False):
        seeds = ", ".join(str(seed) for seed in units["seed"].unique())
        notes.append(f"Failed: {of}, {name}, seed {seeds}: {why}.")
    return " ".join(notes)


def resample(results: Results, comparison: Comparison) -> Draws:
    """Resample the test patients of every model, the same ones for models of the same images."""
    found: Draws = {}
    by_runs: dict[tuple[str, ...], PatientDraws] = {}  # a chosen method shares another's runs
    for task, name, seed in results.models[KEYS].itertuples(index=False):
        key = (str(task), str(name), int(seed))
        runs = results.runs[key]
        if runs not in by_runs:
            by_runs[runs] = patient_draws(
                results.predictions(key),
                HEADLINE,
                n_resamples=comparison.resamples,
                seed=named_seed(0, "comparison", "patients"),
            )
        found[key] = by_runs[runs]
    return found


def differences(models: pd.DataFrame, draws: Draws, comparison: Comparison) -> pd.DataFrame:
    """Compare each method with each reference, on each task and headline figure of test.

    Returns
    -------
    DataFrame
        task, metric, method, reference; the columns of `SeedDifference`; those of the patients'
        interval as ``patient_...``; ``p_holm`` and ``patient_p_holm``, each corrected over the
        methods that are compared with one reference on one task by one metric.
    """
    rows = []
    for (task, name), mine in models.groupby(["task", "method"], sort=False):
        for reference in comparison.references:
            base = models[(models["task"] == task) & (models["method"] == reference)]
            if reference == name or base.empty:
                continue
            pairs = mine.merge(base, on="seed", suffixes=("", "_of_reference"))
            for metric in HEADLINE:
                column = f"test/{metric}"
                head = {"task": task, "metric": metric, "method": name, "reference": reference}
                seeds = seed_difference(pairs[column], pairs[f"{column}_of_reference"])
                own = [draws[str(task), str(name), seed] for seed in pairs["seed"]]
                others = [draws[str(task), reference, seed] for seed in pairs["seed"]]
                found = asdict(patient_interval(own, others, metric))
                patients = {f"patient_{key}": value for key, value in found.items()}
                rows.append({**head, **asdict(seeds), **patients})
    table = pd.DataFrame(rows)
    for p in ("p_value", "patient_p_value") if rows else ():
        family = table.groupby(["task", "metric", "reference"])[p]
        table[p.replace("_value", "_holm")] = family.transform(lambda values: holm(list(values)))
    return table


def overall_intervals(models: pd.DataFrame, draws: Draws, comparison: Comparison) -> pd.DataFrame:
    """Give each method's mean test figures their intervals; ``over`` says over what.

    Over seeds where each draws people anew, so that they vary with the people as well; else over patients.
    """
    redrawn = {task.name for task in comparison.tasks if task.seed_keys}
    rows = []
    for (task, name), mine in models.groupby(["task", "method"], sort=False):
        own = [draws[str(task), str(name), int(seed)] for seed in mine["seed"]]
        over_seeds = task in redrawn and len(mine) > 1
        for metric in HEADLINE:
            found = asdict(patient_interval(own, None, metric))
            if over_seeds:
                known = seed_difference(mine[f"test/{metric}"], [0.0] * len(mine))
                found |= {"estimate": known.mean, "low": known.low, "high": known.high}
            over = "seeds" if over_seeds else "patients"
            rows.append({"task": task, "method": name, "metric": metric, "over": over, **found})
    return pd.DataFrame(rows)
