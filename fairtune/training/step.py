"""One optimiser step on a batch, in as many micro-batches as memory asks for."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from fairtune.training.features import FeatureTap
from fairtune.training.hardware import autocast
from fairtune.training.memory import is_out_of_memory, release
from fairtune.training.pause import random_state, set_random_state
from fairtune.training.strategies.base import Batch, Tactic
from fairtune.training.tensors import still_statistics

logger = logging.getLogger(__name__)


class Stepper:
    """Takes optimiser steps on a model as a tactic says.

    Parameters
    ----------
    micro_batch_size
        Images in memory at once, 2 or more; halved whenever memory runs out.
    clip_gradient
        Largest norm of the model's gradient, or None.
    tap
        The features, for a tactic that uses them.
    """

    def __init__(
        self,
        model: nn.Module,
        tactic: Tactic,
        criterion: nn.CrossEntropyLoss,
        optimizer: torch.optim.Optimizer,
        *,
        micro_batch_size: int,
        precision: str,
        clip_gradient: float | None,
        tap: FeatureTap | None,
    ) -> None:
        self.model, self.tactic, self.criterion = model, tactic, criterion
        self.optimizer, self.tap = optimizer, tap
        self.micro_batch_size, self.precision = micro_batch_size, precision
        self.clip_gradient = clip_gradient
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # The recipe's loss is a mean over rows, which parts of a batch add up to. Of any other
        # loss nothing is known, so it sees the batch as a whole.
        self._adds_up = type(tactic).loss is Tactic.loss

    def __call__(self, x: Tensor, y: Tensor, groups: Tensor | None) -> Tensor:
        """Take one step; returns the loss of the batch before it, which a GPU may still compute."""
        self.tactic.before_step(self.optimizer)
        loss = self.tactic.gradients(lambda: self._fitting(x, y, groups), self.parameters)
        if self.clip_gradient is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tactic.after_step()
        return loss

    def _fitting(self, x: Tensor, y: Tensor, groups: Tensor | None) -> Tensor:
        """Add the batch's gradients; halve the micro-batches when memory runs out."""
        while True:
            try:
                if self._adds_up:
                    return self._summed(x, y)
                if len(y) <= self.micro_batch_size:
                    return self._whole(x, y, groups)
                return self._cached(x, y, groups)
            except RuntimeError as error:
                at_once = min(self.micro_batch_size, len(y))
                if not is_out_of_memory(error) or at_once <= 2:
                    raise
                self.micro_batch_size = -(-at_once // 2)
                logger.warning(
                    "out of memory: going on with %d images at once", self.micro_batch_size
                )
            release(x.device)  # here, as the error held on to what the pass had allocated
            self.optimizer.zero_grad(set_to_none=True)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        with autocast(x.device, self.precision):
            logits = self.model(x)
        return logits.float(), self.tap.take() if self.tap is not None else None

    def _summed(self, x: Tensor, y: Tensor) -> Tensor:
        """Add up the gradients of the recipe's mean loss, part by part."""
        total = x.new_zeros(())
        whole = self._weight(y)
        sizes = part_sizes(len(y), self.micro_batch_size)
        for part, target in zip(torch.split(x, sizes), torch.split(y, sizes), strict=True):
            logits, _ = self._forward(part)
            # The mean over the batch is weighted by class: a part's share is its weight, not its
            # size.
            share = 1.0 if len(target) == len(y) else self._weight(target) / whole
            loss = self.tactic.loss(Batch(logits, target), self.criterion) * share
            torch.autograd.backward(loss)
            total += loss.detach()
        return total

    def _weight(self, y: Tensor) -> Tensor:
        weight = self.criterion.weight
        return torch.tensor(float(len(y))) if weight is None else weight[y].sum()

    def _whole(self, x: Tensor, y: Tensor, groups: Tensor | None) -> Tensor:
        logits, features = self._forward(x)
        loss = self.tactic.loss(Batch(logits, y, groups, features), self.criterion)
        torch.autograd.backward(loss)
        return loss.detach()

    def _cached(self, x: Tensor, y: Tensor, groups: Tensor | None) -> Tensor:
        """Compute the gradients of a loss that needs the whole batch, in micro-batches.

        Gradient caching (Gao et al. 2021, arXiv:2101.06983): a pass without gradients gives all
        outputs, the loss gives the gradients at the outputs, and a second pass, with the same
        random draws, carries them into the model part by part.
        """
        sizes = part_sizes(len(y), self.micro_batch_size)
        parts = torch.split(x, sizes)
        states, outputs = [], []
        with torch.no_grad(), still_statistics(self.model):
            for part in parts:
                states.append(random_state(x.device))
                outputs.append(self._forward(part))
        logits = torch.cat([logits for logits, _ in outputs]).requires_grad_()
        features = None
        if self.tap is not None:
            features = torch.cat([f for _, f in outputs if f is not None]).requires_grad_()
        loss = self.tactic.loss(Batch(logits, y, groups, features), self.criterion)
        torch.autograd.backward(loss)
        at = [
            torch.split(t.grad, sizes) if t is not None and t.grad is not None else None
            for t in (logits, features)
        ]
        for i, (part, state) in enumerate(zip(parts, states, strict=True)):
            set_random_state(x.device, state)
            pairs = [
                (output, gradients[i])
                for output, gradients in zip(self._forward(part), at, strict=True)
                if output is not None and output.requires_grad and gradients is not None
            ]
            if pairs:
                torch.autograd.backward([p[0] for p in pairs], [p[1] for p in pairs])
        return loss.detach()


def part_sizes(n: int, most: int) -> list[int]:
    """Cut n images into parts of `most` (2 or more); a last single one joins the part before it.

    Batch normalisation cannot train on one image where the feature map has one pixel.
    """
    sizes = [most] * (n // most) + [n % most] * (n % most > 0)
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [most + 1]
    return sizes
