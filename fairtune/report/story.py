"""What a report tells: everything about one run, read from the tracking store and nowhere else."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from fairtune.errors import InputError
from fairtune.fairness import (
    BootstrapReport,
    FairnessReport,
    Objective,
    PairedReport,
    bootstrap_report,
    evaluate,
    get_objective,
    paired_bootstrap,
)
from fairtune.report.mask import ModelPicture, picture
from fairtune.report.trials import Trials, read_trials
from fairtune.tracking.predictions import groups_of, probabilities_of, read_predictions
from fairtune.tracking.runs import KIND, PARENT, RunLog, existing_run

logger = logging.getLogger(__name__)

CROSSTEST, MONITOR = "crosstest", "monitor"
KINDS = ("search", "finetune", "trial", "final", CROSSTEST, MONITOR)
SPLITS = ("train", "val", "test", MONITOR)
CANDIDATE = "fairtune.candidate"
FOLD = "fairtune.fold"
WATCHES = "monitor.csv"
WINNER_MARK = " (winner)"
FACTS = "facts.json"
EXAMPLES = "examples/index.json"
GATE = "gate"


@dataclass(frozen=True)
class Example:
    """A strip of images of one class in one group."""

    attribute: str
    group: str
    label: str
    n: int
    jpeg: bytes


@dataclass(frozen=True)
class Story:
    """One run with what belongs to it. Nothing here is formatted."""

    log: RunLog
    run: Run
    kind: str
    config: Mapping[str, Any]
    """The configuration as plain values; empty where the run has none."""
    config_text: str
    reports: Mapping[str, FairnessReport]
    """By split, in the order of `SPLITS`; those that were made."""
    predictions: Mapping[str, pd.DataFrame]
    """By split; see `predictions_table`."""
    picture: ModelPicture | None
    """What trains, block by block; None where nothing was chosen yet."""
    comparison: pd.DataFrame | None
    """Of a search: winner and baselines, means and standard errors over seeds."""
    finals: Mapping[str, list[Run]]
    """Of a search: final runs by candidate."""
    trials: Trials | None
    """Of a search."""
    versions: tuple[ModelVersion, ...]
    """Registered versions made from this run."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Optional: names of classes, provenance of the data, versions of libraries."""
    examples: Sequence[Example] = ()
    """Images of each class in each group, where the configuration allowed to keep them."""
    decisions: Sequence[Mapping[str, Any]] = ()
    """What the promotion gate decided about versions made from this run, oldest first."""
    folds: Sequence[Run] = ()
    """Of a cross-test: the run of each fold that is done."""
    watches: pd.DataFrame | None = None
    """Of a monitoring run: figures as registered and as they are now, with their limits."""
    n_resamples: int = 2000

    @property
    def split(self) -> str:
        """The split that the answer is about: the last that was judged."""
        return list(self.reports)[-1] if self.reports else ""

    @property
    def report(self) -> FairnessReport | None:
        """The report of `split`."""
        return self.reports.get(self.split)

    @property
    def objective(self) -> Objective:
        """What was improved."""
        search = self.config.get("search") or {}
        tag = self.run.data.tags.get("fairtune.objective")
        return get_objective(tag or search.get("objective") or "worst_group_auroc")

    @property
    def dataset(self) -> str:
        """Name of the data set, as far as it is known."""
        data = self.config.get("data") or {}
        return str(self.run.data.tags.get("fairtune.dataset") or data.get("name") or "the data set")

    @property
    def winner(self) -> str | None:
        """Name of the candidate that a search chose."""
        if self.comparison is None:
            return None
        return str(self.comparison["model"].iloc[0]).removesuffix(WINNER_MARK)

    @cached_property
    def spread(self) -> BootstrapReport | None:
        """Intervals over patients on `split`."""
        table = self.predictions.get(self.split)
        if table is None or self.report is None or table["patient"].nunique() < 2:
            return None
        return bootstrap_report(
            table["label"],
            probabilities_of(table),
            groups_of(table),
            table["patient"],
            threshold=self.report.threshold,
            n_resamples=self.n_resamples,
        )

    def typical(self, candidate: str) -> Run | None:
        """Return the run of a candidate that is nearest to the mean of its seeds."""
        runs = self.finals.get(candidate, [])
        best = self.run.data.tags.get("fairtune.best_run_id")
        chosen = [run for run in runs if run.info.run_id == best]
        values = [run.data.metrics.get("objective", math.nan) for run in runs]
        if chosen or not runs or all(math.isnan(value) for value in values):
            return chosen[0] if chosen else None
        return runs[int(np.nanargmin(np.abs(np.array(values) - np.nanmean(values))))]

    def predictions_of(self, run: Run, split: str) -> tuple[pd.DataFrame, float | None] | None:
        """Return another run's predictions of a split, and its threshold."""
        log = self.log.sibling(run.info.run_id)
        name = f"{split}.parquet"
        if f"predictions/{name}" not in artifacts(log, "predictions"):
            return None
        with tempfile.TemporaryDirectory() as folder:
            table = read_predictions(log.download(f"predictions/{name}", folder))
        return table, run.data.metrics.get("threshold")

    def against(self, candidate: str) -> PairedReport | None:
        """Compare the winner with another candidate on the same patients of `split`.

        One run of each, the one nearest to the mean of its seeds; None where the two were not
        evaluated on the same images. Differences are the winner's figure minus the other's.
        """
        mine, run = self.predictions.get(self.split), self.typical(candidate)
        found = self.predictions_of(run, self.split) if run is not None else None
        if mine is None or self.report is None or found is None or mine["patient"].nunique() < 2:
            return None
        other, threshold = found
        other = other.set_index("image").reindex(mine["image"]).reset_index()
        if not other["label"].equals(mine["label"].reset_index(drop=True)):
            return None
        return paired_bootstrap(
            mine["label"],
            probabilities_of(other),
            probabilities_of(mine),
            groups_of(mine),
            mine["patient"],
            threshold_a=threshold,
            threshold_b=self.report.threshold,
            n_resamples=self.n_resamples,
        )


