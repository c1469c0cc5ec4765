"""What goes into the classifier: read by a hook, so that any model of timm will do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairtune.errors import InputError
from fairtune.peft.parts import architecture_name, head_modules


def classifier(model: nn.Module) -> nn.Linear:
    """Return the model's classifier.

    Raises
    ------
    InputError
        When the model has none, several (a distilled model), or one that is not linear.
    """
    found = list(head_modules(model).values())
    if len(found) != 1 or not isinstance(found[0], nn.Linear):
        kinds = ", ".join(type(module).__name__ for module in found) or "none"
        raise InputError(
            f"this strategy needs a model with one linear classifier; {architecture_name(model)!r} "
            f"has {kinds}: take another architecture or a strategy that does not use features"
        )
    return found[0]


class FeatureTap:
    """Keeps the last input of a model's classifier, (B, D), until it is taken."""

    def __init__(self, model: nn.Module) -> None:
        self._features: Tensor | None = None
        self._handle = classifier(model).register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0]

    def take(self) -> Tensor:
        """Return the features of the last forward pass, in float32."""
        features, self._features = self._features, None
        assert features is not None, "no forward pass since the last take"
        return features.float()

    def remove(self) -> None:
        """Take the hook out of the model."""
        self._handle.remove()


@contextmanager
def feature_tap(model: nn.Module, wanted: bool) -> Iterator[FeatureTap | None]:
    """Put a hook on the classifier for a while; gives None, and does nothing, where not wanted."""
    if not wanted:
        yield None
        return
    tap = FeatureTap(model)
    try:
        yield tap
    finally:
        tap.remove()


@torch.no_grad()
def features_of(model: nn.Module, views: Iterator[Tensor]) -> Tensor:
    """Return (n, D) float32 features of all images, on the CPU, in evaluation mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    with feature_tap(model, True) as tap:
        assert tap is not None
        parts = []
        for x in views:
            model(x)
            parts.append(tap.take().cpu())
    for module in training:  # mode by mode: a frozen norm in a training model stays in evaluation
        module.training = True
    return torch.cat(parts)
