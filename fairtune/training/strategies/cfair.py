"""Conditional learning of fair representations: an adversary for each class."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from fairtune.data.batches import balanced_weights
from fairtune.training.features import classifier
from fairtune.training.strategies.adversarial import HIDDEN, WEIGHT, perceptron, reverse
from fairtune.training.strategies.base import STRATEGIES, Batch, Strategy, Tactic, Task


@STRATEGIES.register("cfair")
class CFair(Strategy):
    """Balances the error over classes, and hides the group within every class.

    Each class has an adversary that learns the group from the features of that class's rows, its
    loss balanced over the groups there; the features climb the mean of these losses. The
    classifier's loss is balanced over classes, whatever ``class_weights`` says. With equal
    conditional representations, equalized odds and accuracy parity are reached at once.

    References
    ----------
    Zhao, Coston, Adel, Gordon (2020), "Conditional Learning of Fair Representations", ICLR,
    arXiv:1910.07162, section 3.
    """

    uses_groups: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True
    weight: float = Field(0.1, ge=0, description=WEIGHT)
    hidden: int = Field(128, ge=1, description=HIDDEN)

    def start(self, task: Task) -> Tactic:
        """Begin with an untrained adversary for each class."""
        return CFairTactic(self, task)


class CFairTactic(Tactic):
    """Has C adversaries, and the weights that balance classes, and groups within classes."""

    def __init__(self, options: CFair, task: Task) -> None:
        assert task.groups is not None
        self._weight, self._n_classes, self._n_groups = (
            options.weight,
            task.n_classes,
            task.n_groups,
        )
        n_in = classifier(task.model).in_features
        self.auxiliary: nn.Module = perceptron(
            task, n_in, options.hidden, task.n_classes * task.n_groups
        )
        counts = np.zeros((task.n_classes, task.n_groups))
        np.add.at(counts, (task.labels, task.groups), 1)
        self._class_weights = _inverse(counts.sum(1), task.device)  # (C,)
        self._group_weights = torch.stack([_inverse(row, task.device) for row in counts])  # (C, G)
        self._importance = balanced_weights(task.labels)

    def importance(self) -> NDArray[np.float64]:
        """Return weights that balance the classes, as the loss does."""
        return self._importance

    def loss(self, batch: Batch, criterion: nn.CrossEntropyLoss) -> Tensor:
        """Return the balanced loss of the classifier plus that of the adversaries."""
        assert batch.groups is not None
        assert batch.features is not None
        loss = nn.functional.cross_entropy(
            batch.logits,
            batch.labels,
            weight=self._class_weights,
            label_smoothing=criterion.label_smoothing,
        )
        seen = reverse(batch.features, self._weight)
        guesses = self.auxiliary(seen).view(-1, self._n_classes, self._n_groups)
        present = torch.unique(batch.labels).tolist()
        adversarial = torch.stack(
            [
                nn.functional.cross_entropy(
                    guesses[batch.labels == c, c],
                    batch.groups[batch.labels == c],
                    weight=self._group_weights[c],
                )
                for c in present
            ]
        )
        return loss + adversarial.mean()


def _inverse(counts: NDArray[np.float64], device: torch.device) -> Tensor:
    """Return weights inverse to counts, 0 where there is nothing; their scale cancels."""
    weights = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    return torch.tensor(weights / weights.sum(), dtype=torch.float32, device=device)
