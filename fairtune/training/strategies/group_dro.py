"""Distributionally robust optimisation over groups: the worst group weighs most."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from fairtune.data.batches import balanced_weights
from fairtune.training.strategies.balancing import CELLS, Cells, cell_index, cell_keys
from fairtune.training.strategies.base import (
    STRATEGIES,
    Batch,
    Strategy,
    Tactic,
    Task,
    row_losses,
)


@STRATEGIES.register("group_dro")
class GroupDRO(Strategy):
    """Minimises a weighted sum of group losses whose weights climb where the loss is high.

    After each batch ``q_g ← q_g · exp(η · (L_g + C/√n_g))``, normalised, where L_g is the batch's
    mean loss in group g; the step follows ``Σ q_g L_g`` with the new weights. Groups are drawn
    equally often, as the paper's algorithm 1 draws them.

    References
    ----------
    Sagawa, Koh, Hashimoto, Liang (2020), "Distributionally Robust Neural Networks for Group
    Shifts", ICLR, arXiv:1911.08731: algorithm 1, and equation 5 for the adjustment.
    """

    uses_groups: ClassVar[bool] = True
    cells: Cells = Field("group*class", description=f"{CELLS} The paper's groups are the latter.")
    step_size: float = Field(0.01, gt=0, description="How fast the weights of groups move: η.")
    adjustment: float = Field(
        0.0, ge=0, description="Adds adjustment/√n to a group's loss, as small groups fit easily."
    )

    def start(self, task: Task) -> Tactic:
        """Begin with equal weights for all cells that have rows."""
        return GroupDROTactic(self, task)


class GroupDROTactic(Tactic):
    """Has the weights q (K,) of the K cells."""

    changing = ("q",)

    def __init__(self, options: GroupDRO, task: Task) -> None:
        assert task.groups is not None
        cell, self._n_cells = cell_index(task, options.cells)
        self._weights = balanced_weights(*cell_keys(task, options.cells))
        table = np.zeros((task.n_groups, task.n_classes), dtype=np.int64)
        table[task.groups, task.labels] = cell
        self._table = torch.from_numpy(table).to(task.device)  # (G, C) -> cell
        sizes = torch.from_numpy(np.bincount(cell)).to(task.device)
        self._adjustment = (options.adjustment / sizes.sqrt()).float()
        self._step_size = options.step_size
        self.q = torch.full((self._n_cells,), 1 / self._n_cells, device=task.device)
        self._next = self.q

    def row_weights(self, epoch: int) -> NDArray[np.float64]:
        """Return weights by which every cell is drawn equally often."""
        return self._weights

    def loss(self, batch: Batch, criterion: nn.CrossEntropyLoss) -> Tensor:
        """Return Σ q_k L_k over the cells in the batch, with the weights that L leads to."""
        assert batch.groups is not None
        cells = self._table[batch.groups, batch.labels]
        one_hot = nn.functional.one_hot(cells, self._n_cells).float()  # (B, K)
        sizes = one_hot.sum(0)
        sums = row_losses(criterion, batch.logits, batch.labels) @ one_hot
        losses = sums / sizes.clamp(min=1)  # (K,), 0 where the batch has no row
        climbed = losses.detach() + self._adjustment * (sizes > 0)
        q = self.q * torch.exp(self._step_size * climbed)
        # Kept aside until the step is taken: a loss may be computed again when memory runs out.
        self._next = q / q.sum()
        return (self._next * losses).sum()

    def after_step(self) -> None:
        """Take over the weights that the step was taken with."""
        self.q = self._next
