"""One trial: fine-tune under a mask, judge on validation, write it all to the trial's run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.layers.drop import DropPath
from torch import nn
from tqdm import tqdm

from fairtune.errors import InputError
from fairtune.fairness import FairnessReport, Objective, check_groups, get_objective
from fairtune.peft import Mask, save_delta
from fairtune.progress import progress_bar
from fairtune.search.point import Extras
from fairtune.search.pruning import Pruner
from fairtune.search.settings import DROP_PATH
from fairtune.seeding import seed as named_seed
from fairtune.tracking.predictions import predictions_table
from fairtune.tracking.runs import RUNG, RunLog, split_metrics
from fairtune.training import Epoch, FineTuneResult, Split, fine_tune
from fairtune.training.memory import peak, reset_peak
from fairtune.training.profile import profiled
from fairtune.workspace import Workspace

PRUNED_AT = "fairtune.pruned_at"
"""Tag of a trial that was stopped at a rung: after how many epochs."""
PROFILE = "profile/table.txt"
TRACE = "profile/trace.json.gz"
"""Only of a fine-tune of some steps."""


@dataclass(frozen=True)
class Trial:
    """What came out of one fine-tune."""

    run_id: str
    value: float
    report: FairnessReport
    probabilities: NDArray[np.float64]
    epochs: int
    stopped_at: int | None


def mask_params(mask: Mask, learning_rate: float, extras: Extras = ()) -> dict[str, object]:
    """Name what a trial tried as run parameters: one per bit, for the tracking UI's plots."""
    bits = {f"mask.{name}": bit for name, bit in mask.named_bits().items()}
    return {
        "mask": mask.label,
        "learning_rate": learning_rate,
        "trained_share": f"{mask.share:.4g}",
        **dict(extras),
        **bits,
    }


def mask_tags(mask: Mask, workspace: Workspace) -> dict[str, object]:
    """Name what a run's model depends on as tags."""
    return {
        "fairtune.space": mask.space,
        "fairtune.mask": mask.fingerprint,
        "fairtune.dataset_digest": workspace.manifest.digest,
        "fairtune.base_hash": workspace.base.hash,
    }


def check_validation(workspace: Workspace) -> None:
    """Refuse a validation split on which the search's objective is undefined, before any training.

    Raises
    ------
    UndefinedObjectiveError
        Names the group that cannot be judged, its counts, and what to change.
    """
    val = workspace.split("val")
    objective = get_objective(workspace.config.search.objective)
    check_groups(val.labels, val.groups, objective, n_classes=len(val.classes))


def branched_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a transformer whose residual branches can be dropped, in order.

    Raises
    ------
    InputError
        When the model has none.
    """
    blocks = [module for module in model.modules() if hasattr(module, "drop_path1")]
    if not blocks:
        raise InputError("search.extra.drop_path needs a transformer with blocks; leave it out")
    return blocks


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Give a timm transformer stochastic depth, from 0 in the first block to `rate` in the last.

    Huang et al. 2016, "Deep Networks with Stochastic Depth", as timm spreads it over the blocks. The
    parameters and their names do not change, so a delta of this model fits one without. Raises
    `InputError` for a model without such blocks.
    """
    blocks = branched_blocks(model)
    for index, block in enumerate(blocks):
        share = rate * index / max(1, len(blocks) - 1)
        for branch in ("drop_path1", "drop_path2"):
            if hasattr(block, branch):
                setattr(block, branch, DropPath(share) if share else nn.Identity())


@dataclass(frozen=True)
class Rungs:
    """Where a trial is asked whether it goes on."""

    epochs: tuple[int, ...]
    pruner: Pruner
    others: Callable[[int, float], list[float]]
    """Told an epoch and what this trial is worth there; returns what the other trials were worth."""

    def goes_on(self, epoch: int, worth: float) -> bool:
        """Ask the pruner; larger is better."""
        return self.pruner.goes_on(worth, self.others(epoch, worth))


@dataclass(frozen=True)
class Leg:
    """What a trial that may pause has behind it, and where it leaves and finds its state."""

    state: Path
    epochs: int = 0
    seconds: float = 0.0


@dataclass
class _Watch:
    """Judge, log and show every epoch; say whether the trial goes on."""

    log: Callable[..., None]
    objective: Objective
    rungs: Rungs | None
    should_stop: Callable[[], bool]
    bar: tqdm[Any]
    values: list[float] = field(default_factory=list)
    pruned: bool = False

    def __call__(self, epoch: Epoch) -> bool:
        value = self.objective.value(epoch.report)
        self.values.append(value)
        best = min(self.values, key=self.objective.loss)
        self.bar.set_postfix_str(f"{self.objective.name} {value:.3f}, best {best:.3f}")
        metrics = {
            "objective": value,  # first: the tracking UI offers metrics in the order of writing
            **split_metrics("val", epoch.report),
            "train/loss": epoch.loss,
            "train/learning_rate": epoch.learning_rate,
            "train/images_per_second": epoch.images_per_second,
            "step_seconds": epoch.seconds / epoch.steps,
            "validation_seconds": epoch.validation_seconds,
        }
        if self.rungs is not None and epoch.number in self.rungs.epochs:
            worth = -self.objective.loss(value)
            metrics[f"{RUNG}{epoch.number:03d}"] = worth
            self.pruned = not self.rungs.goes_on(epoch.number, worth)
        self.log(metrics=metrics, step=epoch.number)
        return not (self.pruned or self.should_stop())


