"""Stochastic weight averaging: the mean of the weights at the end of the last epochs."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from fairtune.seeding import seed as named_seed
from fairtune.training.strategies.base import STRATEGIES, Strategy, Tactic, Task
from fairtune.training.tensors import TrainedTensors, estimate_statistics, holding


@STRATEGIES.register("swa")
class SWA(Strategy):
    """Keeps the mean of the weights visited late in training, at a constant learning rate.

    torch's `AveragedModel`, of what trains only. Running statistics are computed anew for the mean,
    by a pass over the training images, where the mask trains normalisation layers that have any.

    References
    ----------
    Izmailov, Podoprikhin, Garipov, Vetrov, Wilson (2018), "Averaging Weights Leads to Wider Optima
    and Better Generalization", UAI, arXiv:1803.05407, algorithm 1.
    """

    start_at: float = Field(
        0.5, ge=0, lt=1, description="Share of all steps after which averaging begins."
    )
    every: int | None = Field(
        None, ge=1, description="Steps from one averaged point to the next; null is an epoch."
    )
    learning_rate: float | None = Field(
        0.5,
        gt=0,
        description="Constant learning rate while averaging, as a share of the peak; null leaves "
        "the recipe's schedule.",
    )

    def start(self, task: Task) -> Tactic:
        """Begin with nothing averaged."""
        return SWATactic(self, task)


class SWATactic(Tactic):
    """Has the mean, once there is one."""

    changing = ("_mean", "_steps")

    def __init__(self, options: SWA, task: Task) -> None:
        self._task, self._options = task, options
        self._view = TrainedTensors(task.model)
        self._mean = AveragedModel(self._view)
        self._every = options.every or task.steps
        self._first = math.floor(options.start_at * task.epochs * task.steps)
        self._steps = 0

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Hold the learning rate while averaging."""
        if self._options.learning_rate is None or self._steps < self._first:
            return
        rate = self._options.learning_rate * self._task.learning_rate
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def after_step(self) -> None:
        """Add the weights to the mean where it is their turn."""
        self._steps += 1
        if self._steps > self._first and self._steps % self._every == 0:
            self._mean.update_parameters(self._view)

    def kept(self, epoch: int) -> dict[str, Tensor] | None:
        """Return the mean and its statistics; None before averaging begins."""
        if self._mean.n_averaged == 0:
            return None
        return with_statistics(self._task, self._view.named(self._mean.module.state_dict()), epoch)


def with_statistics(task: Task, values: dict[str, Tensor], epoch: int) -> dict[str, Tensor]:
    """Return averaged values with running statistics that fit them."""
    seed = named_seed(task.seed, "statistics", epoch)
    with holding(task.model, values):
        return values | estimate_statistics(task.model, lambda: (x for x, _, _ in task.draw(seed)))
