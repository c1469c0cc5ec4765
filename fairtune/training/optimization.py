"""Optimiser, schedule and loss weights, made from the recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from fairtune.errors import InputError
from fairtune.training.recipe import Recipe

LOWEST_LEARNING_RATE = 1e-2
"""The schedule's lowest learning rate, as a share of its peak."""

FUSED = ("adam", "adamw", "sgd", "momentum")
"""Names under which timm gives PyTorch's own optimisers that have a fused step, on CPU and GPU."""


def class_weights(
    labels: NDArray[np.int64],
    n_classes: int,
    rule: str | tuple[float, ...],
    device: torch.device | None = None,
    importance: NDArray[np.float64] | None = None,
) -> torch.Tensor | None:
    """Weight of each class in the loss, (C,) float32 with mean 1 over the training images.

    ``balanced`` is scikit-learn's rule, n / (C · n_c).

    Parameters
    ----------
    importance
        (n,) what each row counts in the loss before these weights, where not all count the same:
        n and n_c are then sums of it. A sampler that already balances the classes gets weights 1.

    Raises
    ------
    InputError
        When weights are given for another number of classes, or a class has no training image.
    """
    if rule == "none":
        return None
    counts = np.bincount(labels, weights=importance, minlength=n_classes)
    total = len(labels) if importance is None else counts.sum()
    if rule == "balanced":
        if (counts == 0).any():
            missing = int(np.flatnonzero(counts == 0)[0])
            raise InputError(
                f"class {missing} has no training image: check the label rule and the split, "
                "or set train.class_weights=none"
            )
        weights = total / (n_classes * counts)
    else:
        if len(rule) != n_classes:
            raise InputError(f"train.class_weights has {len(rule)} values for {n_classes} classes")
        weights = np.asarray(rule, dtype=float)
        weights = weights * total / (weights * counts).sum()
    return torch.tensor(weights, dtype=torch.float32, device=device)


def make_optimizer(
    model: nn.Module, recipe: Recipe, auxiliary: nn.Module | None
) -> torch.optim.Optimizer:
    """Return the optimiser of what trains in the model, and of a strategy's own networks.

    Raises
    ------
    InputError
        When timm knows no such optimiser.
    """
    # Fused: one pass over the weights instead of one for each term of the update.
    fused: dict[str, Any] = {"fused": True} if recipe.optimizer.lower() in FUSED else {}
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=recipe.optimizer,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
            **fused,
        )
    except ValueError as error:
        raise InputError(f"train.optimizer {recipe.optimizer!r}: {error}") from None
    if auxiliary is not None:
        matrices = [p for p in auxiliary.parameters() if p.ndim > 1]
        vectors = [p for p in auxiliary.parameters() if p.ndim <= 1]
        for parameters, decay in ((matrices, recipe.weight_decay), (vectors, 0.0)):
            if parameters:
                group = {
                    "params": parameters,
                    "lr": recipe.learning_rate,
                    "weight_decay": decay,
                    "lr_scale": 1.0,
                }
                optimizer.add_param_group(group)
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Scheduler:
    """Return the schedule of the learning rate over all steps, `steps` an epoch.

    Raises
    ------
    InputError
        When timm knows no such schedule.
    """
    # timm counts warm-up in epochs; told that an epoch is one step, it counts in steps.
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.schedule,
            num_epochs=recipe.epochs * steps,
            warmup_epochs=round(recipe.warmup * recipe.epochs * steps),
            warmup_lr=recipe.learning_rate * LOWEST_LEARNING_RATE,
            min_lr=recipe.learning_rate * LOWEST_LEARNING_RATE,
            step_on_epochs=False,
            updates_per_epoch=1,
        )
    except ValueError as error:
        raise InputError(f"train.schedule {recipe.schedule!r}: {error} Try cosine") from None
    if not isinstance(schedule, Scheduler):
        raise InputError(f"train.schedule {recipe.schedule!r} is no schedule. Try cosine")
    return schedule
