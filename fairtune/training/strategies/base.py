"""What a strategy is: a way to train that is not plain empirical risk minimisation.

The mask says *which* parameters train, the strategy *how*. A strategy may change which rows an
epoch draws, the loss, the gradient that the optimiser steps along, and the weights that are kept;
and it may bring networks of its own, which are thrown away. Everything else, above all what is
frozen, is the loop's. So every strategy works under every mask.

Two classes share the work. A `Strategy` is a frozen value: its fields are its options, and a
configuration holds it. `Strategy.start` makes a `Tactic`, which has the state of one fine-tune.
The defaults of `Tactic` are plain training, so a strategy overrides only what it changes.

The groups of a strategy are the cross of all sensitive attributes (`group_index`). A strategy that
does not declare `uses_groups` has no way to see them: neither its `Task` nor its `Batch` has any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from fairtune.errors import InputError
from fairtune.registry import Registry, unknown_name


@dataclass(frozen=True)
class Task:
    """The fine-tune that a strategy takes part in.

    Attributes
    ----------
    model
        On its device, with ``requires_grad`` as the mask set it.
    labels
        (n,) class index of each training row.
    n_classes
        C.
    groups
        (n,) group index of each training row; None unless the strategy `uses_groups`.
    n_groups
        Number of groups that occur; 0 unless the strategy `uses_groups`.
    epochs, steps
        Epochs in all, and optimiser steps in each.
    learning_rate, lowest_learning_rate
        The schedule's peak, and where it begins and ends.
    seed
        For the strategy's own draws.
    device
        Where the model is.
    validation_loss
        Mean cross-entropy of the model as it is now on the validation split: a pass over it.
    draw
        Gives the training batches of one epoch in random order, augmented: x (B, 3, size, size), y
        (B,) and position (B,) among the training rows. For a pass of the strategy's own.
    views
        Gives the training images x (B, 3, size, size) whole, in the order of the rows.
    """

    model: nn.Module
    labels: NDArray[np.int64]
    n_classes: int
    groups: NDArray[np.int64] | None
    n_groups: int
    epochs: int
    steps: int
    learning_rate: float
    lowest_learning_rate: float
    seed: int
    device: torch.device
    validation_loss: Callable[[], float]
    draw: Callable[[int], Iterator[tuple[Tensor, Tensor, NDArray[np.int64]]]]
    views: Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Batch:
    """What a loss is computed from.

    Attributes
    ----------
    logits
        (B, C) float32.
    labels
        (B,) int64.
    groups
        (B,) int64; None unless the strategy `uses_groups`.
    features
        (B, D) float32, what goes into the classifier; None unless the strategy `uses_features`.
    """

    logits: Tensor
    labels: Tensor
    groups: Tensor | None = None
    features: Tensor | None = None


class Tactic:
    """A strategy at work in one fine-tune; as it stands here, plain training."""

    auxiliary: nn.Module | None = None
    """Networks of the strategy's own, trained beside the model and thrown away."""
    changing: ClassVar[tuple[str, ...]] = ()
    """Attributes that training changes, beside `auxiliary`: numbers, tensors, modules, generators."""

    def row_weights(self, epoch: int) -> NDArray[np.float64] | None:
        """Return how often each training row is drawn in this epoch; None draws each once.

        Returns
        -------
        (n,) non-negative weights, or None
            With weights an epoch is n draws with replacement.
        """
        return None

    def importance(self) -> NDArray[np.float64] | None:
        """Return the weight of each training row in the expected loss, before class weights.

        ``class_weights: balanced`` balances what this leaves: where a strategy balances the
        classes itself, the loss must not do so a second time.
        """
        return self.row_weights(1)

    def loss(self, batch: Batch, criterion: nn.CrossEntropyLoss) -> Tensor:
        """Return the loss of a whole batch; `criterion` is the recipe's own."""
        result: Tensor = criterion(batch.logits, batch.labels)
        return result

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Act before a step, with the schedule's learning rate already set."""

    def gradients(
        self, compute: Callable[[], Tensor], parameters: Sequence[nn.Parameter]
    ) -> Tensor:
        """Leave in ``.grad`` what the optimiser shall follow; return the loss.

        Parameters
        ----------
        compute
            Adds the gradients of this batch's loss at the current weights; returns that loss.
        parameters
            What trains in the model.
        """
        return compute()

    def after_step(self) -> None:
        """Act after the optimiser's step."""

    def kept(self, epoch: int) -> Mapping[str, Tensor] | None:
        """Return what to judge after this epoch, and to keep should it be the last.

        Returns
        -------
        Mapping or None
            Values of trained tensors by their names in the model; None for the model as it is.
        """
        return None

    def state(self) -> dict[str, Any]:
        """Return what another tactic of the same task needs to go on from here."""
        names = self.changing if self.auxiliary is None else (*self.changing, "auxiliary")
        return {name: _state_of(getattr(self, name)) for name in names}

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        for name, value in state.items():
            own = getattr(self, name)
            if isinstance(own, nn.Module):
                own.load_state_dict(value)
            elif isinstance(own, torch.Generator):
                own.set_state(value)
            else:
                setattr(self, name, value.to(own.device) if isinstance(own, Tensor) else value)


def _state_of(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return value.state_dict()
    return value.get_state() if isinstance(value, torch.Generator) else value


class Strategy(BaseModel, ABC):
    """A way to train, with its options as fields; frozen, made by `make_strategy`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uses_groups: ClassVar[bool] = False
    """Whether training sees the groups. The trained model never does."""
    uses_features: ClassVar[bool] = False
    """Whether the loss sees what goes into the classifier."""

    @abstractmethod
    def start(self, task: Task) -> Tactic:
        """Begin a fine-tune.

        Raises
        ------
        InputError
            When the strategy does not fit the task.
        """


STRATEGIES: Registry[type[Strategy]] = Registry("strategy")


def make_strategy(name: str, options: Mapping[str, Any] | None = None) -> Strategy:
    """Return a strategy by name, with options.

    Raises
    ------
    InputError
        An unknown name or option (with the known ones), or an option's value out of bounds.
    """
    kind = STRATEGIES[name]
    given = dict(options or {})
    for key in given:
        if key not in kind.model_fields:
            if not kind.model_fields:
                raise InputError(f"strategy {name!r} has no options, but {key!r} is given")
            raise unknown_name(f"option of strategy {name!r}:", key, kind.model_fields)
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"strategy {name!r}: {where + ': ' if where else ''}"
            f"{first['msg'].removeprefix('Value error, ')}"
            + (f", not {first['input']!r}" if where else "")
        ) from None


def row_losses(criterion: nn.CrossEntropyLoss, logits: Tensor, labels: Tensor) -> Tensor:
    """Return (B,) losses, one per row, each times the weight of its class."""
    return nn.functional.cross_entropy(
        logits,
        labels,
        weight=criterion.weight,
        label_smoothing=criterion.label_smoothing,
        reduction="none",
    )
