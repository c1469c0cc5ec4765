"""One unit: a method on a task with one seed (and fold), from its trials to its one look at test."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field

import numpy as np
from mlflow.entities import Run
from torch import nn

from fairtune.comparison.methods import Method
from fairtune.comparison.settings import Comparison, Task
from fairtune.config import Config
from fairtune.errors import FairtuneError
from fairtune.fairness import get_objective
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.peft import Mask, bits_text, get_space
from fairtune.search.executors import SerialExecutor
from fairtune.search.final import FinalRunner, choose_candidates
from fairtune.search.runner import ERROR, TrialRunner
from fairtune.search.search import describe
from fairtune.search.standings import pick_winner, standings
from fairtune.search.study import FinishedTrial, run_study, search_space
from fairtune.search.trial import check_validation, mask_params, mask_tags, run_trial
from fairtune.search.winner import SPLITS, evaluate_run
from fairtune.search.worker import HeardStop, worker_workspace
from fairtune.seeding import seed as named_seed
from fairtune.tracking.runs import RunLog, is_store_failure, one_line
from fairtune.workspace import Workspace

logger = logging.getLogger(__name__)

KIND = "method"
TASK, METHOD, SEED, FOLD, UNIT = (
    f"fairtune.{key}" for key in ("task", "method", "seed", "fold", "unit")
)
OVERLAP = "mask_overlap"
"""Metric of a random mask: how much of it is the same as in the mask whose size it has."""
DRAWS = 2000
"""Masks that are drawn to find one of the wanted size."""


class NoMaskError(FairtuneError):
    """The method whose mask gives the size has none."""


@dataclass(frozen=True)
class Unit:
    """What is run as one: it either stands in the store, with all its figures, or it does not."""

    task: Task
    method: Method
    seed: int
    fold: int | None

    @property
    def key(self) -> str:
        """Return a hash that names the unit within its comparison, whose settings never change.

        The configuration is not part of it: a later release, with more keys in it, finds it again.
        """
        return self._key_of(self.method.name)

    @property
    def needs(self) -> str | None:
        """Return the key of the unit whose mask gives the size of this one's."""
        return None if self.method.size_of is None else self._key_of(self.method.size_of)

    def _key_of(self, method: str) -> str:
        what = [self.task.name, method, self.seed, self.fold]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """Name the unit for people."""
        fold = "" if self.fold is None else f" fold-{self.fold}"
        return f"{self.task.name} {self.method.name} seed-{self.seed}{fold}"

    @property
    def tags(self) -> dict[str, object]:
        """Return the tags by which its run is found."""
        return {
            TASK: self.task.name,
            METHOD: self.method.name,
            SEED: self.seed,
            **({} if self.fold is None else {FOLD: self.fold}),
            UNIT: self.key,
        }


def units(comparison: Comparison) -> list[Unit]:
    """Return all units in order: whole seeds, one after the other, so that a stop leaves whole ones."""
    found = []
    for seed in comparison.seeds:
        for task in comparison.tasks:
            for fold in task.tested_folds:
                found += [Unit(task, how, seed, fold) for how in comparison.trained]
    return found


