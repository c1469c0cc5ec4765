"""Two codes of each image, one for the class and one for the group, that are kept apart."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.func import functional_call

from fairtune.peft.parts import head_modules
from fairtune.seeding import seed as named_seed
from fairtune.training.features import classifier
from fairtune.training.strategies.adversarial import HIDDEN, perceptron
from fairtune.training.strategies.base import STRATEGIES, Batch, Strategy, Tactic, Task


@STRATEGIES.register("odr")
class ODR(Strategy):
    """Learns a code from which the class is read, and another from which the group is.

    Both codes are Gaussians whose means and variances are linear in the features. The loss is the
    recipe's on the target code, the group's cross-entropy on the sensitive code, ``entropy_weight``
    times the distance from uniform of what the group's reader makes of the target code (which only
    the code follows), and ``prior_weight`` times the divergence of the codes from two Gaussian
    priors with orthogonal means. At its mean the target code is linear in the features, and so is
    the class's reader: their product takes the place of the model's classifier, and no encoder is
    left in the model that is kept. The paper lets both weights grow while it trains.

    References
    ----------
    Sarhan, Navab, Eslami, Albarqouni (2020), "Fairness by Learning Orthogonal Disentangled
    Representations", ECCV, arXiv:2003.05707, equations 4 to 8.
    """

    uses_groups: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True
    entropy_weight: float = Field(
        0.1, ge=0, description="Weight of the group's entropy on the target code: lambda_E."
    )
    prior_weight: float = Field(
        0.01, ge=0, description="Weight of the orthogonal priors: lambda_OD."
    )
    width: int = Field(32, ge=2, description="Width of each code; even.")
    hidden: int = Field(128, ge=1, description=HIDDEN)

    @field_validator("width")
    @classmethod
    def _halves(cls, width: int) -> int:
        if width % 2:
            raise ValueError("must be even: each prior has its mean in one half")
        return width

    def start(self, task: Task) -> Tactic:
        """Begin with untrained codes."""
        return ODRTactic(self, task)


class ODRTactic(Tactic):
    """Has the encoders of both codes and their readers; the model's own classifier waits."""

    changing = ("_noise",)

    def __init__(self, options: ODR, task: Task) -> None:
        self._options, self._n_groups = options, task.n_groups
        self._prefix, own = next(iter(head_modules(task.model).items()))
        self._has_bias = getattr(own, "bias", None) is not None
        n_in, width = classifier(task.model).in_features, options.width
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(named_seed(task.seed, "codes"))
            names = ("target_mean", "target_scale", "group_mean", "group_scale")
            self._encoders = {name: nn.Linear(n_in, width).to(task.device) for name in names}
            self._reader = nn.Linear(width, task.n_classes, bias=self._has_bias).to(task.device)
        self._group_reader = perceptron(task, width, options.hidden, task.n_groups)
        own_networks = [*self._encoders.values(), self._reader, self._group_reader]
        self.auxiliary: nn.Module = nn.ModuleList(own_networks)
        self._noise = torch.Generator().manual_seed(named_seed(task.seed, "noise"))
        first = (torch.arange(width, device=task.device) < width // 2).float()
        self._priors = {"target": 1 - first, "group": first}  # orthogonal

    def _code(self, name: str, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return a draw of a code (B, width), and its divergence from its prior."""
        mean: Tensor = self._encoders[f"{name}_mean"](features)
        log_variance: Tensor = self._encoders[f"{name}_scale"](features)
        noise = torch.randn(mean.shape, generator=self._noise).to(mean.device)
        apart = (mean - self._priors[name]).square()
        divergence: Tensor = (log_variance.exp() + apart - 1 - log_variance).sum(1).mean() / 2
        return mean + (log_variance / 2).exp() * noise, divergence

    def loss(self, batch: Batch, criterion: nn.CrossEntropyLoss) -> Tensor:
        """Return the loss of both codes."""
        assert batch.groups is not None
        assert batch.features is not None
        target, target_prior = self._code("target", batch.features)
        group, group_prior = self._code("group", batch.features)
        loss: Tensor = criterion(self._reader(target), batch.labels)
        loss = loss + nn.functional.cross_entropy(self._group_reader(group), batch.groups)
        held = {name: p.detach() for name, p in self._group_reader.named_parameters()}
        logs = functional_call(self._group_reader, held, (target,)).log_softmax(1)
        from_uniform = -logs.mean(1).mean() - torch.tensor(float(self._n_groups)).log()
        priors = self._options.prior_weight * (target_prior + group_prior)
        loss = loss + self._options.entropy_weight * from_uniform + priors
        return loss

    def kept(self, epoch: int) -> dict[str, Tensor]:
        """Return the classifier that reads the mean of the target code from the features."""
        encoder, reader = self._encoders["target_mean"], self._reader
        found = {f"{self._prefix}.weight": (reader.weight @ encoder.weight).detach()}
        if self._has_bias:
            bias = reader.weight @ encoder.bias + reader.bias
            found[f"{self._prefix}.bias"] = bias.detach()
        return found
