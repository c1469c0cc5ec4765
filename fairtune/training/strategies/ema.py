"""Weights averaged with a memory that fades."""

from __future__ import annotations

from pydantic import Field
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from fairtune.training.strategies.base import STRATEGIES, Strategy, Tactic, Task
from fairtune.training.tensors import TrainedTensors


@STRATEGIES.register("ema")
class EMA(Strategy):
    """Keeps the exponential moving average of the weights, running statistics among them.

    timm's `ModelEmaV3`, of what trains only.

    References
    ----------
    Polyak & Juditsky (1992), "Acceleration of stochastic approximation by averaging", SIAM Journal
    on Control and Optimization 30; Morales-Brotons, Vogels, Hendrikx (2024), "Exponential Moving
    Average of Weights in Deep Learning", TMLR, arXiv:2411.18704.
    """

    decay: float = Field(
        0.999, gt=0, lt=1, description="Share of the average that a step keeps, in the long run."
    )
    warmup: bool = Field(
        True,
        description="Let the share rise from 0, so that short fine-tunes forget where they began.",
    )

    def start(self, task: Task) -> Tactic:
        """Begin with the weights as they are."""
        return EMATactic(self, task)


class EMATactic(Tactic):
    """Has the average."""

    changing = ("_average", "_steps")

    def __init__(self, options: EMA, task: Task) -> None:
        self._view = TrainedTensors(task.model)
        self._average = ModelEmaV3(self._view, decay=options.decay, use_warmup=options.warmup)
        self._warmup = options.warmup
        self._steps = 0

    def after_step(self) -> None:
        """Move the average towards the weights."""
        self._steps += 1
        self._average.update(self._view, step=self._steps if self._warmup else None)

    def kept(self, epoch: int) -> dict[str, Tensor]:
        """Return the average."""
        return self._view.named(self._average.module.state_dict())
