"""Features from which an adversary cannot tell the group, by gradient reversal."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fairtune.training.features import classifier
from fairtune.training.strategies.base import STRATEGIES, Batch, Strategy, Tactic, Task

HIDDEN = "Width of the adversary's hidden layer."
WEIGHT = "Weight of the adversary's gradient in the features, against the classifier's."


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradients[0], None


def reverse(x: Tensor, factor: float = 1.0) -> Tensor:
    """Return x; the gradient that comes back is multiplied by -factor (Ganin et al. 2016)."""
    result: Tensor = _Reverse.apply(x, factor)  # type: ignore[no-untyped-call]
    return result


def perceptron(task: Task, n_in: int, hidden: int, n_out: int) -> nn.Sequential:
    """Return a net with one hidden layer on the task's device, drawn from the task's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(task.seed)
        net = nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, n_out))
    return net.to(task.device)


@STRATEGIES.register("dann")
class DANN(Strategy):
    """An adversary learns the group from the features; the features learn to mislead it.

    References
    ----------
    Ganin et al. (2016), "Domain-Adversarial Training of Neural Networks", JMLR 17,
    arXiv:1505.07818: the reversal layer, and its weight 2 / (1 + exp(-10 p)) - 1 at the share p of
    all steps. There the domains are source and target, here they are groups.
    """

    uses_groups: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True
    weight: float = Field(0.1, ge=0, description=f"{WEIGHT} Reached towards the end.")
    hidden: int = Field(128, ge=1, description=HIDDEN)

    def start(self, task: Task) -> Tactic:
        """Begin with an untrained adversary."""
        return DANNTactic(self, task)


class DANNTactic(Tactic):
    """Has the adversary."""

    changing = ("_step",)

    def __init__(self, options: DANN, task: Task) -> None:
        self._weight = options.weight
        self._n_steps, self._step = task.epochs * task.steps, 0
        n_in = classifier(task.model).in_features
        self.auxiliary: nn.Module = perceptron(task, n_in, options.hidden, task.n_groups)

    def loss(self, batch: Batch, criterion: nn.CrossEntropyLoss) -> Tensor:
        """Return the recipe's loss plus the adversary's."""
        assert batch.groups is not None
        assert batch.features is not None
        ramp = 2 / (1 + math.exp(-10 * self._step / self._n_steps)) - 1
        guess = self.auxiliary(reverse(batch.features, ramp * self._weight))
        task_loss: Tensor = criterion(batch.logits, batch.labels)
        return task_loss + nn.functional.cross_entropy(guess, batch.groups)

    def after_step(self) -> None:
        """Let the ramp rise."""
        self._step += 1


@STRATEGIES.register("laftr")
class LAFTR(Strategy):
    """An adversary whose loss counts every group the same, whatever its size.

    The adversary's error on a row is 1 minus the probability it gives to the right group (for two
    groups, the paper's absolute difference), averaged within each cell and then over cells. For
    demographic parity the cells are groups; for equalized odds they are groups within classes, and
    the adversary is told the class.

    References
    ----------
    Madras, Creager, Pitassi, Zemel (2018), "Learning Adversarially Fair and Transferable
    Representations", ICML, arXiv:1802.06309, equations 3 to 5.
    """

    uses_groups: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True
    target: Literal["demographic_parity", "equalized_odds"] = Field(
        "equalized_odds", description="What the features are to allow."
    )
    weight: float = Field(0.5, ge=0, description=WEIGHT)
    hidden: int = Field(128, ge=1, description=HIDDEN)

    def start(self, task: Task) -> Tactic:
        """Begin with an untrained adversary."""
        return LAFTRTactic(self, task)


class LAFTRTactic(Tactic):
    """Has the adversary."""

    def __init__(self, options: LAFTR, task: Task) -> None:
        self._weight, self._n_classes = options.weight, task.n_classes
        self._told = options.target == "equalized_odds"
        n_in = classifier(task.model).in_features + self._told * task.n_classes
        self.auxiliary: nn.Module = perceptron(task, n_in, options.hidden, task.n_groups)

    def loss(self, batch: Batch, criterion: nn.CrossEntropyLoss) -> Tensor:
        """Return the recipe's loss plus the adversary's, which the features climb."""
        assert batch.groups is not None
        assert batch.features is not None
        seen = reverse(batch.features, self._weight)
        cells = batch.groups
        if self._told:
            told = nn.functional.one_hot(batch.labels, self._n_classes).float()
            seen = torch.cat([seen, told], dim=1)
            cells = batch.groups * self._n_classes + batch.labels
        right = self.auxiliary(seen).softmax(1).gather(1, batch.groups[:, None])[:, 0]
        task_loss: Tensor = criterion(batch.logits, batch.labels)
        return task_loss + mean_over_cells(1 - right, cells)


def mean_over_cells(values: Tensor, cells: Tensor) -> Tensor:
    """Return the mean over the cells that occur of the means (B,) values have within them."""
    _, index, sizes = torch.unique(cells, return_inverse=True, return_counts=True)
    result: Tensor = (values / sizes[index]).sum() / len(sizes)
    return result