@dataclass(frozen=True)
class UnitRunner:
    """Run a unit in a nested run. Picklable; what stands in the store is not run again.

    A unit that was cut off goes on in its own run, with the trials that it has. One that fails
    ends FAILED with its reason, and the others go on.
    """

    comparison: Comparison
    source: str | None
    parent: RunLog
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def heard(self) -> StopRequest:
        """The request to stop, wherever the unit runs: trials know of their unit's run alone."""
        return HeardStop(self.stop, self.parent)

    def __call__(self, unit: Unit) -> str | None:
        """Run one unit; returns why it failed, if it did."""
        self.heard.check()
        log, done = self._open(unit)
        if done:
            return None
        try:
            self._run(unit, log)
        except Exception as error:
            if is_store_failure(error):
                raise
            logger.debug("unit failed", exc_info=True)
            return self._failed(log, one_line(error))
        log.end()
        return None

    def lost(self, unit: Unit, reason: str) -> str:
        """Close a unit that was lost with its worker, twice; returns the reason."""
        log, _ = self._open(unit)
        return self._failed(log, reason)

    def _failed(self, log: RunLog, reason: str) -> str:
        log.log(tags={ERROR: reason})
        log.end_children("KILLED")
        log.end("FAILED")
        return reason

    def _open(self, unit: Unit) -> tuple[RunLog, bool]:
        """Find the unit's run, or open it; the second value says whether it is finished."""
        runs = self.parent.children(f"tags.`{UNIT}` = '{unit.key}'")
        if not runs:
            return self.parent.child(unit.title, KIND, tags=unit.tags), False
        log = self.parent.sibling(runs[-1].info.run_id)
        if runs[-1].info.status == "FINISHED":
            return log, True
        log.client.update_run(log.run_id, status="RUNNING")
        if ERROR in runs[-1].data.tags:
            log.client.delete_tag(log.run_id, ERROR)
        return log, False

    def _run(self, unit: Unit, log: RunLog) -> None:
        if "test/auroc" in log.data().data.metrics:  # killed after its one look at test
            return
        config = self.comparison.unit_config(unit.task, unit.method, unit.seed, unit.fold)
        source = unit.task.source or self.source
        if unit.method.size_of is not None:
            config = self._with_random_mask(config, unit, source, log)
        workspace = worker_workspace(config, source)
        check_validation(workspace)
        describe(log, workspace, source)
        runner = TrialRunner(
            config, source, search_space(workspace), log, self.heard, keep_models=False
        )
        trials = run_study(runner, SerialExecutor(), workspace, show_progress=False)
        if config.search.final.candidates > 1:
            best = self._best_repeated(workspace, source, log, trials)
        else:
            best = best_trial(trials, config)
        self._final(workspace, log, best)

    def _best_repeated(
        self, workspace: Workspace, source: str | None, log: RunLog, trials: list[FinishedTrial]
    ) -> FinishedTrial:
        """Fine-tune the best trials again with fresh seeds; return the one of the best repetitions."""
        config = workspace.config
        objective, settings = get_objective(config.search.objective), config.search.final
        masks = {trial.number: workspace.mask(trial.point.bits) for trial in trials}
        candidates = choose_candidates(trials, objective, settings.candidates, masks)
        repeat = FinalRunner(config, source, log, self.heard)
        runs = [repeat((one, index)) for one in candidates for index in range(settings.seeds)]
        winner = pick_winner(standings(runs), objective, settings)
        return next(trial for trial in trials if trial.number == winner.candidate.number)

    def _final(self, workspace: Workspace, log: RunLog, best: FinishedTrial) -> None:
        """Fine-tune once more with a fresh seed, and judge that model on every split."""
        config, point = workspace.config, best.point
        mask = workspace.mask(point.bits)
        log.log(
            params=mask_params(mask, point.learning_rate, point.extras),
            metrics={"best_trial": best.number, "best_objective": best.value, "share": mask.share},
            tags=mask_tags(mask, workspace),
        )
        trial = run_trial(
            workspace,
            mask,
            point.learning_rate,
            seed=named_seed(config.seed, "compared", mask.space, point.key),
            objective=get_objective(config.search.objective),
            log=log,
            extras=point.extras,
            should_stop=lambda: self.heard.requested,
        )
        if trial.epochs < config.train.epochs:
            log.end("KILLED")
            raise InterruptedSearchError(self.stop.reason)
        evaluate_run(workspace, log, {name: workspace.split(name) for name in SPLITS})

    def _with_random_mask(
        self, config: Config, unit: Unit, source: str | None, log: RunLog
    ) -> Config:
        """Give the configuration a mask drawn at random, of the size of another method's."""
        run = self._run_of(unit)
        other = Mask.from_json(self.parent.sibling(run.info.run_id).read_text("mask.json"))
        workspace = worker_workspace(config, source)
        seed = named_seed(unit.seed, "random mask", unit.fold or 0)
        bits = random_bits(workspace, other, seed, match=unit.method.match)
        log.log(metrics={OVERLAP: overlap(workspace, bits, other)})
        raw = config.model_dump(mode="json", by_alias=True)
        raw["search"]["space"] = f"{config.search.space}:{bits_text(bits)}"
        return Config.model_validate(raw)

    def _run_of(self, unit: Unit) -> Run:
        """Find the run of the unit whose mask gives the size."""
        where = f"tags.`{UNIT}` = '{unit.needs}' and attributes.status = 'FINISHED'"
        found = self.parent.children(where)
        if not found:
            how = unit.method
            raise NoMaskError(
                f"{how.name} takes the size of {how.size_of}, which has no model for this seed"
            )
        return found[-1]


