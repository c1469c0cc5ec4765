"""Class probabilities of a whole split."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairtune.data.batches import eval_batches
from fairtune.peft.parts import head_modules, head_names
from fairtune.training.features import feature_tap
from fairtune.training.hardware import autocast, choose_attention
from fairtune.training.memory import is_out_of_memory, release
from fairtune.training.split import ImageSpec, Split

logger = logging.getLogger(__name__)


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
        Images at once; halved whenever memory runs out.

    Returns
    -------
    (n, C) float64
        Class probabilities; each row sums to 1. Metrics are computed from these rows as a whole,
        never averaged over batches.
    """
    device = device or next(model.parameters()).device
    passes = _Passes(model, split, spec, batch_size=batch_size, device=device, precision=precision)
    return passes.probabilities()


@dataclass(eq=False)
class _Passes:
    """Passes of a model over a split, in as small batches as memory has asked for so far."""

    model: nn.Module
    split: Split
    spec: ImageSpec
    _: KW_ONLY
    batch_size: int
    """Images at once; halved whenever memory runs out, and smaller from then on."""
    device: torch.device
    precision: str

    def probabilities(self) -> NDArray[np.float64]:
        """Return class probabilities (n, C) of the model as it is now."""
        choose_attention(self.model, self.device, self.precision)
        with _evaluating(self.model):
            return torch.cat([_probabilities(logits) for logits in self.logits()]).numpy()

    def logits(self) -> Iterator[Tensor]:
        """Yield logits (B, C) in the order of the rows; goes on where memory ran out."""
        done, n = 0, len(self.split.rows)
        while done < n:
            try:
                for logits in self._logits_from(done):
                    yield logits
                    done += len(logits)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.batch_size <= 1:
                    raise
                self.batch_size = -(-min(self.batch_size, n - done) // 2)
                logger.warning("out of memory: evaluating %d images at once", self.batch_size)
            else:
                return
            release(self.device)  # here, as the error held on to what the pass had allocated

    def _logits_from(self, start: int) -> Iterator[Tensor]:
        batches = eval_batches(
            self.split.images,
            self.split.rows[start:],
            batch_size=self.batch_size,
            size=self.spec.size,
            mean=self.spec.mean,
            std=self.spec.std,
            device=self.device,
        )
        with closing(batches):
            for x in batches:  # (B, 3, size, size)
                with autocast(self.device, self.precision):
                    logits = self.model(x)
                yield logits


@dataclass(eq=False)
class Judge(_Passes):
    """Predicts one split again and again while a model trains.

    Where the classifier alone trains (a linear probe), what goes into it never changes, as these
    images are not augmented: it is computed once, n · D floats, and kept.
    """

    def __post_init__(self) -> None:
        self.keeps_features = _only_classifier_trains(self.model)
        self._features: Tensor | None = None

    @torch.inference_mode()
    def __call__(self) -> NDArray[np.float64]:
        """Return class probabilities (n, C) of the model as it is now."""
        if not self.keeps_features:
            return self.probabilities()
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
            return torch.cat([tap.take() for _ in self.logits()])


def _only_classifier_trains(model: nn.Module) -> bool:
    heads = list(head_modules(model).values())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return len(heads) == 1 and isinstance(heads[0], nn.Linear) and trained <= set(head_names(model))


def _probabilities(logits: Tensor) -> Tensor:
    return logits.cpu().double().softmax(dim=1)  # on the CPU: MPS has no float64


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
