"""Fair supervised contrastive learning."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fairtune.training.features import classifier
from fairtune.training.strategies.adversarial import perceptron
from fairtune.training.strategies.base import STRATEGIES, Batch, Strategy, Tactic, Task


@STRATEGIES.register("fscl")
class FSCL(Strategy):
    """Pulls rows of one class together, and pushes apart only rows of one group.

    As a row is compared with others of its own group alone, telling groups apart does not help. The
    contrastive loss trains the features, the recipe's loss the classifier, and it does not reach
    the features. The paper does so one after the other and sees each image in two crops; here both
    happen in every step, on one crop. Take large batches: a row needs rows of its class, and rows
    of its group of other classes.

    References
    ----------
    Park, Lee, Lee, Hwang, Kim, Byun (2022), "Fair Contrastive Learning for Facial Attribute
    Classification", CVPR, arXiv:2203.16209 (FSCL, and with `balance_groups` FSCL+).
    """

    uses_groups: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True
    temperature: float = Field(0.1, gt=0, description="Divides the cosines.")
    balance_groups: bool = Field(
        True, description="Let the groups of a class weigh the same, as anchors and as positives."
    )
    hidden: int = Field(128, ge=1, description="Width of the projection's hidden layer.")
    width: int = Field(128, ge=2, description="Width of what the projection gives.")

    def start(self, task: Task) -> Tactic:
        """Begin with an untrained projection."""
        return FSCLTactic(self, task)


class FSCLTactic(Tactic):
    """Has the projection in which rows are compared."""

    def __init__(self, options: FSCL, task: Task) -> None:
        self._options = options
        self._head = classifier(task.model)
        self.auxiliary: nn.Module = perceptron(
            task, self._head.in_features, options.hidden, options.width
        )

    def loss(self, batch: Batch, criterion: nn.CrossEntropyLoss) -> Tensor:
        """Return the contrastive loss plus the recipe's, which stops at the classifier."""
        assert batch.groups is not None
        assert batch.features is not None
        loss: Tensor = criterion(self._head(batch.features.detach()), batch.labels)
        return loss + fair_contrast(
            nn.functional.normalize(self.auxiliary(batch.features), dim=1),
            batch.labels,
            batch.groups,
            temperature=self._options.temperature,
            balance_groups=self._options.balance_groups,
        )


def fair_contrast(
    directions: Tensor,
    labels: Tensor,
    groups: Tensor,
    *,
    temperature: float,
    balance_groups: bool,
) -> Tensor:
    """Return the contrastive loss of a batch.

    For an anchor i with positives P (its class) and negatives N (other classes, its group):
    ``- Σ_p w_p · log( exp(z_i·z_p/τ) / Σ_n exp(z_i·z_n/τ) )`` with Σ w_p = 1; then the weighted
    mean over anchors that have both. The weights are equal, or inverse to the number of rows of
    their class and group.

    Parameters
    ----------
    directions
        (B, D) of length 1.
    labels, groups
        (B,) int64.
    """
    similar = directions @ directions.T / temperature  # (B, B)
    same_class = labels[:, None] == labels[None]
    same_group = groups[:, None] == groups[None]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = same_class & ~itself
    negative = ~same_class & same_group
    usable = positive.any(1) & negative.any(1)
    if not usable.any():
        return similar.sum() * 0.0
    weights = torch.ones_like(similar[0])
    if balance_groups:
        weights = 1 / (same_class & same_group).sum(1)
    similar, positive, negative = similar[usable], positive[usable], negative[usable]
    against = similar.masked_fill(~negative, -torch.inf).logsumexp(1, keepdim=True)
    share = positive * weights
    share = share / share.sum(1, keepdim=True)
    each = -(share * (similar - against)).sum(1)
    anchors = weights[usable]
    return (each * anchors).sum() / anchors.sum()
