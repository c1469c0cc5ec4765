"""The last step: winner and baselines re-loaded, a threshold from validation, the test split once.

Everything is chosen before this file runs. It re-loads each final run as base weights + delta, fits its
threshold on validation, and only then reads the test split, for all of them in one go.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from fairtune.fairness import (
    FairnessReport,
    evaluate,
    fairness_generalization_gap,
    fit_threshold,
)
from fairtune.peft import Mask, load_delta
from fairtune.search.standings import Standing, standard_error
from fairtune.tracking.predictions import predictions_table
from fairtune.tracking.runs import RunLog, split_metrics
from fairtune.training import Split, predict
from fairtune.workspace import Workspace

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
GAP = "fairness_generalization_gap"
COMPARED = ("auroc", "worst_group_auroc", "auroc_gap")


@dataclass(frozen=True)
class FinalEvaluation:
    """What one final run is worth on every split."""

    run_id: str
    threshold: float | None
    reports: dict[str, FairnessReport]


def load_model(workspace: Workspace, log: RunLog) -> tuple[nn.Module, Mask]:
    """Re-load a run's model from the base weights and the run's delta.

    Raises
    ------
    InputError
        When the run has no delta or it was made from other base weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        mask = Mask.from_json(log.download("mask.json", folder).read_text())
        model = workspace.model(mask, seed=0)
        load_delta(log.download("delta.safetensors", folder), model)
    return model.to(workspace.device).eval(), mask


def evaluate_finals(
    workspace: Workspace, parent: RunLog, finals: Sequence[Standing]
) -> dict[str, list[FinalEvaluation]]:
    """Evaluate every run of every final candidate on train, validation and, once, on test.

    Returns
    -------
    dict
        Candidate name to evaluations, one per seed; each is logged to its own run as well.
    """
    splits = {name: workspace.split(name) for name in SPLITS}
    return {
        standing.candidate.name: [
            evaluate_run(workspace, parent.sibling(run.run_id), splits) for run in standing.runs
        ]
        for standing in finals
    }


def evaluate_run(workspace: Workspace, log: RunLog, splits: dict[str, Split]) -> FinalEvaluation:
    """Evaluate a run's model on these splits, its threshold fitted on ``val``; logged to the run."""
    model, _ = load_model(workspace, log)
    recipe = workspace.config.train
    scores = {
        name: predict(
            model,
            split,
            workspace.spec,
            batch_size=recipe.eval_batch_size,
            device=workspace.device,
            precision="fp32",  # as the served model computes
        )
        for name, split in splits.items()
    }
    threshold = _threshold(splits["val"], scores["val"])
    reports = {
        name: evaluate(split.labels, scores[name], split.groups, threshold=threshold)
        for name, split in splits.items()
    }
    log_evaluation(log, splits, scores, reports, threshold, step=recipe.epochs)
    return FinalEvaluation(log.run_id, threshold, reports)


def _threshold(val: Split, scores: np.ndarray) -> float | None:
    """Fit the threshold; where validation has one class there is nothing to fit: 0.5."""
    if len(val.classes) == 2 and len(np.unique(val.labels)) < 2:
        logger.warning("validation has one class only: the threshold stays at 0.5")
        return 0.5
    return fit_threshold(val.labels, scores)


def log_evaluation(
    log: RunLog,
    splits: dict[str, Split],
    scores: dict[str, np.ndarray],
    reports: dict[str, FairnessReport],
    threshold: float | None,
    step: int = 0,
) -> None:
    """Write the reports and predictions of several splits to a run."""
    metrics = {
        k: v for name, report in reports.items() for k, v in split_metrics(name, report).items()
    }
    for name in reports:
        if name != "train" and "train" in reports:
            metrics[f"{name}/{GAP}"] = fairness_generalization_gap(reports["train"], reports[name])
    if threshold is not None:
        metrics["threshold"] = threshold
    log.json("reports.json", {name: _plain(report) for name, report in reports.items()})
    tables = [report.table().assign(split=name) for name, report in reports.items()]
    log.text("groups.csv", pd.concat(tables).to_csv(index=False))
    with tempfile.TemporaryDirectory() as folder:
        for name, split in splits.items():
            path = Path(folder) / f"{name}.parquet"
            predictions_table(split, scores[name]).to_parquet(path)
            log.file(path, "predictions")
    log.log(metrics=metrics, step=step)  # last: where they stand, everything does


def _plain(report: FairnessReport) -> object:
    import json

    return json.loads(report.to_json())


def comparison(evaluations: dict[str, list[FinalEvaluation]], winner: str) -> pd.DataFrame:
    """Tabulate winner and baselines: mean and standard error over seeds, per split and metric.

    Returns
    -------
    DataFrame
        One row per candidate, the winner first; columns ``<split>/<metric>``, the same with
        ``_se``, and ``n`` (seeds).
    """
    rows = []
    for name, runs in sorted(evaluations.items(), key=lambda item: item[0] != winner):
        row: dict[str, object] = {
            "model": f"{name} (winner)" if name == winner else name,
            "n": len(runs),
        }
        for split in SPLITS:
            for metric in COMPARED:
                values = [run.reports[split].headline[metric] for run in runs]
                row[f"{split}/{metric}"] = float(np.mean(values))
                row[f"{split}/{metric}_se"] = standard_error(values)
        gaps = [fairness_generalization_gap(r.reports["train"], r.reports["test"]) for r in runs]
        row[f"test/{GAP}"], row[f"test/{GAP}_se"] = float(np.mean(gaps)), standard_error(gaps)
        rows.append(row)
    return pd.DataFrame(rows)
