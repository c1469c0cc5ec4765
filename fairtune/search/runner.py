"""The objective that hyperopt minimises: find the trial's run, fine-tune, answer with a loss."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperopt import STATUS_FAIL, STATUS_OK
from mlflow.entities import Run

from fairtune.config import Config
from fairtune.data.cache import cache_dir
from fairtune.fairness import Objective, get_objective
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.peft import Mask
from fairtune.search.point import Point, SearchSpace
from fairtune.search.pruning import make_pruner
from fairtune.search.trial import PRUNED_AT, Leg, Rungs, Trial, mask_params, mask_tags, run_trial
from fairtune.search.worker import is_repeated, stop_requested, worker_workspace
from fairtune.seeding import seed as named_seed
from fairtune.tracking.runs import RUNG, RunLog, is_store_failure, one_line
from fairtune.training.pause import forget_abandoned
from fairtune.workspace import Workspace

logger = logging.getLogger(__name__)

NUMBER = "fairtune.number"
KEY = "fairtune.key"
ERROR = "fairtune.error"
REPEATED = "fairtune.repeated"
GOES_ON_FROM = "fairtune.goes_on_from"
"""Tag of a trial that paused and goes on: after how many epochs."""
LEGS = "fairtune.legs"
"""Tag of a trial that went on: begin and end of every leg (ms), but for the end of the last, the run's."""


@dataclass(frozen=True)
class TrialRunner:
    """Run one proposal. Picklable: a worker process opens its own workspace and run.

    The driver opens a trial's run when it proposes it, so that its number, its parameters and its
    place under the parent do not depend on who runs it; the runner finds that run by its key. Run
    again, after a worker was lost, it goes on in the same run.
    """

    config: Config
    source: str | None
    space: SearchSpace
    parent: RunLog
    stop: StopRequest = field(default_factory=StopRequest)
    keep_models: bool = True

    def open(self, number: int, point: Point) -> None:
        """Open the run of a proposal: called in the driver, before the trial runs anywhere."""
        workspace = self._workspace()
        mask = workspace.mask(point.bits)
        self.parent.child(
            f"trial-{number:03d} {mask.space} {mask.short()}",
            "trial",
            params=mask_params(mask, point.learning_rate, point.extras),
            tags={NUMBER: number, KEY: point.key, **mask_tags(mask, workspace)},
        )

    def reopen(self, number: int) -> None:
        """Open the run of a paused trial again: called in the driver, before the trial goes on."""
        run = self.parent.children(f"tags.`{NUMBER}` = '{number}'")[-1]
        log = self.parent.sibling(run.info.run_id)
        legs = [f"{begin}-{end}" for begin, end in legs_of(run)]
        # In this order, so that a trial that is cut off here still waits at its rung.
        log.log(
            tags={
                GOES_ON_FROM: run.data.tags[PRUNED_AT],
                LEGS: " ".join([*legs, str(round(time.time() * 1000))]),
            }
        )
        log.client.update_run(log.run_id, status="RUNNING")
        log.client.delete_tag(log.run_id, PRUNED_AT)

    def pause_again(self, run: Run) -> Run:
        """Close the run of a trial that was cut off after `reopen` as what it was before."""
        log = self.parent.sibling(run.info.run_id)
        log.log(tags={PRUNED_AT: run.data.tags[GOES_ON_FROM]})
        log.end(at=run.info.end_time)
        return log.data()

    def forget_paused(self) -> None:
        """Remove what paused trials left on this machine, when the search is over."""
        shutil.rmtree(self._paused, ignore_errors=True)

    @property
    def _paused(self) -> Path:
        return cache_dir() / "paused" / self.parent.run_id

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Fine-tune and judge one sample of the space; a failure ends this trial alone."""
        point = self.space.point(sample)
        run = self._run_of(point)
        log = self.parent.sibling(run.info.run_id)
        objective = get_objective(self.config.search.objective)
        if has_ended(run):  # a worker was lost after it had written everything
            return result_of(run, objective)
        if is_repeated():
            log.log(tags={REPEATED: "true"})
        try:
            workspace = self._workspace()
            mask = workspace.mask(point.bits)
            trial = self._trial(workspace, mask, point, run, log, objective)
        except Exception as error:
            if is_store_failure(error):  # not this trial's fault, and the next would meet it too
                raise
            logger.warning("trial %s failed: %s", run.data.tags[NUMBER], one_line(error))
            logger.debug("trial failed", exc_info=True)
            log.log(tags={ERROR: one_line(error)})
            log.end("FAILED")
            self._state(run).unlink(missing_ok=True)
            return result_of(log.data(), objective)
        cut_off = trial.epochs < self.config.train.epochs and trial.stopped_at is None
        if cut_off:
            log.end("KILLED")
            raise InterruptedSearchError("stopped by Ctrl-C")
        log.end()
        if trial.stopped_at is None:
            self._state(run).unlink(missing_ok=True)
        return result_of(log.data(), objective)

    def _state(self, run: Run) -> Path:
        """Return where a trial that pauses leaves its state."""
        return self._paused / f"{run.info.run_id}.pt"

    def _trial(
        self,
        workspace: Workspace,
        mask: Mask,
        point: Point,
        run: Run,
        log: RunLog,
        objective: Objective,
    ) -> Trial:
        pruning = self.config.search.pruning
        number = int(run.data.tags[NUMBER])
        pruner = make_pruner(pruning)
        rungs = leg = None
        if pruning.rule == "asha":
            done = int(run.data.tags.get(GOES_ON_FROM, 0))
            seconds = run.data.metrics.get("seconds", 0.0) if done else 0.0
            leg = Leg(self._state(run), done, seconds)
            forget_abandoned(self._paused.parent)
        if pruner is not None:
            rungs = Rungs(
                self.config.rungs, pruner, lambda rung, worth: self._at_rung(rung, worth, number)
            )
        return run_trial(
            workspace,
            mask,
            point.learning_rate,
            seed=named_seed(self.config.seed, "trial", number),
            objective=objective,
            log=log,
            extras=point.extras,
            rungs=rungs,
            leg=leg,
            should_stop=lambda: stop_requested(self.stop, self.parent),
            keep_model=self.keep_models,
        )

    def _workspace(self) -> Workspace:
        return worker_workspace(self.config, self.source)

    def _run_of(self, point: Point) -> Run:
        """Find the run that `open` made; of several (a repeated trial) the last one."""
        return self.parent.children(f"tags.`{KEY}` = '{point.key}'")[-1]

    def judged_at(self, run: Run, epoch: int) -> dict[str, float]:
        """Return the figures of a result as they were after an epoch that is not the run's last."""
        found: dict[str, float] = {}
        for key in ("auroc", "worst_group_auroc"):
            history = self.parent.client.get_metric_history(run.info.run_id, f"val/{key}")
            found.update((key, m.value) for m in history if m.step == epoch)
        return found

    def _at_rung(self, rung: int, value: float, number: int) -> list[float]:
        """Tell the others what this trial is worth at a rung; return what they were worth.

        The shared memory is one metric of the parent run per rung, with the trial's number as step:
        one query whatever the number of trials, and a trial that is repeated counts once.
        """
        name = f"{RUNG}{rung:03d}"
        history = self.parent.client.get_metric_history(self.parent.run_id, name)
        self.parent.log(metrics={name: value}, step=number)
        return list({m.step: m.value for m in history if m.step != number}.values())


