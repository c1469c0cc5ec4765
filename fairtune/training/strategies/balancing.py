"""Balanced data: rows drawn, or counted in the loss, so that groups or classes weigh the same."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from fairtune.data.batches import balanced_weights
from fairtune.training.strategies.base import (
    STRATEGIES,
    Batch,
    Strategy,
    Tactic,
    Task,
    row_losses,
)

Cells = Literal["group", "group*class"]
CELLS = "What weighs the same: each group, or each class within each group."


def cell_keys(task: Task, cells: Cells) -> tuple[NDArray[np.int64], ...]:
    """Return the arrays (n,) whose combinations are the cells."""
    assert task.groups is not None, "a strategy with cells of groups must declare uses_groups"
    return (task.groups,) if cells == "group" else (task.groups, task.labels)


def cell_index(task: Task, cells: Cells) -> tuple[NDArray[np.int64], int]:
    """Return the number of each row's cell, (n,), and how many cells have rows."""
    keys = np.stack(cell_keys(task, cells), axis=1)
    present, index = np.unique(keys, axis=0, return_inverse=True)
    return index.reshape(-1).astype(np.int64), len(present)


class WeightedSampling(Tactic):
    """Draws training rows in proportion to fixed weights (n,)."""

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self._weights = weights

    def row_weights(self, epoch: int) -> NDArray[np.float64]:
        """Return the same weights for every epoch."""
        return self._weights


@STRATEGIES.register("group_resampling")
class GroupResampling(Strategy):
    """Draws rows, with replacement, so that every group comes equally often.

    ``class_weights: balanced`` then balances the classes of what is drawn.

    References
    ----------
    Idrissi et al. (2022), "Simple data balancing achieves competitive worst-group-accuracy",
    CLeaR, arXiv:2110.14503 (there RWG, by a weighted sampler; its groups are classes within groups:
    ``cells: group*class``).
    """

    uses_groups: ClassVar[bool] = True
    cells: Cells = Field("group", description=CELLS)

    def start(self, task: Task) -> Tactic:
        """Begin with the weights n / (K · n_k) for the n_k rows of each of K cells."""
        return WeightedSampling(balanced_weights(*cell_keys(task, self.cells)))


@STRATEGIES.register("class_resampling")
class ClassResampling(Strategy):
    """Draws rows, with replacement, so that every class comes equally often.

    ``class_weights: balanced`` is then 1 for each class: they are balanced once, not twice.

    References
    ----------
    Idrissi et al. (2022), arXiv:2110.14503 (there RWY).
    """

    def start(self, task: Task) -> Tactic:
        """Begin with the weights n / (C · n_c) for the n_c rows of each of C classes."""
        return WeightedSampling(balanced_weights(task.labels))


class WeightedLoss(Tactic):
    """Weighs each row's loss by its group (and class)."""

    def __init__(self, weights: NDArray[np.float64], table: Tensor) -> None:
        self._weights = weights
        self._table = table  # (G, C)

    def importance(self) -> NDArray[np.float64]:
        """Return what each row counts."""
        return self._weights

    def loss(self, batch: Batch, criterion: nn.CrossEntropyLoss) -> Tensor:
        """Return the weighted mean, a sum of weighted losses over the sum of the weights."""
        assert batch.groups is not None
        weights = self._table[batch.groups, batch.labels]
        total = weights.sum()
        if criterion.weight is not None:
            total = (weights * criterion.weight[batch.labels]).sum()
        return (weights * row_losses(criterion, batch.logits, batch.labels)).sum() / total


@STRATEGIES.register("group_reweighting")
class GroupReweighting(Strategy):
    """Weighs the loss of each row inversely to the size of its group; every row comes once.

    In expectation the loss of `group_resampling`, without repeated rows.

    References
    ----------
    Kamiran & Calders (2012), "Data preprocessing techniques for classification without
    discrimination", Knowledge and Information Systems 33 (weights by group and class); Idrissi et
    al. (2022), arXiv:2110.14503.
    """

    uses_groups: ClassVar[bool] = True
    cells: Cells = Field("group", description=CELLS)

    def start(self, task: Task) -> Tactic:
        """Begin with the weights n / (K · n_k) for the n_k rows of each of K cells."""
        assert task.groups is not None
        weights = balanced_weights(*cell_keys(task, self.cells))
        table = np.zeros((task.n_groups, task.n_classes))
        table[task.groups, task.labels] = weights
        return WeightedLoss(weights, torch.tensor(table, dtype=torch.float32, device=task.device))
