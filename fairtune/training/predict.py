"""Class probabilities of a whole split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairtune.data.batches import eval_batches
from fairtune.peft.parts import head_modules, head_names
from fairtune.training.features import feature_tap
from fairtune.training.hardware import autocast, choose_attention
from fairtune.training.split import ImageSpec, Split


@torch.inference_mode()
def predict(
    model: nn.Module,
    split: Split,
    spec: ImageSpec,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    precision: str = "auto",
) -> NDArray[np.float64]:
    """Predict every image of a split, in order.

    Parameters
    ----------
    batch_size
        Images at once.

    Returns
    -------
    (n, C) float64
        Class probabilities; each row sums to 1. Metrics are computed from these rows as a whole,
        never averaged over batches.
    """
    device = device or next(model.parameters()).device
    choose_attention(model, device, precision)
    with _evaluating(model):
        parts = [
            _probabilities(logits)
            for logits in _logits(model, split, spec, batch_size, device, precision)
        ]
    return torch.cat(parts).numpy()


class Judge:
    """Predicts one split again and again while a model trains.

    Where the classifier alone trains (a linear probe), what goes into it never changes, as these
    images are not augmented: it is computed once, n · D floats, and kept.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        spec: ImageSpec,
        *,
        batch_size: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.model, self.split, self.spec = model, split, spec
        self.batch_size, self.device, self.precision = batch_size, device, precision
        self.keeps_features = _only_classifier_trains(model)
        self._features: Tensor | None = None

    @torch.inference_mode()
    def __call__(self) -> NDArray[np.float64]:
        """Return class probabilities (n, C) of the model as it is now."""
        if not self.keeps_features:
            return predict(
                self.model,
                self.split,
                self.spec,
                batch_size=self.batch_size,
                device=self.device,
                precision=self.precision,
            )
        if self._features is None:
            self._features = self._computed()
        (classifier,) = head_modules(self.model).values()
        with autocast(self.device, self.precision):
            logits = classifier(self._features)
        return _probabilities(logits).numpy()

    def _computed(self) -> Tensor:
        """Return what goes into the classifier, (n, D) float32, on the device."""
        with _evaluating(self.model), feature_tap(self.model, True) as tap:
            assert tap is not None
            passes = _logits(
                self.model, self.split, self.spec, self.batch_size, self.device, self.precision
            )
            return torch.cat([tap.take() for _ in passes])


def _only_classifier_trains(model: nn.Module) -> bool:
    heads = list(head_modules(model).values())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return len(heads) == 1 and isinstance(heads[0], nn.Linear) and trained <= set(head_names(model))


def _logits(
    model: nn.Module,
    split: Split,
    spec: ImageSpec,
    batch_size: int,
    device: torch.device,
    precision: str,
) -> Iterator[Tensor]:
    """Yield the model's outputs (B, C), batch by batch."""
    batches = eval_batches(
        split.images,
        split.rows,
        batch_size=batch_size,
        size=spec.size,
        mean=spec.mean,
        std=spec.std,
        device=device,
    )
    for x in batches:  # (B, 3, size, size)
        with autocast(device, precision):
            logits = model(x)
        yield logits


def _probabilities(logits: Tensor) -> Tensor:
    return logits.double().softmax(dim=1).cpu()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode for a while."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:  # mode by mode: a frozen norm inside a training model stays in evaluation
        for module in was_training:
            module.training = True
