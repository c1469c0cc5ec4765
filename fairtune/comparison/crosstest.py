"""Cross-testing of one search or fine-tune: once in each fold, judged on all images together.

Every fold is a nested run of its own, with its own selection on its own validation part; its test part
is read once, by the model that has never seen it. The figures are those of all test parts together.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from fairtune.comparison.folds import POOLED_THRESHOLD, FoldPredictions, pool, pooled_metrics
from fairtune.comparison.results import fold_predictions
from fairtune.comparison.unit import FOLD
from fairtune.config import Config, differing_keys, parse_config
from fairtune.errors import InputError
from fairtune.fairness import BootstrapReport, bootstrap_report, get_objective
from fairtune.interrupt import StopRequest
from fairtune.search.search import BUDGET_KEYS, EXPERIMENT, search
from fairtune.search.single import evaluate_once, fine_tune_once
from fairtune.seeding import seed as named_seed
from fairtune.tracking.predictions import groups_of, probabilities_of
from fairtune.tracking.runs import KIND, PARENT, RunLog, existing_run, open_run, runs_nested_in

logger = logging.getLogger(__name__)

CROSSTEST = "crosstest"
RESAMPLES = 2000
Command = Literal["search", "finetune"]
RunFold = Callable[[Config, str | None], str]
"""Runs a fold's configuration, given the run to resume; returns its run id."""


@dataclass(frozen=True)
class CrossTest:
    """What a cross-test came to."""

    run_id: str
    fold_runs: tuple[str, ...]
    metrics: dict[str, float]
    """Of all test parts together, ``test/<metric>``, and the mean objective on validation."""


def cross_test(
    config: Config,
    source: str | None,
    stop: StopRequest,
    command: Command,
    *,
    bits: tuple[int, ...] = (),
    resume: str | None = None,
) -> CrossTest:
    """Run a search or a fine-tune once in each of ``config.data.folds`` folds.

    Parameters
    ----------
    bits
        Of the mask, for a fine-tune.
    resume
        Run id of an earlier cross-test of the same configuration; finished folds are kept.

    Raises
    ------
    InputError
        No folds in the configuration, or a run that is another cross-test.
    """
    if config.data.folds is None:
        raise InputError("cross-testing needs data.folds, as --folds 5 sets it")
    if resume:
        check_same(existing_run(resume), config, command)

    def run_search(fold: Config, run_id: str | None) -> str:
        return search(fold, source, stop, resume=run_id).run_id

    def run_finetune(fold: Config, run_id: str | None) -> str:
        done = fine_tune_once(fold, source, bits, stop)[0]
        evaluate_once(done, source)
        return done

    name = f"cross-test {command} {config.data.name} {' '.join(config.data.attributes)}"
    with open_run(CROSSTEST, name, experiment=EXPERIMENT, resume=resume) as log:
        log.text("config.yaml", config.to_yaml())
        log.log(
            tags={
                "fairtune.command": command,
                "fairtune.dataset": config.data.name,
                "fairtune.objective": get_objective(config.search.objective).name,
                **({"fairtune.bits": "-".join(map(str, bits))} if bits else {}),
                **({"fairtune.source": source} if source else {}),
            }
        )
        log.end_children("KILLED")  # of a process that was killed
        run_fold = run_search if command == "search" else run_finetune
        runs = tuple(_fold(log, config, k, run_fold) for k in range(config.data.folds))
        return CrossTest(log.run_id, runs, judge(log, runs, config.seed))


def fold_config(config: Config, fold: int) -> Config:
    """Return the configuration of one fold, whose model is never registered."""
    raw = config.model_dump(mode="json", by_alias=True)
    raw["data"]["fold"], raw["register"] = fold, {}
    return parse_config(raw, f"fold {fold}")


def check_same(log: RunLog, config: Config, command: Command) -> None:
    """Refuse to go on with another run, or under another configuration."""
    tags = log.data().data.tags
    if FOLD in tags and PARENT in tags and tags.get(KIND) == command:
        raise InputError(f"run {log.run_id} is one fold of a cross-test: resume {tags[PARENT]}")
    if tags.get(KIND) != CROSSTEST or tags.get("fairtune.command") != command:
        raise InputError(f"run {log.run_id} is no cross-test of a {command}")
    before = parse_config(yaml.safe_load(log.read_text("config.yaml")), f"run {log.run_id}")
    changed = [key for key in differing_keys(before, config) if key not in BUDGET_KEYS]
    if changed:
        raise InputError(f"run {log.run_id} was started with other values of {', '.join(changed)}")


def _fold(log: RunLog, config: Config, fold: int, run_fold: RunFold) -> str:
    """Run a fold, or go on with it, unless it is done."""
    before = log.children(f"tags.`{FOLD}` = '{fold}'")
    done: list[str] = [run.info.run_id for run in before if run.info.status == "FINISHED"]
    if done and "test/auroc" in log.sibling(done[-1]).data().data.metrics:
        return done[-1]
    logger.info("fold %d of %s", fold + 1, config.data.folds)
    resumable = [r.info.run_id for r in before if r.data.tags.get(KIND) == "search"]
    with runs_nested_in(log, {FOLD: fold}):
        return run_fold(fold_config(config, fold), resumable[-1] if resumable else None)


def judge(log: RunLog, fold_runs: tuple[str, ...], seed: int) -> dict[str, float]:
    """Judge the folds' test parts together, and write figures, intervals and predictions."""
    logs = [log.sibling(run_id) for run_id in fold_runs]
    folds: list[FoldPredictions] = [fold_predictions(one) for one in logs]
    metrics = {f"test/{name}": value for name, value in pooled_metrics(folds).items()}
    objectives = [one.data().data.metrics.get("objective", math.nan) for one in logs]
    if not any(map(math.isnan, objectives)):
        metrics["val/objective_fold_mean"] = sum(objectives) / len(objectives)
    if folds[0].threshold is not None:
        metrics["threshold"] = POOLED_THRESHOLD
    report = intervals(folds, seed)
    for name in ("auroc", "worst_group_auroc", "auroc_gap"):
        metrics[f"test/{name}_standard_error"] = report[name].standard_error
    log.log(metrics=metrics)
    log.text("intervals.csv", report.table().to_csv(index=False))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.parquet"
        pool(folds).to_parquet(path)
        log.file(path, "predictions")
    return metrics


def intervals(folds: list[FoldPredictions], seed: int) -> BootstrapReport:
    """Bootstrap the pooled figures over patients."""
    table = pool(folds)
    return bootstrap_report(
        table["label"].to_numpy(),
        probabilities_of(table),
        groups_of(table),
        table["patient"],
        n_resamples=RESAMPLES,
        seed=named_seed(seed, CROSSTEST),
    )