def read_story(run_id: str, *, n_resamples: int = 2000) -> Story:
    """Read all that the report of a run needs.

    Raises
    ------
    InputError
        No such run; a run of a kind that has no report; a run that has nothing to tell yet.
    """
    log = existing_run(run_id)
    run = log.data()
    kind = run.data.tags.get(KIND, "")
    if kind not in KINDS:
        what = f"of kind {kind!r}" if kind else "not one of fairtune's"
        raise InputError(f"run {run_id} is {what}: a report can be made of a {', '.join(KINDS)}")
    parent = run.data.tags.get(PARENT) if kind in ("trial", "final") else None
    owner = log.sibling(parent) if parent else log
    children = owner.children("tags.`fairtune.kind` = 'final'") if owner.run_id else []
    folds = _folds(log) if kind == CROSSTEST else ()
    config_text = _text(owner, "config.yaml")
    if folds:  # what else they have in common is told by the first
        owner = log.sibling(folds[0].info.run_id)
    searched = kind == "search"
    trials = read_trials(log) if searched else None
    with tempfile.TemporaryDirectory() as folder:
        predictions = _predictions(log, Path(folder))
        story = Story(
            log=log,
            run=run,
            kind=kind,
            config=_mapping(config_text),
            config_text=config_text,
            reports=_reports(log) or _judged(predictions, run.data.metrics.get("threshold")),
            predictions=predictions,
            picture=picture(log, children, _facts(owner)),
            comparison=_table(log, "comparison.csv") if searched else None,
            finals=_by_candidate(children) if searched else {},
            trials=trials,
            versions=_versions(log),
            facts=_facts(owner),
            examples=_examples(owner),
            decisions=_decisions(log),
            folds=folds,
            watches=_table(log, WATCHES),
            n_resamples=n_resamples,
        )
    if not story.reports and story.watches is None and (trials is None or trials.table.empty):
        reason = run.data.tags.get("fairtune.error", f"its status is {run.info.status}")
        raise InputError(f"run {run_id} has no result to report yet: {reason}")
    return story


