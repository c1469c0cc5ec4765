"""The choice of the winner: the best trials once more, with fresh seeds, on validation.

The best of many noisy trials owes part of its value to luck. So the best few are fine-tuned again,
several times each, and ranked by a lower bound of what they reach: mean minus standard error. Two
baselines, full fine-tuning and the linear probe, run with as many seeds and compete: where a baseline is
best on validation, it wins, and a reader can compare like with like.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fairtune.config import Config
from fairtune.errors import InputError
from fairtune.fairness import FairnessReport, Objective, get_objective
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.peft import Mask
from fairtune.search.point import Point
from fairtune.search.runner import ERROR
from fairtune.search.settings import FinalSettings
from fairtune.search.study import FinishedTrial, NoTrialError
from fairtune.search.trial import mask_params, mask_tags, run_trial
from fairtune.seeding import seed as named_seed
from fairtune.tracking.runs import RunLog, is_store_failure, one_line
from fairtune.workspace import Workspace, open_workspace

logger = logging.getLogger(__name__)

FINAL_KEY = "fairtune.final_key"
BASELINES = {"full fine-tuning": "fullft", "linear probe": "linear_readout"}


@dataclass(frozen=True)
class Candidate:
    """A mask and learning rate that is fine-tuned again."""

    name: str
    space: str
    bits: tuple[int, ...]
    learning_rate: float
    number: int | None = None
    """The trial it comes from; None for a baseline."""
    first_value: float = math.nan
    """The objective in the search, which owes something to luck."""


@dataclass(frozen=True)
class FinalRun:
    """One fine-tune of a candidate."""

    candidate: Candidate
    index: int
    run_id: str
    value: float
    auroc: float
    error: str | None = None
    """Why it has no value."""


@dataclass(frozen=True)
class Standing:
    """A candidate with its runs."""

    candidate: Candidate
    runs: tuple[FinalRun, ...]

    @property
    def mean(self) -> float:
        """Mean objective over the seeds."""
        return float(np.mean([run.value for run in self.runs]))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over the seeds; NaN for one seed."""
        return standard_error([run.value for run in self.runs])

    @property
    def auroc(self) -> float:
        """Mean overall AUROC over the seeds."""
        return float(np.mean([run.auroc for run in self.runs]))

    @property
    def typical(self) -> FinalRun:
        """The run nearest to the mean: what a user who fine-tunes once may expect."""
        return min(self.runs, key=lambda run: (abs(run.value - self.mean), run.index))

    def bound(self, objective: Objective) -> float:
        """Return the pessimistic end of mean ± standard error, oriented: larger is better."""
        error = self.standard_error
        return -objective.loss(self.mean) - (0.0 if math.isnan(error) else error)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def choose_candidates(
    trials: Sequence[FinishedTrial], objective: Objective, k: int, masks: Mapping[int, Mask]
) -> list[Candidate]:
    """Take the best k trials with different masks, among those that were not pruned.

    `masks` holds the mask of each trial by its number. Where every trial was pruned, all compete.
    """
    whole = [trial for trial in trials if not trial.pruned] or list(trials)
    ranked = sorted(whole, key=lambda trial: (objective.loss(trial.value), trial.number))
    chosen: dict[str, Candidate] = {}
    for trial in ranked:
        mask = masks[trial.number]
        chosen.setdefault(
            mask.fingerprint,
            Candidate(
                name=f"trial-{trial.number:03d}",
                space=mask.space,
                bits=mask.bits,
                learning_rate=trial.point.learning_rate,
                number=trial.number,
                first_value=trial.value,
            ),
        )
    return list(chosen.values())[:k]


def baselines(
    workspace: Workspace, trials: Sequence[FinishedTrial], objective: Objective
) -> list[Candidate]:
    """Return full fine-tuning and the linear probe as candidates.

    Each takes the learning rate that did best on validation for the nearest mask in the search: all
    bits, or none; without such a trial, ``train.learning_rate``.
    """
    found = []
    for name, space in BASELINES.items():
        bit = max(workspace.space.levels) if space == "fullft" else 0
        rates = {
            t.point.learning_rate: objective.loss(t.value)
            for t in sorted(trials, key=lambda t: -objective.loss(t.value))
            if all(b == bit for b in t.point.bits)
        }
        rate = min(rates, key=lambda r: rates[r]) if rates else workspace.config.train.learning_rate
        found.append(Candidate(name, space, (), rate))
    return found


