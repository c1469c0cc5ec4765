"""What every fine-tune of one configuration shares: the images, the base model, the device.

Opened once per process and kept: a search of hundreds of trials reads its store and its base weights
once, and a worker process opens its own from the configuration.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from fairtune.config import Config, DataConfig, parse_config
from fairtune.data import Manifest, Store, load_dataset, open_store
from fairtune.data.manifest import SPLITS
from fairtune.data.references import common_window
from fairtune.data.splits import k_folds
from fairtune.errors import InputError
from fairtune.fairness import get_objective
from fairtune.peft import BaseModel, Mask, Space, apply_mask, get_space
from fairtune.seeding import seed as named_seed
from fairtune.training import ImageSpec, Recipe, Split, choose_device, class_weights
from fairtune.training.optimization import make_optimizer, make_schedule


@dataclass(frozen=True)
class Outline:
    """What a configuration comes to before any image is decoded."""

    config: Config
    manifest: Manifest
    """The data set with the configured attributes alone."""
    spec: ImageSpec
    """How images enter the model."""
    base: BaseModel
    """The model before any fine-tune; gives a copy to each trial."""
    space: Space
    """What the mask bits stand for."""
    device: torch.device

    def count(self, split: str) -> int:
        """Count the images of a split; raises `InputError` if it has none."""
        n = len(self.manifest.rows(split))
        if not n:
            raise InputError(
                f"the {split} split of {self.config.data.name!r} has no images: name it in the "
                "split column, or give it a share (data.options.ratios)"
            )
        return n

    def check_splits(self) -> None:
        """Raise `InputError` unless every split has images."""
        for split in SPLITS:
            self.count(split)

    def mask(self, bits: tuple[int, ...], space: str | None = None) -> Mask:
        """Make a mask for the base model in the configured space, or in another."""
        return (get_space(space) if space else self.space).mask(self.base.model, bits)

    def model(self, mask: Mask, seed: int) -> nn.Module:
        """Return a fresh model on the CPU, its head drawn from `seed`, its mask applied."""
        model = self.base.fresh(seed, from_scratch=get_space(mask.space).from_scratch)
        apply_mask(model, mask, seed=seed)
        return model


@dataclass(frozen=True)
class Workspace(Outline):
    """The data and the base model of one configuration."""

    store: Store
    """Its images, (N, H, W, 3) uint8."""

    def split(self, name: str) -> Split:
        """Take a split; a search asks for train and val, the final evaluation alone for test.

        Raises
        ------
        InputError
            The split has no images.
        """
        self.count(name)
        return Split.of(self.manifest, self.store.images, name)


def open_workspace(config: Config, source: str | None) -> Workspace:
    """Load the data set and the base model that a configuration names, once per process.

    Raises
    ------
    InputError
        From any of its parts: data set, images, architecture, weights, space, device.
    """
    return _open(config.to_yaml(), source or None)


@functools.lru_cache(maxsize=2)
def _open(config_yaml: str, source: str | None) -> Workspace:
    config = parse_config(yaml.safe_load(config_yaml), "configuration")
    found, data = open_outline(config, source), config.data
    store = open_store(
        found.manifest, data.store_size or data.image_size, on_bad_image=data.on_bad_image
    )
    return Workspace(
        config, store.manifest, found.spec, found.base, found.space, found.device, store
    )


def open_outline(config: Config, source: str | None) -> Outline:
    """Read the table of a configuration's data set and build its base model; decode nothing.

    Raises
    ------
    InputError
        As `open_workspace`, without what only the images show.
    """
    data, model = config.data, config.model
    get_objective(config.search.objective)  # names are checked before the data is touched
    space, device = get_space(config.search.space), choose_device(config.device)
    manifest = load_dataset(data.name, Path(source) if source else None, **data.options)
    manifest = _fold(manifest.select(data.attributes), data)
    base = BaseModel(
        model.architecture,
        num_classes=len(manifest.classes),
        weights=model.weights,
        options=model.options,
        seed=named_seed(config.seed, "base"),
    )
    # What does not fit is refused before images are decoded.
    if not space.bit_names(base.model):
        space.mask(base.model, ())
    if config.register_as.name is not None:
        common_window(manifest.table["image"])
    _check_size(base, data.image_size)
    _check_recipe(base, config.train, manifest)
    return Outline(
        config, manifest, ImageSpec(data.image_size, *base.normalization), base, space, device
    )


def _fold(manifest: Manifest, data: DataConfig) -> Manifest:
    """Split anew for the fold that is asked for; without folds the data set's own splits stay."""
    if data.folds is None:
        return manifest
    if data.fold is None:
        raise InputError("data.folds is set: cross-testing runs fold by fold, with --folds")
    return next(islice(k_folds(manifest, data.folds, seed=data.fold_seed), data.fold, None))


@torch.inference_mode()
def _check_size(base: BaseModel, size: int) -> None:
    """Let one blank image through the model: most transformers take one size only."""
    try:
        base.model(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        height, width = base.input_size
        raise InputError(
            f"{base.architecture} cannot see images of data.image_size={size}: "
            f"{str(error).splitlines()[0].rstrip('.')}; it is built for {height} x {width}: set "
            f"data.image_size={height}, or model.options={{img_size: {size}}} where it has that option"
        ) from None


def _check_recipe(base: BaseModel, recipe: Recipe, manifest: Manifest) -> None:
    """Make once what each fine-tune makes, so that what does not fit is said before any of them."""
    make_schedule(make_optimizer(base.model, recipe, None), recipe, steps=10)
    labels = manifest.table.loc[manifest.table["split"] == "train", "label"].to_numpy(np.int64)
    class_weights(labels, len(manifest.classes), recipe.class_weights)
