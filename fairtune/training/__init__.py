"""The inner loop: one masked fine-tune."""

from fairtune.training.hardware import autocast, choose_device
from fairtune.training.loop import fine_tune
from fairtune.training.optimization import class_weights
from fairtune.training.predict import predict
from fairtune.training.recipe import Augment, Recipe
from fairtune.training.result import DivergedError, Epoch, FineTuneResult
from fairtune.training.split import ImageSpec, Split
from fairtune.training.strategies import STRATEGIES, Strategy, make_strategy

__all__ = [
    "STRATEGIES",
    "Augment",
    "DivergedError",
    "Epoch",
    "FineTuneResult",
    "ImageSpec",
    "Recipe",
    "Split",
    "Strategy",
    "autocast",
    "choose_device",
    "class_weights",
    "fine_tune",
    "make_strategy",
    "predict",
]