def _bar(images: int, epochs: int) -> tqdm[Any]:
    """Return the bar within a fine-tune: time left and images per second, over all epochs."""
    what = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    return progress_bar(
        total=images,
        desc=f"fine-tune, {what}",
        unit=" images",
        unit_scale=True,
        smoothing=0.05,  # an epoch's judgement counts in the time that is left
        leave=False,
    )


def run_trial(
    workspace: Workspace,
    mask: Mask,
    learning_rate: float,
    *,
    seed: int,
    objective: Objective,
    log: RunLog,
    extras: Extras = (),
    rungs: Rungs | None = None,
    leg: Leg | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    keep_model: bool = True,
    profile: bool = False,
) -> Trial:
    """Fine-tune under `mask` and log every epoch, the last report, the mask and the delta.

    Parameters
    ----------
    extras
        Hyperparameters that take the place of the recipe's, and the rate of stochastic depth.
    rungs
        Where the trial may be pruned; one that goes on passes those behind it.
    leg
        For a trial that may pause at a rung and go on later.
    should_stop
        Asked after every epoch; True ends the trial after that epoch.
    keep_model
        Whether the delta and the predictions are written as well: what re-loading the model needs.
    profile
        Leave ``profile/table.txt`` and ``profile/trace.json.gz`` in the run: where the time went.

    Raises
    ------
    UndefinedObjectiveError
        When the validation split does not define the objective.
    DivergedError
        When the loss is no longer finite.
    """
    changes = dict(extras)
    drop_path = float(changes.pop(DROP_PATH, 0.0))
    model = workspace.model(mask, named_seed(seed, "model"))
    if drop_path:
        set_drop_path(model, drop_path)
    train, recipe = workspace.split("train"), workspace.config.train
    done = leg.epochs if leg else 0
    bar = _bar(len(train) * (recipe.epochs - done), recipe.epochs - done)
    reset_peak(workspace.device)
    started = time.perf_counter()
    with (
        bar,
        log.in_background() as write,
        _profiled(log) if profile else nullcontext() as report_profile,
    ):
        ahead = rungs and replace(rungs, epochs=tuple(e for e in rungs.epochs if e > done))
        watch = _Watch(write, objective, ahead, should_stop, bar)
        result = fine_tune(
            model,
            train,
            workspace.split("val"),
            workspace.spec,
            recipe.changed({**changes, "learning_rate": learning_rate}),
            seed=named_seed(seed, "fine-tune"),
            device=workspace.device,
            on_epoch=watch,
            on_step=bar.update,
            paused=leg.state if leg else None,
            pauses_at=ahead.epochs if ahead else (),
            done=done,
        )
        if report_profile is not None:
            report_profile(result)
    assert result.probabilities is not None
    trial = Trial(
        run_id=log.run_id,
        value=watch.values[-1],
        report=result.report,
        probabilities=result.probabilities,
        epochs=result.epochs[-1].number,
        stopped_at=result.stopped_at if watch.pruned else None,
    )
    seconds = time.perf_counter() - started + (leg.seconds if leg else 0.0)
    _log_facts(log, workspace, result, trial, seconds)
    if keep_model:
        _log_model(log, workspace, model, mask)
        _log_judgement(log, workspace.split("val"), result.report, result.probabilities)
    return trial


def _log_facts(
    log: RunLog, workspace: Workspace, result: FineTuneResult, trial: Trial, seconds: float
) -> None:
    """Write what the fine-tune took, and that it was pruned if it was."""
    facts: dict[str, float] = {
        "seconds": seconds,
        "epochs": trial.epochs,
        "micro_batch_size": result.micro_batch_size,
    }
    if (most := peak(workspace.device)) is not None:
        facts["peak_memory_bytes"] = most
    pruned = trial.stopped_at is not None
    log.log(metrics=facts, tags={PRUNED_AT: trial.stopped_at} if pruned else None)


@contextmanager
def _profiled(log: RunLog) -> Iterator[Callable[[FineTuneResult], None]]:
    """Profile what runs inside; what is yielded takes its result, and the run gets the tables."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json.gz"
        results: list[FineTuneResult] = []
        with profiled(trace) as profile:
            yield results.append
        log.text(PROFILE, profile.table(results[0]))
        if trace.exists():
            log.file(trace, "profile")


def _log_model(log: RunLog, workspace: Workspace, model: nn.Module, mask: Mask) -> None:
    """Write what the fine-tune changed, and under which mask."""
    with tempfile.TemporaryDirectory() as folder:
        delta = Path(folder) / "delta.safetensors"
        save_delta(delta, model, {"base_hash": workspace.base.hash, "mask": mask.fingerprint})
        log.file(delta)
    log.text("mask.json", mask.to_json())


def _log_judgement(
    log: RunLog, val: Split, report: FairnessReport, probabilities: NDArray[np.float64]
) -> None:
    """Write the last report, as tables, and the prediction for every validation image."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "val.parquet"
        predictions_table(val, probabilities).to_parquet(table)
        log.file(table, "predictions")
    log.text("report.json", report.to_json())
    log.text("groups.csv", report.table().to_csv(index=False))
