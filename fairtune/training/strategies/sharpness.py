"""Sharpness-aware minimisation: follow the gradient of the worst point nearby."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fairtune.training.strategies.base import STRATEGIES, Strategy, Tactic, Task
from fairtune.training.tensors import still_statistics

TINY = 1e-12


@STRATEGIES.register("sam")
class SAM(Strategy):
    """Steps along the gradient at ``w + rho · g/‖g‖``, where g is the gradient at w.

    Only what the mask lets train is moved and enters the norm. Two passes a step. The second
    leaves running statistics as they are, as the authors' code does.

    References
    ----------
    Foret, Kleiner, Mobahi, Neyshabur (2021), "Sharpness-Aware Minimization for Efficiently
    Improving Generalization", ICLR, arXiv:2010.01412, algorithm 1.
    """

    rho: float = Field(0.05, gt=0, description="Radius of the neighbourhood: rho.")

    def start(self, task: Task) -> Tactic:
        """Begin with a radius that stays."""
        return SharpnessTactic(task, rho=self.rho, rho_min=self.rho, alpha=0.0)


@STRATEGIES.register("gsam")
class GSAM(Strategy):
    """SAM that also narrows the gap between the loss nearby and the loss here.

    With g the gradient at w and g' the one of SAM, the step follows ``g' - alpha · g_across``,
    where g_across is the part of g at right angles to g'. rho falls with the learning rate.

    References
    ----------
    Zhuang et al. (2022), "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR,
    arXiv:2203.08065, algorithm 1 and section 4.3 (rho).
    """

    rho: float = Field(0.05, gt=0, description="rho at the peak of the learning rate.")
    rho_min: float = Field(0.01, ge=0, description="rho at the lowest learning rate.")
    alpha: float = Field(0.4, ge=0, description="How much of g at right angles is taken off.")

    @model_validator(mode="after")
    def _ordered(self) -> GSAM:
        if self.rho_min > self.rho:
            raise ValueError(f"rho_min={self.rho_min} is over rho={self.rho}")
        return self

    def start(self, task: Task) -> Tactic:
        """Begin with a radius that goes with the learning rate."""
        return SharpnessTactic(task, rho=self.rho, rho_min=self.rho_min, alpha=self.alpha)


class SharpnessTactic(Tactic):
    """Computes the gradient twice; `alpha` 0 and equal radii make it SAM, else GSAM."""

    def __init__(self, task: Task, *, rho: float, rho_min: float, alpha: float) -> None:
        self._model = task.model
        self._lowest, self._peak = task.lowest_learning_rate, task.learning_rate
        self._rho, self._rho_min, self._alpha = rho, rho_min, alpha
        self.radius = rho

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the radius by the learning rate."""
        rate = max(group["lr"] for group in optimizer.param_groups)
        share = (rate - self._lowest) / (self._peak - self._lowest)
        share = min(max(share, 0.0), 1.0)
        self.radius = self._rho_min + (self._rho - self._rho_min) * share

    def gradients(
        self, compute: Callable[[], Tensor], parameters: Sequence[nn.Parameter]
    ) -> Tensor:
        """Leave the gradient at the perturbed weights; return the loss at the weights."""
        loss = compute()
        moved = [p for p in parameters if p.grad is not None]
        here = [_taken(p) for p in moved]
        scale = self.radius / (_norm(here) + TINY)
        with torch.no_grad():
            before = [p.clone() for p in moved]
            for p, gradient in zip(moved, here, strict=True):
                p.add_(gradient * scale)
        with still_statistics(self._model):
            compute()
        with torch.no_grad():
            for p, value in zip(moved, before, strict=True):
                p.copy_(value)
            if self._alpha > 0:
                self._narrow_gap(moved, here)
        return loss

    def _narrow_gap(self, moved: Sequence[nn.Parameter], here: Sequence[Tensor]) -> None:
        near = [p.grad for p in moved if p.grad is not None]
        inner = torch.stack([(a * b).sum() for a, b in zip(here, near, strict=True)]).sum()
        along = inner / (_norm(near) ** 2 + TINY)
        for gradient, original in zip(near, here, strict=True):
            across = original - along * gradient
            gradient.sub_(self._alpha * across)


def _taken(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's gradient, and leave it none."""
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None
    return gradient


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    result: Tensor = torch.stack([tensor.norm() for tensor in tensors]).norm()
    return result
