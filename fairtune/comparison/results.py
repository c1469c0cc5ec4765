"""From runs to figures: one row a model, and the predictions behind it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from mlflow.entities import Run

from fairtune.comparison.folds import FoldPredictions, pool, pooled_metrics
from fairtune.comparison.settings import Comparison
from fairtune.comparison.unit import FOLD, METHOD, OVERLAP, SEED, TASK, UNIT, units
from fairtune.fairness import get_objective
from fairtune.search.runner import ERROR
from fairtune.search.winner import GAP, SPLITS
from fairtune.tracking.predictions import read_predictions
from fairtune.tracking.runs import RunLog

HEADLINE = ("auroc", "worst_group_auroc", "auroc_gap")
ON_TEST = (
    "equalized_odds_difference",
    "demographic_parity_difference",
    "balanced_accuracy",
    "ece",
    *(f"{name}_fold_mean" for name in HEADLINE),
)
KEYS = ["task", "method", "seed"]
Key = tuple[str, str, int]


@dataclass(frozen=True, eq=False)
class Results:
    """What a comparison's runs say.

    Attributes
    ----------
    status
        A row per unit that was begun: task, method, seed, fold, status, error, run_id, minutes.
    models
        A row per (task, method, seed) that is complete: figures by name, ``share`` of the
        parameters that train, ``mask``, ``learning_rate``.
    runs
        The run ids behind each (task, method, seed), one per fold.
    """

    status: pd.DataFrame
    models: pd.DataFrame
    runs: Mapping[Key, tuple[str, ...]]
    log: RunLog

    def predictions(self, key: Key) -> pd.DataFrame:
        """Return the test predictions of a model, pooled over its folds."""
        folds = self.folds(key)
        return folds[0].test if len(folds) == 1 else pool(folds)

    def folds(self, key: Key) -> list[FoldPredictions]:
        """Return the validation and test predictions of a model, one for each of its folds."""
        return [fold_predictions(self.log.sibling(run_id)) for run_id in self.runs[key]]


def collect(log: RunLog, comparison: Comparison) -> Results:
    """Read everything that the comparison's runs have, of the settings as they are now."""
    place = {unit.key: place for place, unit in enumerate(units(comparison))}
    runs = [run for run in log.children() if run.data.tags.get(UNIT) in place]
    runs.sort(key=lambda run: place[run.data.tags[UNIT]])  # whoever was first, the same tables
    status = pd.DataFrame([_status(run) for run in runs], columns=[*_STATUS])
    # Of a unit that two processes ran at once, the later run.
    whole = {run.data.tags[UNIT]: run for run in runs if run.info.status == "FINISHED"}
    finished: dict[Key, list[Run]] = {}
    for run in whole.values():
        finished.setdefault(_key(run), []).append(run)
    complete: dict[Key, list[Run]] = {}
    for task in comparison.tasks:
        folds = len(task.tested_folds)
        complete |= {k: r for k, r in finished.items() if k[0] == task.name and len(r) == folds}
    rows = [{**dict(zip(KEYS, k, strict=True)), **_figures(log, r)} for k, r in complete.items()]
    found = {key: tuple(run.info.run_id for run in mine) for key, mine in complete.items()}
    models = pd.DataFrame(rows, columns=None if rows else KEYS)
    models, found = _with_choices(models, found, comparison)
    return Results(status, models, found, log)


_STATUS = ("task", "method", "seed", "fold", "status", "minutes", "error", "run_id")


def _status(run: Run) -> dict[str, object]:
    tags, info = run.data.tags, run.info
    spent = (info.end_time - info.start_time) / 60_000 if info.end_time else math.nan
    return {
        "task": tags[TASK],
        "method": tags[METHOD],
        "seed": int(tags[SEED]),
        "fold": tags.get(FOLD, ""),
        "status": info.status,
        "minutes": round(spent, 3),
        "error": tags.get(ERROR, ""),
        "run_id": info.run_id,
    }


def _key(run: Run) -> Key:
    tags = run.data.tags
    return tags[TASK], tags[METHOD], int(tags[SEED])


def _figures(log: RunLog, runs: Sequence[Run]) -> dict[str, object]:
    """Return the figures of a model; with folds, those of the pooled test parts."""
    metrics = [run.data.metrics for run in runs]

    def mean(name: str) -> float:
        return float(np.mean([values.get(name, math.nan) for values in metrics]))

    row: dict[str, object] = {f"{s}/{m}": mean(f"{s}/{m}") for s in SPLITS for m in HEADLINE}
    row |= {
        f"test/{name}": mean(f"test/{name}") for name in ON_TEST if f"test/{name}" in metrics[0]
    }
    if len(runs) > 1:
        pooled = pooled_metrics([fold_predictions(log.sibling(r.info.run_id)) for r in runs])
        row |= {f"test/{name}": pooled[name] for name in (*HEADLINE, *ON_TEST)}
    row[f"test/{GAP}"] = float(row["test/auroc_gap"]) - float(row["train/auroc_gap"])  # type: ignore[arg-type]
    return {
        **row,
        "val/objective": mean("objective"),
        "share": mean("share"),
        OVERLAP: mean(OVERLAP),
        "mask": " ".join(run.data.params.get("mask", "") for run in runs),
        "learning_rate": " ".join(run.data.params.get("learning_rate", "") for run in runs),
    }


def fold_predictions(log: RunLog) -> FoldPredictions:
    """Read the predictions that a model's run has, and its threshold."""
    with tempfile.TemporaryDirectory() as folder:
        tables = {
            name: read_predictions(log.download(f"predictions/{name}.parquet", folder))
            for name in ("val", "test")
        }
    return FoldPredictions(**tables, threshold=log.data().data.metrics.get("threshold"))


def _with_choices(
    models: pd.DataFrame, runs: dict[Key, tuple[str, ...]], comparison: Comparison
) -> tuple[pd.DataFrame, dict[Key, tuple[str, ...]]]:
    """Add the methods that take the best of others by validation; they have no runs of their own."""
    objectives = {t.name: t.config["search"]["objective"] for t in comparison.tasks}
    added = []
    for how in comparison.methods:
        if not how.best_of or models.empty:
            continue
        among = models[models["method"].isin(comparison.choices(how))]
        # Some fit no model of this kind, and are nowhere.
        fit = {str(task): rows["method"].nunique() for task, rows in among.groupby("task")}
        for (task, _), rows in among.groupby(["task", "seed"]):
            if len(rows) < fit[str(task)]:
                continue  # a choice among fewer would be another method
            loss = get_objective(objectives[str(task)]).loss
            best = rows.to_dict("records")[int(rows["val/objective"].map(loss).argmin())]
            added.append({**best, "method": how.name, "chosen": best["method"]})
            key = str(task), best["method"], int(best["seed"])
            runs[key[0], how.name, key[2]] = runs[key]
    if added:
        models = pd.concat([models, pd.DataFrame(added)], ignore_index=True)
    return models, runs
