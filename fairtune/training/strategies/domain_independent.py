"""A classifier for each group over shared features, and one for all when training is over."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from fairtune.peft.parts import head_modules
from fairtune.training.features import classifier
from fairtune.training.strategies.base import STRATEGIES, Batch, Strategy, Tactic, Task


@STRATEGIES.register("domain_independent")
class DomainIndependent(Strategy):
    """Trains each group's rows through a classifier of their own; keeps the classifiers' mean.

    The paper sums the classifiers' outputs over groups, as who the image is of is not to matter
    when it is judged. The mean of linear classifiers is a linear classifier: it orders classes as
    their sum does, its probabilities are on the scale of one of them, and it takes the place of the
    model's own, so that the model that is kept has no trace of groups.

    References
    ----------
    Wang et al. (2020), "Towards Fairness in Visual Recognition: Effective Strategies for Bias
    Mitigation", CVPR, arXiv:1911.11834, section 3.4 (domain-independent training, sum of outputs).
    """

    uses_groups: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True

    def start(self, task: Task) -> Tactic:
        """Begin with a copy of the model's classifier for each group."""
        return DomainIndependentTactic(task)


class DomainIndependentTactic(Tactic):
    """Has the G classifiers; the model's own stays untrained until it is replaced."""

    def __init__(self, task: Task) -> None:
        own = classifier(task.model)
        self._prefix = next(iter(head_modules(task.model)))
        self._heads = nn.ModuleList(copy.deepcopy(own) for _ in range(task.n_groups))
        self.auxiliary = self._heads

    def loss(self, batch: Batch, criterion: nn.CrossEntropyLoss) -> Tensor:
        """Return the recipe's loss of each row through its group's classifier."""
        assert batch.groups is not None
        assert batch.features is not None
        outputs = torch.stack([head(batch.features) for head in self._heads], dim=1)  # (B, G, C)
        rows = torch.arange(len(batch.labels), device=outputs.device)
        result: Tensor = criterion(outputs[rows, batch.groups], batch.labels)
        return result

    def kept(self, epoch: int) -> dict[str, Tensor]:
        """Return the mean classifier under the names of the model's own."""
        states = [head.state_dict() for head in self._heads]
        return {
            f"{self._prefix}.{name}": torch.stack([state[name] for state in states]).mean(0)
            for name in states[0]
        }