def has_ended(run: Run) -> bool:
    """Say whether a trial came to an end of its own: a value or a reason why it has none."""
    return run.info.status == "FINISHED" or ERROR in run.data.tags


def waits_again(run: Run) -> bool:
    """Say whether a paused trial was cut off when it went on: its last metrics are of a later epoch."""
    tags = run.data.tags
    return PRUNED_AT in tags and tags.get(GOES_ON_FROM) == tags[PRUNED_AT]


def legs_of(run: Run) -> list[tuple[int, int]]:
    """Return when a closed trial trained: begin and end in milliseconds, of every leg.

    The end of the last one is before its begin where the trial was killed, and is not known.
    """
    *ended, last = run.data.tags.get(LEGS, str(run.info.start_time)).split()
    legs = [(int(begin), int(end)) for begin, _, end in (leg.partition("-") for leg in ended)]
    return [*legs, (int(last), run.info.end_time or 0)]


def result_of(run: Run, objective: Objective) -> dict[str, Any]:
    """Read a closed trial's run as a hyperopt result; a resumed search sees the same values."""
    metrics, pruned_at = run.data.metrics, run.data.tags.get(PRUNED_AT)
    ended_at = int(metrics.get("epochs", 0)) if pruned_at is None else int(pruned_at)
    values = {int(k.removeprefix(RUNG)): v for k, v in metrics.items() if k.startswith(RUNG)}
    about = {
        "run_id": run.info.run_id,
        # No mapping, as its keys would have to be text; and none of a leg that was cut off.
        "rungs": [[rung, v] for rung, v in values.items() if rung <= ended_at],
        "epochs": ended_at,
    }
    if ERROR in run.data.tags:
        return {**about, "status": STATUS_FAIL, "error": run.data.tags[ERROR]}
    value = metrics["objective"] if pruned_at is None else objective.loss(-values[ended_at])
    return {
        **about,
        "status": STATUS_OK,
        "loss": objective.loss(value),
        "value": value,
        "auroc": metrics["val/auroc"],
        "worst_group_auroc": metrics.get("val/worst_group_auroc", math.nan),
        "images_per_second": metrics.get("train/images_per_second", math.nan),
        "pruned": pruned_at is not None,
        "number": int(run.data.tags[NUMBER]),
    }
