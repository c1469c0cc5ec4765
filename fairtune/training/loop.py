"""The inner loop: fine-tune a model under its mask, judged after every epoch.

Read it from the top: `fine_tune` is the loop, the rest are its parts. What trains is decided before,
by ``fairtune.peft.apply_mask``; the loop only follows ``requires_grad``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from fairtune.data.batches import Augmentation, train_batches
from fairtune.errors import InputError
from fairtune.fairness import FairnessReport, evaluate
from fairtune.peft import set_train_mode
from fairtune.seeding import seed as named_seed
from fairtune.training.hardware import autocast
from fairtune.training.predict import predict
from fairtune.training.recipe import Recipe
from fairtune.training.split import ImageSpec, Split

logger = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """The loss stopped being a number."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes
    ----------
    number
        Counted from 1: how many epochs have been trained.
    loss
        Mean training loss over the epoch's images.
    learning_rate
        At the end of the epoch.
    seconds, images_per_second
        Of training alone, without the evaluation.
    report
        Of the whole validation split.
    """

    number: int
    loss: float
    learning_rate: float
    seconds: float
    images_per_second: float
    report: FairnessReport


@dataclass
class FineTuneResult:
    """The epochs that were trained, and why there are no more.

    Attributes
    ----------
    stopped_at
        The epoch after which `on_epoch` asked to stop, or None when all were trained.
    probabilities
        (n, C) of the validation split after the last epoch.
    micro_batch_size
        Images that were in memory at once; smaller than asked for when memory ran out.
    """

    epochs: list[Epoch] = field(default_factory=list)
    stopped_at: int | None = None
    probabilities: NDArray[np.float64] | None = None
    micro_batch_size: int = 0

    @property
    def report(self) -> FairnessReport:
        """The validation report after the last epoch."""
        return self.epochs[-1].report


def fine_tune(
    model: nn.Module,
    train: Split,
    val: Split,
    spec: ImageSpec,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[Epoch], bool] = lambda epoch: True,
) -> FineTuneResult:
    """Fine-tune what the mask left trainable, in place.

    Parameters
    ----------
    model
        On any device; its ``requires_grad`` flags say what trains.
    train, val
        The splits to learn from and to judge on. There is no way to hand over a test split.
    spec, recipe
        How images enter, and the hyperparameters.
    seed
        Of order, augmentation and dropout. The same seed on the same machine gives the same bits.
    on_epoch
        Called after every epoch; False ends the fine-tune.

    Raises
    ------
    DivergedError
        When the training loss is no longer finite.
    InputError
        When the data does not fit the recipe.
    """
    model.to(device)
    torch.manual_seed(named_seed(seed, "dropout"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps = -(-len(train) // recipe.batch_size)
    optimizer = _optimizer(model, recipe)
    schedule = _schedule(optimizer, recipe, steps)
    loss_of = nn.CrossEntropyLoss(
        weight=class_weights(train.labels, len(train.classes), recipe.class_weights, device),
        label_smoothing=recipe.label_smoothing,
    )
    result = FineTuneResult(micro_batch_size=recipe.micro_batch_size or recipe.batch_size)
    update = 0
    for number in range(1, recipe.epochs + 1):
        set_train_mode(model)
        started, total, seen = time.perf_counter(), 0.0, 0
        for x, y, _ in _epoch_batches(
            train, spec, recipe, named_seed(seed, "epoch", number), device
        ):
            schedule.step_update(update)
            total += _step(model, x, y, loss_of, optimizer, parameters, recipe, result) * len(y)
            seen += len(y)
            update += 1
        seconds = time.perf_counter() - started
        loss = total / seen
        if not np.isfinite(loss):
            raise DivergedError(
                f"the training loss became {loss} in epoch {number}: lower the learning rate"
            )
        result.probabilities = predict(
            model,
            val,
            spec,
            batch_size=recipe.eval_batch_size,
            device=device,
            precision=recipe.precision,
        )
        epoch = Epoch(
            number=number,
            loss=loss,
            learning_rate=max(group["lr"] for group in optimizer.param_groups),
            seconds=seconds,
            images_per_second=seen / seconds,
            report=evaluate(val.labels, result.probabilities, val.groups),
        )
        result.epochs.append(epoch)
        if not on_epoch(epoch):
            result.stopped_at = number if number < recipe.epochs else None
            break
    return result


def class_weights(
    labels: NDArray[np.int64],
    n_classes: int,
    rule: str | tuple[float, ...],
    device: torch.device | None = None,
) -> torch.Tensor | None:
    """Weight of each class in the loss, (C,) float32 with mean 1 over the training images.

    ``balanced`` is scikit-learn's rule, n / (C · n_c).

    Raises
    ------
    InputError
        When weights are given for another number of classes, or a class has no training image.
    """
    if rule == "none":
        return None
    counts = np.bincount(labels, minlength=n_classes)
    if rule == "balanced":
        if (counts == 0).any():
            missing = int(np.flatnonzero(counts == 0)[0])
            raise InputError(
                f"class {missing} has no training image: check the label rule and the split, "
                "or set train.class_weights=none"
            )
        weights = len(labels) / (n_classes * counts)
    else:
        if len(rule) != n_classes:
            raise InputError(f"train.class_weights has {len(rule)} values for {n_classes} classes")
        weights = np.asarray(rule, dtype=float)
        weights = weights * len(labels) / (weights * counts).sum()
    return torch.tensor(weights, dtype=torch.float32, device=device)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    try:
        return create_optimizer_v2(
            model,
            opt=recipe.optimizer,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        )
    except ValueError as error:
        raise InputError(f"train.optimizer {recipe.optimizer!r}: {error}") from None


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Scheduler:
    # timm counts warm-up in epochs; told that an epoch is one step, it counts in steps.
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.schedule,
            num_epochs=recipe.epochs * steps,
            warmup_epochs=round(recipe.warmup * recipe.epochs * steps),
            warmup_lr=recipe.learning_rate * 1e-2,
            min_lr=recipe.learning_rate * 1e-2,
            step_on_epochs=False,
            updates_per_epoch=1,
        )
    except ValueError as error:
        raise InputError(f"train.schedule {recipe.schedule!r}: {error} Try cosine") from None
    assert isinstance(schedule, Scheduler)
    return schedule


def _epoch_batches(
    train: Split, spec: ImageSpec, recipe: Recipe, seed: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, NDArray[np.int64]]]:
    return train_batches(
        train.images,
        train.rows,
        train.labels,
        batch_size=recipe.batch_size,
        size=spec.size,
        mean=spec.mean,
        std=spec.std,
        device=device,
        augmentation=Augmentation(
            crop_scale=recipe.augment.crop_scale,
            crop_ratio=recipe.augment.crop_ratio,
            horizontal_flip=recipe.augment.horizontal_flip,
        ),
        seed=seed,
    )


def _step(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    loss_of: nn.CrossEntropyLoss,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    recipe: Recipe,
    result: FineTuneResult,
) -> float:
    """Take one optimiser step on a batch, in micro-batches; halve them when memory runs out."""
    while True:
        try:
            loss = _gradients(model, x, y, loss_of, result.micro_batch_size, recipe.precision)
            break
        except RuntimeError as error:
            if not _is_out_of_memory(error) or result.micro_batch_size <= 2:
                raise
            result.micro_batch_size = -(-min(result.micro_batch_size, len(y)) // 2)
            logger.warning(
                "out of memory: going on with %d images at once", result.micro_batch_size
            )
            if x.is_cuda:
                torch.cuda.empty_cache()
        optimizer.zero_grad(set_to_none=True)
    if recipe.clip_gradient is not None:
        nn.utils.clip_grad_norm_(parameters, recipe.clip_gradient)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def _gradients(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    loss_of: nn.CrossEntropyLoss,
    micro_batch_size: int,
    precision: str,
) -> float:
    """Add up the gradients of the batch's mean loss; returns that loss."""
    total = 0.0
    whole = _weight(loss_of, y)
    for part, target in zip(
        torch.split(x, micro_batch_size), torch.split(y, micro_batch_size), strict=True
    ):
        with autocast(x.device, precision):
            logits = model(part)
        # The mean over the batch is weighted by class: a part's share is its weight, not its size.
        share = 1.0 if len(target) == len(y) else _weight(loss_of, target) / whole
        loss = loss_of(logits.float(), target) * share
        loss.backward()
        total += float(loss.detach())
    return total


def _weight(loss_of: nn.CrossEntropyLoss, y: torch.Tensor) -> float:
    return float(len(y)) if loss_of.weight is None else float(loss_of.weight[y].sum())


def _is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "not enough memory" in text
        or "can't allocate memory" in text
    )
