"""The inner loop: fine-tune a model under its mask, judged after every epoch.

Read it from the top: `fine_tune` is the loop, the rest are its parts. What trains is decided before,
by ``fairtune.peft.apply_mask``; the loop only follows ``requires_grad``. How it trains is the
strategy's: plain training, or one of ``fairtune.training.strategies``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fairtune.data.batches import Augmentation, eval_batches, train_batches
from fairtune.fairness import FairnessReport, evaluate
from fairtune.peft import set_train_mode
from fairtune.seeding import seed as named_seed
from fairtune.training.features import feature_tap
from fairtune.training.groups import group_index
from fairtune.training.hardware import choose_attention
from fairtune.training.optimization import (
    LOWEST_LEARNING_RATE,
    class_weights,
    make_optimizer,
    make_schedule,
)
from fairtune.training.predict import predict
from fairtune.training.recipe import Recipe
from fairtune.training.split import ImageSpec, Split
from fairtune.training.step import Stepper
from fairtune.training.strategies import Strategy, Tactic, Task, make_strategy
from fairtune.training.tensors import holding, put


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
    """The epochs that were judged, and why there are no more.

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
        Called after every epoch that is judged; False ends the fine-tune.

    Raises
    ------
    DivergedError
        When the training loss is no longer finite.
    InputError
        When the data does not fit the recipe.
    """
    strategy = make_strategy(recipe.strategy, recipe.strategy_options)
    # Channels last is how the batches come, and what convolutions read fastest.
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    choose_attention(model, device, recipe.precision)
    torch.manual_seed(named_seed(seed, "dropout"))
    task = _task(model, train, val, spec, recipe, strategy, seed, device)
    tactic = strategy.start(task)
    optimizer = make_optimizer(model, recipe, tactic.auxiliary)
    schedule = make_schedule(optimizer, recipe, task.steps)
    groups = None if task.groups is None else torch.from_numpy(task.groups).to(device)
    result = FineTuneResult()
    update = 0
    kept: Mapping[str, torch.Tensor] | None = None
    with feature_tap(model, strategy.uses_features) as tap:
        step = Stepper(
            model,
            tactic,
            _criterion(train, recipe, tactic, device),
            optimizer,
            micro_batch_size=recipe.micro_batch_size or recipe.batch_size,
            precision=recipe.precision,
            clip_gradient=recipe.clip_gradient,
            tap=tap,
        )
        for number in range(1, recipe.epochs + 1):
            set_train_mode(model)
            started, total, seen = time.perf_counter(), 0.0, 0
            order = named_seed(seed, "epoch", number)
            batches = _train_batches(train, spec, recipe, order, device, tactic.row_weights(number))
            for x, y, rows in batches:
                schedule.step_update(update)
                total += step(x, y, None if groups is None else groups[rows]) * len(y)
                seen += len(y)
                update += 1
            seconds = time.perf_counter() - started
            loss = total / seen
            if not np.isfinite(loss):
                raise DivergedError(
                    f"the training loss became {loss} in epoch {number}: lower the learning rate"
                )
            if number % recipe.judge_every and number < recipe.epochs:
                continue
            kept = tactic.kept(number)
            with holding(model, kept):
                result.probabilities = _predict(model, val, spec, recipe, device)
            epoch = Epoch(
                number=number,
                loss=loss,
                learning_rate=max(group["lr"] for group in optimizer.param_groups),
                seconds=seconds,
                images_per_second=seen / seconds,
                report=evaluate(val.labels, result.probabilities, val.groups),
            )
            result.epochs.append(epoch)
            result.micro_batch_size = step.micro_batch_size
            if not on_epoch(epoch):
                result.stopped_at = number if number < recipe.epochs else None
                break
    put(model, kept or {})
    return result


def _task(
    model: nn.Module,
    train: Split,
    val: Split,
    spec: ImageSpec,
    recipe: Recipe,
    strategy: Strategy,
    seed: int,
    device: torch.device,
) -> Task:
    """Tell the strategy what it takes part in: the groups only if it declares that it uses them."""
    groups, names = group_index(train.groups) if strategy.uses_groups else (None, ())

    def validation_loss() -> float:
        scores = _predict(model, val, spec, recipe, device)
        chosen = scores[np.arange(len(val)), val.labels]
        return float(-np.log(np.clip(chosen, 1e-12, None)).mean())

    return Task(
        model=model,
        labels=train.labels,
        n_classes=len(train.classes),
        groups=groups,
        n_groups=len(names),
        epochs=recipe.epochs,
        steps=-(-len(train) // recipe.batch_size),
        learning_rate=recipe.learning_rate,
        lowest_learning_rate=recipe.learning_rate * LOWEST_LEARNING_RATE,
        seed=named_seed(seed, "strategy"),
        device=device,
        validation_loss=validation_loss,
        draw=lambda order: _train_batches(train, spec, recipe, order, device, None),
        views=lambda: eval_batches(
            train.images,
            train.rows,
            batch_size=recipe.eval_batch_size,
            size=spec.size,
            mean=spec.mean,
            std=spec.std,
            device=device,
        ),
    )


def _criterion(
    train: Split, recipe: Recipe, tactic: Tactic, device: torch.device
) -> nn.CrossEntropyLoss:
    weight = class_weights(
        train.labels, len(train.classes), recipe.class_weights, device, tactic.importance()
    )
    return nn.CrossEntropyLoss(weight=weight, label_smoothing=recipe.label_smoothing)


def _predict(
    model: nn.Module, split: Split, spec: ImageSpec, recipe: Recipe, device: torch.device
) -> NDArray[np.float64]:
    return predict(
        model,
        split,
        spec,
        batch_size=recipe.eval_batch_size,
        device=device,
        precision=recipe.precision,
    )


def _train_batches(
    train: Split,
    spec: ImageSpec,
    recipe: Recipe,
    order: int,
    device: torch.device,
    weights: NDArray[np.float64] | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, NDArray[np.int64]]]:
    """Yield x, y and the position of each row in the split, of one epoch."""
    batches = train_batches(
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
        seed=order,
        weights=weights,
    )
    position = np.zeros(len(train.images), dtype=np.int64)
    position[train.rows] = np.arange(len(train))
    return ((x, y, position[rows]) for x, y, rows in batches)