def best_trial(trials: list[FinishedTrial], config: Config) -> FinishedTrial:
    """Return the whole trial that is best on validation (if all were pruned, any); of equals the first."""
    objective = get_objective(config.search.objective)
    whole = [trial for trial in trials if not trial.pruned] or trials
    return min(whole, key=lambda trial: (objective.loss(trial.value), trial.number))


def random_bits(
    workspace: Workspace, like: Mask, seed: int, match: str = "values"
) -> tuple[int, ...]:
    """Draw bits of the workspace's space that train about as many values, or parts, as another mask.

    Of `DRAWS` random bit vectors, each with a share of bits and a least rank of its own, the first whose
    number of trained values (parts) is nearest to the mask's, and which is not that mask.
    """
    model, space = workspace.base.model, get_space(workspace.config.search.space)
    n, levels = space.n_bits(model), np.array([level for level in space.levels if level])
    fixed = space.mask(model, [0] * n).trained
    rng = np.random.default_rng(seed)
    on = rng.random((DRAWS, n)) < rng.random((DRAWS, 1))  # (D, bits)
    least = rng.integers(len(levels), size=(DRAWS, 1))
    which = rng.integers(least, len(levels), size=on.shape)
    if match == "values":
        alone = np.eye(n, dtype=int)[:, None] * levels[:, None]  # (bits, levels, bits)
        trained = [[space.mask(model, one).trained - fixed for one in part] for part in alone]
        values = np.array(trained).reshape(n, len(levels))
        apart = np.abs((on * values[np.arange(n), which]).sum(axis=1) + fixed - like.trained)
    else:
        apart = np.abs(on.sum(axis=1) - np.count_nonzero(like.bits))
    bits = on * levels[which]
    same = (bits == np.array(like.bits)).all(axis=1) if len(like.bits) == n else False
    best = int(np.argmin(np.where(same, np.inf, apart)))
    return tuple(int(bit) for bit in bits[best])


def overlap(workspace: Workspace, bits: tuple[int, ...], other: Mask) -> float:
    """Return how alike two masks are: the values that train in both over those that train in either.

    What trains under every mask of the space (the head) is left out: Jaccard's index of the rest, 1 where
    there is no rest. Of an adapter with two ranks the lower one is in both.
    """
    model, space = workspace.base.model, get_space(workspace.config.search.space)
    always = space.mask(model, [0] * len(bits)).parameters
    mine, others = _sizes(model, space.mask(model, bits)), _sizes(model, other)
    pairs = [(mine.get(n, 0), others.get(n, 0)) for n in {*mine, *others}.difference(always)]
    either = sum(max(pair) for pair in pairs)
    return sum(min(pair) for pair in pairs) / either if either else 1.0


def _sizes(model: nn.Module, mask: Mask) -> dict[str, int]:
    """Return the number of values in every parameter that a mask trains."""
    space = get_space(mask.space)
    sizes = space.sizes(model, dict(zip(space.bits(model), mask.bits, strict=True)))
    return {name: sizes[name] for name in mask.parameters}