def artifacts(log: RunLog, folder: str = "") -> set[str]:
    """Return the paths of a run's artifacts directly in a folder."""
    return {file.path for file in log.client.list_artifacts(log.run_id, folder or None)}


def _text(log: RunLog, name: str) -> str:
    return log.read_text(name) if name in artifacts(log) else ""


def _mapping(text: str) -> dict[str, Any]:
    found = yaml.safe_load(text) if text else {}
    return found if isinstance(found, dict) else {}


def _facts(log: RunLog) -> dict[str, Any]:
    return _mapping(_text(log, FACTS))


def _reports(log: RunLog) -> dict[str, FairnessReport]:
    text = _text(log, "reports.json")
    if text:
        found = {name: json.dumps(value) for name, value in json.loads(text).items()}
    else:
        text = _text(log, "report.json")
        found = {"val": text} if text else {}
    return {name: FairnessReport.from_json(found[name]) for name in SPLITS if name in found}


def _predictions(log: RunLog, folder: Path) -> dict[str, pd.DataFrame]:
    there = artifacts(log, "predictions")
    return {
        split: read_predictions(log.download(f"predictions/{split}.parquet", folder))
        for split in SPLITS
        if f"predictions/{split}.parquet" in there
    }


def _judged(
    predictions: Mapping[str, pd.DataFrame], threshold: float | None
) -> dict[str, FairnessReport]:
    """Judge the predictions of a run that keeps no reports."""
    return {
        split: evaluate(
            table["label"], probabilities_of(table), groups_of(table), threshold=threshold
        )
        for split, table in predictions.items()
    }


def _table(log: RunLog, name: str) -> pd.DataFrame | None:
    if name not in artifacts(log):
        return None
    with tempfile.TemporaryDirectory() as folder:
        return pd.read_csv(log.download(name, folder))


def _folds(log: RunLog) -> tuple[Run, ...]:
    """Return the run of each fold that has its test figures; of several the last."""
    done = {
        int(run.data.tags[FOLD]): run
        for run in log.children("attributes.status = 'FINISHED'")
        if FOLD in run.data.tags and "test/auroc" in run.data.metrics
    }
    return tuple(done[fold] for fold in sorted(done))


def _by_candidate(finals: list[Run]) -> dict[str, list[Run]]:
    """Group final runs by candidate, one for each seed: the last that ended, as in the search.

    A search that was cut off has others: some that were cut off, and some that failed and were repeated.
    """
    found: dict[str, dict[str, Run]] = {}
    for run in finals:
        if run.info.status == "FINISHED" or "fairtune.error" in run.data.tags:
            seeds = found.setdefault(run.data.tags.get(CANDIDATE, run.info.run_name), {})
            seeds[run.data.params.get("seed_index", run.info.run_id)] = run
    return {name: list(seeds.values()) for name, seeds in found.items()}


def _examples(log: RunLog) -> tuple[Example, ...]:
    if EXAMPLES not in artifacts(log, EXAMPLES.split("/")[0]):
        return ()
    index = json.loads(log.read_text(EXAMPLES))
    with tempfile.TemporaryDirectory() as folder:
        files = log.download(EXAMPLES.split("/")[0], folder)
        return tuple(
            Example(
                one["attribute"],
                one["group"],
                one["class"],
                one["n"],
                (files / Path(one["file"]).name).read_bytes(),
            )
            for one in index
        )


def _decisions(log: RunLog) -> tuple[Mapping[str, Any], ...]:
    found = [json.loads(log.read_text(path)) for path in artifacts(log, GATE)]
    return tuple(sorted(found, key=lambda decision: str(decision["time"])))


def _versions(log: RunLog) -> tuple[ModelVersion, ...]:
    found = log.client.search_model_versions(f"run_id = '{log.run_id}'")
    return tuple(sorted(found, key=lambda version: (version.name, int(version.version))))
