"""What a search or a fine-tune will take, before it starts: parameters, time, memory.

Nothing is decoded and nothing is written to the tracking store. Some steps of real training on random
pixels are measured, once with every parameter training and once with the classifier alone: what a
mask costs lies between.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from fairtune.config import Config
from fairtune.errors import InputError
from fairtune.peft import Mask, components
from fairtune.peft.parts import head_names
from fairtune.search.final import BASELINES
from fairtune.training import Split, fine_tune, predict
from fairtune.workspace import Outline, open_outline

HEAD, REST = "head", "rest"
STEPS = 6
ENOUGH = 10.0
"""Seconds after which no further step is measured."""
ALL, HEAD_ONLY = "fullft", "linear_readout"


@dataclass(frozen=True)
class Speed:
    """What was measured under one mask.

    Attributes
    ----------
    train, evaluate
        Images per second.
    memory
        Peak bytes: on a GPU of the tensors, on a processor of the whole process.
    """

    train: float
    evaluate: float
    memory: int


@dataclass(frozen=True)
class Estimate:
    """What a configuration will take.

    Attributes
    ----------
    parts
        One row a component, `head` and `rest`: ``part``, ``parameters``, ``trained`` (how many of
        them, under a given mask; without one all that a mask can let train).
    n_bits
        Bits of a mask.
    slow, fast
        Measured with every parameter training, and with the classifier alone; under a given mask
        both are of that mask.
    fine_tunes
        How many will be made.
    images
        Images per split.
    """

    parts: pd.DataFrame
    n_bits: int
    slow: Speed
    fast: Speed
    fine_tunes: int
    images: dict[str, int]
    epochs: int
    device: str

    @property
    def seconds_per_fine_tune(self) -> tuple[float, float]:
        """Shortest and longest."""
        return self._seconds(self.fast), self._seconds(self.slow)

    @property
    def seconds(self) -> tuple[float, float]:
        """Shortest and longest, of all fine-tunes together."""
        low, high = self.seconds_per_fine_tune
        return low * self.fine_tunes, high * self.fine_tunes

    @property
    def memory(self) -> int:
        """Peak memory in bytes."""
        return max(self.slow.memory, self.fast.memory)

    def lines(self) -> list[str]:
        """Say it in lines for people."""
        low, high = self.seconds_per_fine_tune
        total = self.parts["parameters"].sum()
        what = "1 fine-tune" if self.fine_tunes == 1 else f"{self.fine_tunes} fine-tunes"
        speeds = dict.fromkeys(f"{n:,.0f}" for n in sorted((self.slow.train, self.fast.train)))
        return [
            f"parameters     {total:,}, of them {self.parts['trained'].sum():,} can train",
            f"mask           {self.n_bits} bits",
            f"device         {self.device}",
            f"images         {self.images['train']:,} to train on, {self.images['val']:,} to judge by",
            f"speed          {' to '.join(speeds)} images/s in training, "
            f"{self.slow.evaluate:,.0f} in evaluation",
            f"one fine-tune  {_span(low, high)} ({self.epochs} epochs)",
            f"altogether     {_span(*self.seconds)} ({what}, without decoding images first)",
            f"memory         about {self.memory / 1e9:,.1f} GB",
        ]

    def summary(self) -> dict[str, Any]:
        """Return what a script needs."""
        return {
            "parameters": int(self.parts["parameters"].sum()),
            "trained": int(self.parts["trained"].sum()),
            "bits": self.n_bits,
            "fine_tunes": self.fine_tunes,
            "seconds_per_fine_tune": list(self.seconds_per_fine_tune),
            "seconds": list(self.seconds),
            "images_per_second": [self.slow.train, self.fast.train],
            "memory_bytes": self.memory,
        }

    def _seconds(self, speed: Speed) -> float:
        return self.epochs * (
            self.images["train"] / speed.train + self.images["val"] / speed.evaluate
        )


def estimate(
    config: Config, source: str | None, *, bits: Sequence[int] | None = None, times: int = 1
) -> Estimate:
    """Estimate a search, or, with the bits of a mask, one fine-tune.

    Parameters
    ----------
    source
        As for `fairtune.search.search.search`.
    bits
        Of the configured space; None estimates the search.
    times
        How often it runs, as once in each fold.

    Raises
    ------
    InputError
        Anything that would stop the search before its first trial, but for unreadable images.
    """
    outline = open_outline(config, source)
    images = {name: outline.count(name) for name in ("train", "val")}
    if bits is not None:
        mask = outline.mask(tuple(bits))
        slow = fast = _measure(outline, mask)
        fine_tunes = 1
    else:
        outline.check_splits()
        mask = outline.mask((), ALL)
        slow, fast = _measure(outline, mask), _measure(outline, outline.mask((), HEAD_ONLY))
        final = config.search.final
        fine_tunes = config.search.trials + (final.candidates + len(BASELINES)) * final.seeds
    return Estimate(
        parts=_parts(outline.base.model, mask),
        n_bits=outline.space.n_bits(outline.base.model),
        slow=slow,
        fast=fast,
        fine_tunes=fine_tunes * times,
        images=images,
        epochs=config.train.epochs,
        device=str(outline.device),
    )


def _span(low: float, high: float) -> str:
    """Write a span of seconds for people."""
    shown = [_duration(seconds) for seconds in sorted((low, high))]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _parts(model: nn.Module, mask: Mask) -> pd.DataFrame:
    """Count the parameters of every component, and how many of them train under a mask."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    try:
        found = {part.name: part.parameter_names for part in components(model)}
    except InputError:  # spaces of single tensors take models that cannot be cut
        found = {}
    found[HEAD] = head_names(model)
    known = {name for names in found.values() for name in names}
    found[REST] = tuple(name for name in sizes if name not in known)
    trains = set(mask.parameters)
    rows = [
        {
            "part": part,
            "parameters": sum(sizes[name] for name in names),
            "trained": sum(sizes[name] for name in names if name in trains),
        }
        for part, names in found.items()
        if names
    ]
    return pd.DataFrame(rows)


