"""What a fine-tune comes to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fairtune.errors import FairtuneError
from fairtune.fairness import FairnessReport


class DivergedError(FairtuneError, RuntimeError):
    """The loss stopped being a number."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes
    ----------
    number
        Counted from 1: how many epochs have been trained.
    loss
        Mean training loss over the epoch's images.
    learning_rate
        At the end of the epoch.
    seconds, images_per_second, steps
        Of training alone, without the evaluation; `steps` are the optimiser's.
    report
        Of the whole validation split.
    waiting_seconds
        Part of `seconds` in which the model waited for its next batch. On a GPU, which works while
        the program goes on, it says less.
    validation_seconds
        Of predicting the validation split and judging the predictions.
    """

    number: int
    loss: float
    learning_rate: float
    seconds: float
    images_per_second: float
    report: FairnessReport
    steps: int = 0
    waiting_seconds: float = 0.0
    validation_seconds: float = 0.0


@dataclass
class FineTuneResult:
    """The epochs that were judged, and why there are no more.

    Attributes
    ----------
    stopped_at
        The epoch after which `on_epoch` asked to stop, or None when all were trained.
    probabilities
        (n, C) of the validation split after the last epoch.
    micro_batch_size
        Images that were in memory at once; smaller than asked for when memory ran out.
    """

    epochs: list[Epoch] = field(default_factory=list)
    stopped_at: int | None = None
    probabilities: NDArray[np.float64] | None = None
    micro_batch_size: int = 0

    @property
    def report(self) -> FairnessReport:
        """The validation report after the last epoch."""
        return self.epochs[-1].report
