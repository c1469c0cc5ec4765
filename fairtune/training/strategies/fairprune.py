"""Pruning: weights that serve the better groups more than the worst one are set to zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fairtune.training.strategies.base import STRATEGIES, Strategy, Tactic, Task

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Whose weights are pruned."""
ROWS = 16
"""Images whose squared gradients one backward pass estimates: the fewer, the surer."""


@STRATEGIES.register("fairprune")
class FairPrune(Strategy):
    """Plain training; after the last epoch some of the trained weights are pruned.

    The saliency of a weight for a group is h w² / 2: by how much the group's loss would grow without
    it, h being the diagonal of the Hessian, here of the empirical Fisher information (squared
    gradients of the group's training images, one by one, on average). Pruned are the weights with the
    smallest ``saliency of the worst group - trade_off * mean saliency of the others``. The worst
    group is the one with the highest training loss. Only weights of linear and convolutional layers
    that the mask lets train are pruned, all together, and in one step; the paper repeats small steps.
    A fine-tune that is stopped early, or has one group only, is not pruned.

    References
    ----------
    Wu, Zeng, Xu, Shi, Hu (2022), "FairPrune: Achieving Fairness Through Pruning for Dermatological
    Disease Diagnosis", MICCAI, arXiv:2203.02110, section 3; saliency: LeCun, Denker, Solla (1989),
    "Optimal Brain Damage", NeurIPS.
    """

    uses_groups: ClassVar[bool] = True
    share: float = Field(0.1, ge=0, lt=1, description="Share of the trained weights to prune.")
    trade_off: float = Field(
        0.33, ge=0, description="Weight of the other groups' saliency: beta in the paper."
    )

    def start(self, task: Task) -> Tactic:
        """Begin with plain training."""
        return FairPruneTactic(self, task)


class FairPruneTactic(Tactic):
    """Waits for the last epoch."""

    def __init__(self, options: FairPrune, task: Task) -> None:
        self._options, self._task = options, task

    def kept(self, epoch: int) -> dict[str, Tensor] | None:
        """Return the pruned weights after the last epoch."""
        if epoch < self._task.epochs or self._task.n_groups < 2:
            return None
        weights = {
            f"{name}.weight": layer.weight
            for name, layer in self._task.model.named_modules()
            if isinstance(layer, LAYERS) and layer.weight.requires_grad
        }
        losses, saliency = group_saliency(self._task, weights)
        worst = int(np.argmax(losses))
        others = [group for group in range(len(losses)) if group != worst]
        score = saliency[worst] - self._options.trade_off * saliency[others].mean(0)
        n_pruned = int(self._options.share * len(score))
        pruned = torch.zeros(len(score), dtype=torch.bool)
        pruned[score.argsort(stable=True)[:n_pruned]] = True
        found, start = {}, 0
        for name, weight in weights.items():
            flags, start = pruned[start : start + weight.numel()], start + weight.numel()
            gone = flags.view(weight.shape).to(weight.device)
            found[name] = weight.detach().masked_fill(gone, 0.0)
        return found


def group_saliency(task: Task, weights: Mapping[str, Tensor]) -> tuple[list[float], Tensor]:
    """Return each group's mean training loss, and the saliency of every weight for it.

    Returns
    -------
    losses
        G values.
    saliency
        (G, W) float64 on the CPU, over the values of all weights in their order.
    """
    assert task.groups is not None
    training = [module for module in task.model.modules() if module.training]
    task.model.eval()
    n_weights, sums = sum(w.numel() for w in weights.values()), sums_of(task.device)
    total = torch.zeros(task.n_groups, dtype=sums, device=task.device)
    squares = torch.zeros(task.n_groups, n_weights, dtype=sums, device=task.device)
    draws, start = torch.Generator().manual_seed(task.seed), 0
    for x in task.views():
        rows = slice(start, start + len(x))
        groups, start = task.groups[rows], start + len(x)
        labels = torch.from_numpy(task.labels[rows]).to(task.device)
        for group in np.unique(groups):
            mine = torch.from_numpy(np.flatnonzero(groups == group)).to(task.device)
            for part in torch.split(mine, ROWS):
                losses, found = _squares(task.model, x[part], labels[part], weights, draws)
                squares[group] += found
                total[group] += losses
    for module in training:  # mode by mode: a frozen norm in a training model stays in evaluation
        module.training = True
    sizes = np.bincount(task.groups, minlength=task.n_groups)
    values = torch.cat([w.detach().flatten() for w in weights.values()]).cpu().double()
    saliency = squares.cpu().double() / torch.from_numpy(sizes)[:, None] * values.square() / 2
    return (total.cpu().double().numpy() / sizes).tolist(), saliency


def sums_of(device: torch.device) -> torch.dtype:
    """Return the most exact floating type that a device adds up in."""
    return torch.float32 if device.type == "mps" else torch.float64


def _squares(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    weights: Mapping[str, Tensor],
    draws: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the sum of some images' losses, and of their squared gradients: (W,), by one estimate.

    With random signs s_i, independent and of mean zero, E[(Σ s_i g_i)²] = Σ g_i²: the products of
    two images' gradients cancel, whatever their mean. The square of a mean gradient instead would
    fall with the number of images, and so with the size of a group.
    """
    signs = torch.randint(2, (len(y),), generator=draws).mul(2).sub(1).to(x.device)
    with torch.enable_grad():
        losses = nn.functional.cross_entropy(model(x).float(), y, reduction="none")
        gradients = torch.autograd.grad((losses * signs).sum(), list(weights.values()))
    flat = torch.cat([g.flatten() for g in gradients]).float()
    return losses.detach().sum(), flat.square()