def _measure(outline: Outline, mask: Mask) -> Speed:
    """Train a warm step and some that count, predict as many images; the fastest of each counts."""
    config, device = outline.config, outline.device
    recipe = config.train.model_copy(update={"epochs": STEPS})
    split = _random_split(outline, recipe.batch_size)
    model = outline.model(mask, seed=0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    done = fine_tune(
        model,
        split,
        split,
        outline.spec,
        recipe,
        seed=0,
        device=device,
        on_epoch=lambda epoch: epoch.number < 2 or time.perf_counter() - started < ENOUGH,
    )
    train = max(epoch.images_per_second for epoch in done.epochs[1:] or done.epochs)
    evaluate = len(split) / min(_seconds_to_predict(outline, model, split) for _ in range(3))
    return Speed(train, evaluate, _peak(device))


def _seconds_to_predict(outline: Outline, model: nn.Module, split: Split) -> float:
    recipe = outline.config.train
    started = time.perf_counter()
    predict(
        model,
        split,
        outline.spec,
        batch_size=recipe.eval_batch_size,
        device=outline.device,
        precision=recipe.precision,
    )
    return time.perf_counter() - started


def _random_split(outline: Outline, n: int) -> Split:
    """Make n random images that have the classes and groups of the training split by turns."""
    manifest, size = outline.manifest, outline.config.data.store_size or outline.spec.size
    table = manifest.table.iloc[np.resize(manifest.rows("train"), n)].reset_index(drop=True)
    rng = np.random.default_rng(0)
    return Split(
        name="train",
        images=rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        rows=np.arange(n),
        labels=np.arange(n) % len(manifest.classes),
        groups=table[list(manifest.attributes)],
        patients=np.arange(n),
        references=table["image"].to_numpy(),
        classes=manifest.classes,
    )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