@dataclass(frozen=True)
class FinalRunner:
    """Fine-tune one candidate with one seed. Picklable; skips what the parent run already has."""

    config: Config
    source: str | None
    parent: RunLog
    stop: StopRequest = field(default_factory=StopRequest)

    def __call__(self, job: tuple[Candidate, int]) -> FinalRun:
        """Run one (candidate, seed index)."""
        candidate, index = job
        workspace = open_workspace(self.config, self.source)
        objective = get_objective(self.config.search.objective)
        mask = workspace.mask(candidate.bits, candidate.space)
        point = Point(candidate.bits, candidate.learning_rate)
        key = f"{candidate.space}/{point.key}/{index}"
        done = self.parent.children(
            f"tags.`{FINAL_KEY}` = '{key}' and attributes.status = 'FINISHED'"
        )
        if done:
            metrics = done[0].data.metrics
            run_id = done[0].info.run_id
            return FinalRun(candidate, index, run_id, metrics["objective"], metrics["val/auroc"])
        log = self.parent.child(
            f"final {candidate.name} seed-{index}",
            "final",
            params={**mask_params(mask, candidate.learning_rate), "seed_index": index},
            tags={
                FINAL_KEY: key,
                "fairtune.candidate": candidate.name,
                **mask_tags(mask, workspace),
            },
        )
        try:
            trial = run_trial(
                workspace,
                mask,
                candidate.learning_rate,
                # By what is fine-tuned, not by rank: a resumed search repeats the same figures.
                seed=named_seed(self.config.seed, "final", candidate.space, point.key, index),
                objective=objective,
                log=log,
                should_stop=lambda: self.stop.requested,
            )
        except Exception as error:
            if is_store_failure(error):
                raise
            reason = one_line(error)
            logger.warning("%s, seed %d, failed: %s", candidate.name, index, reason)
            log.log(tags={ERROR: reason})
            log.end("FAILED")
            return FinalRun(candidate, index, log.run_id, math.nan, math.nan, reason)
        if trial.epochs < self.config.train.epochs:
            log.end("KILLED")
            raise InterruptedSearchError("stopped by Ctrl-C")
        log.end()
        return FinalRun(candidate, index, log.run_id, trial.value, trial.report.headline["auroc"])


def standings(runs: Sequence[FinalRun]) -> list[Standing]:
    """Group final runs by candidate, in order of appearance.

    A candidate of which one seed failed is out: what cannot be relied on is not chosen.

    Raises
    ------
    NoTrialError
        When every candidate is out; names the first reason.
    """
    failed = {run.candidate.name: run.error for run in runs if run.error is not None}
    names = dict.fromkeys(run.candidate.name for run in runs)
    found = [
        Standing(mine[0].candidate, mine)
        for name in names
        if name not in failed and (mine := tuple(run for run in runs if run.candidate.name == name))
    ]
    for name, reason in failed.items():
        logger.warning("%s is no candidate any more: %s", name, reason)
    if not found:
        raise NoTrialError(f"every final run failed; the first with: {next(iter(failed.values()))}")
    return found


def pick_winner(
    contenders: Sequence[Standing], objective: Objective, settings: FinalSettings
) -> Standing:
    """Return the candidate with the best lower bound, subject to the limit on overall AUROC."""
    allowed = list(contenders)
    if settings.max_auroc_loss is not None:
        best = max(standing.auroc for standing in allowed)
        allowed = [s for s in allowed if s.auroc >= best - settings.max_auroc_loss]
    if not allowed:
        raise InputError("no candidate has a defined overall AUROC: check the validation split")
    return max(allowed, key=lambda standing: standing.bound(objective))


def reports_of(parent: RunLog, standing: Standing) -> list[FairnessReport]:
    """Read the validation reports of a candidate's runs back from the store."""
    return [
        FairnessReport.from_json(parent.sibling(run.run_id).read_text("report.json"))
        for run in standing.runs
    ]
