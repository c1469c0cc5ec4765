"""The inner loop: one masked fine-tune."""

from fairtune.training.hardware import autocast, choose_device
from fairtune.training.loop import DivergedError, Epoch, FineTuneResult, class_weights, fine_tune
from fairtune.training.predict import predict
from fairtune.training.recipe import Augment, Recipe
from fairtune.training.split import ImageSpec, Split

__all__ = [
    "Augment",
    "DivergedError",
    "Epoch",
    "FineTuneResult",
    "ImageSpec",
    "Recipe",
    "Split",
    "autocast",
    "choose_device",
    "class_weights",
    "fine_tune",
    "predict",
]
