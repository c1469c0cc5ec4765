"""Learning not to learn: little mutual information between features and group."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from fairtune.training.features import classifier
from fairtune.training.strategies.adversarial import HIDDEN, WEIGHT, perceptron, reverse
from fairtune.training.strategies.base import STRATEGIES, Batch, Strategy, Tactic, Task


@STRATEGIES.register("lnl")
class LNL(Strategy):
    """A predictor of the group that the features mislead and leave undecided.

    Beside the reversed gradient of the predictor's loss, the features follow the negative entropy
    of what it predicts, through the predictor but without training it. The paper alternates the two
    in one batch, and looks at features in the middle of the network; here they are taken in one
    step, at the classifier's input, which every architecture has.

    References
    ----------
    Kim, Kim, Kim, Kim, Kim (2019), "Learning Not to Learn: Training Deep Neural Networks with
    Biased Data", CVPR, arXiv:1812.10352, equation 6.
    """

    uses_groups: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True
    weight: float = Field(0.1, ge=0, description=WEIGHT)
    entropy_weight: float = Field(
        0.1, ge=0, description="Weight of the negative entropy of what is predicted."
    )
    hidden: int = Field(128, ge=1, description=HIDDEN)

    def start(self, task: Task) -> Tactic:
        """Begin with an untrained predictor of the group."""
        return LNLTactic(self, task)


class LNLTactic(Tactic):
    """Has the predictor of the group."""

    def __init__(self, options: LNL, task: Task) -> None:
        self._options = options
        n_in = classifier(task.model).in_features
        self.auxiliary: nn.Module = perceptron(task, n_in, options.hidden, task.n_groups)

    def loss(self, batch: Batch, criterion: nn.CrossEntropyLoss) -> Tensor:
        """Return the recipe's loss, the predictor's, and its weighted negative entropy."""
        assert batch.groups is not None
        assert batch.features is not None
        guess = self.auxiliary(reverse(batch.features, self._options.weight))
        held = {name: p.detach() for name, p in self.auxiliary.named_parameters()}
        logs = functional_call(self.auxiliary, held, (batch.features,)).log_softmax(1)
        negative_entropy: Tensor = (logs.exp() * logs).sum(1).mean()
        loss: Tensor = criterion(batch.logits, batch.labels)
        loss = loss + nn.functional.cross_entropy(guess, batch.groups)
        return loss + self._options.entropy_weight * negative_entropy
