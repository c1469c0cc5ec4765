"""What a comparison writes to its run: tables, tests and figures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from fairtune.comparison.claim import judge_claim
from fairtune.comparison.figures import draw_all
from fairtune.comparison.results import HEADLINE, KEYS, Results
from fairtune.comparison.settings import Comparison
from fairtune.comparison.statistics import (
    PatientInterval,
    Ranking,
    holm,
    patient_intervals,
    rank,
    seed_difference,
)
from fairtune.comparison.tables import latex, markdown, method_rows, say_ranks
from fairtune.report.style import save
from fairtune.seeding import seed as named_seed
from fairtune.tracking.runs import RunLog

LARGER_IS_BETTER = {"auroc": True, "worst_group_auroc": True, "auroc_gap": False}


def write_results(log: RunLog, comparison: Comparison, results: Results) -> str:
    """Write all tables and figures; returns the main table and the tests as Markdown."""
    models = whole_seeds(results.models, comparison)
    kept = replace(results, models=models)
    apart = differences(kept, comparison)
    intervals = overall_intervals(kept, comparison)
    rows = method_rows(models, comparison)
    rankings = {metric: ranking(models, metric) for metric in HEADLINE}
    claims = judge_claim(apart, comparison)
    parts = [_seeds_note(models, results.models, comparison)]
    for task in dict.fromkeys(models["task"]):
        parts += [f"### {task}", markdown(rows[rows["task"] == task].drop(columns="task"))]
    parts += [say_ranks(rankings["worst_group_auroc"]), claims.text]
    text = "\n\n".join(part for part in parts if part) + "\n"
    files = {
        "table.md": text,
        "table.tex": latex(rows),
        "table.csv": rows.to_csv(index=False),
        "models.csv": results.models.to_csv(index=False),
        "differences.csv": apart.to_csv(index=False),
        "claim.csv": claims.table.to_csv(index=False),
        "ranks.csv": _ranks_table(rankings).to_csv(index=False),
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

    Methods stand in the order of the settings. A method that always failed has no rows.
    """
    kept = []
    for _, rows in models.groupby("task", sort=False):
        found = rows.groupby("seed")["method"].nunique()
        whole = found.index[found == rows["method"].nunique()]
        kept.append(rows[rows["seed"].isin(whole)])
    order = {m.name: i for i, m in enumerate(comparison.methods)}
    models = pd.concat(kept).assign(_order=lambda table: table["method"].map(order))
    return models.sort_values(["task", "_order", "seed"], ignore_index=True).drop(columns="_order")


def _seeds_note(whole: pd.DataFrame, found: pd.DataFrame, comparison: Comparison) -> str:
    counts = whole.groupby("task", sort=False)["seed"].nunique()
    said = ", ".join(f"{task}: {n} of {len(comparison.seeds)}" for task, n in counts.items())
    missing = [m.name for m in comparison.methods if m.name not in set(found["method"])]
    note = f"Complete seeds: {said}; {comparison.trials} trials for each method and seed."
    return note + (f" Without a model: {', '.join(missing)}." if missing else "")


def differences(results: Results, comparison: Comparison) -> pd.DataFrame:
    """Compare each method with each reference, on each task and headline figure of test.

    Returns
    -------
    DataFrame
        task, metric, method, reference; the columns of `SeedDifference`; those of the patients'
        interval as ``patient_…``; ``p_holm`` and ``patient_p_holm``, each corrected over the methods
        that are compared with one reference on one task by one metric.
    """
    rows = []
    for task, models in results.models.groupby("task", sort=False):
        for reference in comparison.references:
            base = models[models["method"] == reference].set_index("seed")
            others = [m for m in dict.fromkeys(models["method"]) if m != reference]
            for name in others if len(base) else ():
                mine = models[models["method"] == name].set_index("seed")
                seeds = [seed for seed in mine.index if seed in base.index]
                patients = _patients(results, str(task), name, reference, seeds, comparison)
                for metric in HEADLINE:
                    column = f"test/{metric}"
                    found = seed_difference(mine.loc[seeds, column], base.loc[seeds, column])
                    extra = {f"patient_{k}": v for k, v in asdict(patients[metric]).items()}
                    head = {"task": task, "metric": metric, "method": name, "reference": reference}
                    rows.append({**head, **asdict(found), **extra})
    table = pd.DataFrame(rows)
    for p in ("p_value", "patient_p_value") if len(table) else ():
        adjusted = table.groupby(["task", "metric", "reference"])[p].transform(
            lambda values: holm(values.tolist())
        )
        table[p.replace("_value", "_holm")] = adjusted
    return table


def _patients(
    results: Results,
    task: str,
    method: str,
    reference: str | None,
    seeds: Sequence[int],
    comparison: Comparison,
) -> dict[str, PatientInterval]:
    own = [results.predictions((task, method, int(seed))) for seed in seeds]
    base = None
    if reference is not None:
        base = [results.predictions((task, reference, int(seed))) for seed in seeds]
    return patient_intervals(
        own,
        base,
        HEADLINE,
        n_resamples=comparison.resamples,
        seed=named_seed(0, "comparison", "patients"),
    )


def overall_intervals(results: Results, comparison: Comparison) -> pd.DataFrame:
    """Give each method's mean test figures their intervals over patients."""
    rows = []
    for (task, name), models in results.models.groupby(["task", "method"], sort=False):
        seeds = models["seed"].tolist()
        found = _patients(results, str(task), str(name), None, seeds, comparison)
        for metric, interval in found.items():
            rows.append({"task": task, "method": name, "metric": metric, **asdict(interval)})
    return pd.DataFrame(rows)


def ranking(models: pd.DataFrame, metric: str) -> Ranking | None:
    """Rank methods in the blocks task and seed by a figure of test."""
    blocks = models.pivot_table(
        index=[key for key in KEYS if key != "method"], columns="method", values=f"test/{metric}"
    )
    return rank(blocks, larger_is_better=LARGER_IS_BETTER[metric])


def _ranks_table(rankings: dict[str, Ranking | None]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "metric": metric,
                "method": found.ranks.index,
                "average_rank": found.ranks.to_numpy(),
                "blocks": found.n_blocks,
                "friedman": found.statistic,
                "friedman_p": found.p_value,
                "critical_difference": found.critical_difference,
            }
        ).join(found.nemenyi.reset_index(drop=True).add_prefix("nemenyi_p_"))
        for metric, found in rankings.items()
        if found is not None
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
