"""Entangling and disentangling: features alike within a class, unlike within a group."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fairtune.training.strategies.base import STRATEGIES, Batch, Strategy, Tactic, Task


@STRATEGIES.register("end")
class EnD(Strategy):
    """Adds two penalties on the cosines between the features of a batch.

    *Disentangling*: rows of one group, whatever their class, should be at right angles on average.
    *Entangling*: rows of one class but of different groups should point the same way.

    References
    ----------
    Tartaglione, Barbano, Grangetto (2021), "EnD: Entangling and Disentangling deep representations
    for bias correction", CVPR, arXiv:2103.02023, section 3.2.
    """

    uses_groups: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True
    disentangle: float = Field(0.1, ge=0, description="Weight of the penalty within groups: alpha.")
    entangle: float = Field(0.1, ge=0, description="Weight of the penalty within classes: beta.")

    def start(self, task: Task) -> Tactic:
        """Begin; there is no state."""
        return EnDTactic(self)


class EnDTactic(Tactic):
    """Adds the penalties to the loss."""

    def __init__(self, options: EnD) -> None:
        self._options = options

    def loss(self, batch: Batch, criterion: nn.CrossEntropyLoss) -> Tensor:
        """Return the recipe's loss plus the penalties."""
        assert batch.groups is not None
        assert batch.features is not None
        apart, together = penalties(batch.features, batch.labels, batch.groups)
        loss: Tensor = criterion(batch.logits, batch.labels)
        return loss + self._options.disentangle * apart + self._options.entangle * together


def penalties(features: Tensor, labels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far a batch is from disentangled groups and from entangled classes.

    Parameters
    ----------
    features
        (B, D); only their directions count.
    labels, groups
        (B,) int64.

    Returns
    -------
    apart
        Σ over groups of |Σ cos| over pairs within the group, over the number of such pairs.
    together
        1 minus the mean of (1 + cos) / 2 over pairs of one class and different groups. Both are 0
        where the batch has no such pair.
    """
    directions = nn.functional.normalize(features, dim=1)
    pairs = torch.ones(len(labels), len(labels), dtype=torch.bool, device=labels.device).tril(-1)
    cosines = (directions @ directions.T).clamp(-1, 1)
    same_group = groups[:, None] == groups[None]
    same_class = labels[:, None] == labels[None]
    within = pairs & same_group
    sums = torch.stack(
        [(cosines * (within & (groups == g)[:, None])).sum() for g in torch.unique(groups).tolist()]
    )
    apart = sums.abs().sum() / within.sum().clamp(min=1)
    across = pairs & same_class & ~same_group
    alike = ((1 + cosines) / 2 * across).sum() / across.sum().clamp(min=1)
    together = torch.where(across.any(), 1 - alike, torch.zeros_like(alike))
    return apart, together
