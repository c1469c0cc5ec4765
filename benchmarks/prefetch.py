"""An epoch with images on the GPU, and from host memory with the next batch made ahead or in turn.

    python -m benchmarks.prefetch --device cuda [--architecture vit_base_patch16_224 --batch 256]

Whole fine-tunes under a random mask on random images, by turns; an epoch is the median of those after the
first, and what it waits for batches is told beside it. On a CPU there is no place but the host, and the
thread that makes the next batch takes its time from the matrix products.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from fairtune.data import batches
from fairtune.data.prefetch import ahead
from fairtune.peft import BaseModel, apply_mask, get_space
from fairtune.training import ImageSpec, Recipe, Split, choose_device, fine_tune, memory
from fairtune.training.result import Epoch

SPACE = "auto_peft1"


def in_turn(made: Any, *_: object) -> Any:
    return made


def one_ahead(made: Any, resample: Any, _: bool) -> Any:
    return ahead(made, resample.device)


WAYS: dict[str, tuple[float, Callable[..., Any]]] = {
    "on the device": (1.0, in_turn),
    "host, one ahead": (0.0, one_ahead),
    "host, in turn": (0.0, in_turn),
}
"""How much of a GPU's free memory images may take, and how batches are fed."""


def split(name: str, images: np.ndarray, n: int) -> Split:
    """Return the first `n` images with labels and groups that they have nothing to do with."""
    groups = np.random.default_rng(n).integers(0, 2, n)
    return Split(
        name=name,
        images=images,
        rows=np.arange(n),
        labels=np.arange(n) % 2,
        groups=pd.DataFrame({"group": pd.Categorical.from_codes(groups, ["a", "b"])}),
        patients=np.arange(n),
        references=np.arange(n).astype(str),
        classes=("no", "yes"),
    )


def epochs(
    way: str, options: argparse.Namespace, base: BaseModel, images: np.ndarray
) -> list[Epoch]:
    """Fine-tune, fed in one way; return the epochs after the first."""
    share, fed = WAYS[way]
    memory._kept.clear()
    model = base.fresh(0)
    n = len(get_space(SPACE).bit_names(model))
    bits = np.random.default_rng(0).permutation(np.arange(n) % 2)
    apply_mask(model, get_space(SPACE).mask(model, tuple(int(bit) for bit in bits)))
    recipe = Recipe(epochs=options.epochs + 1, batch_size=options.batch)
    device = choose_device(options.device)
    spec = ImageSpec(base.input_size[0], *base.normalization)
    parts = (split("train", images, len(images)), split("val", images, options.val_images))
    with patch.object(memory, "SHARE", share), patch.object(batches, "_fed", fed):
        return fine_tune(model, *parts, spec, recipe, seed=0, device=device).epochs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="vit_tiny_patch16_224")
    parser.add_argument("--images", type=int, default=0, help="default: 8192 on a GPU, else 192")
    parser.add_argument("--val-images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2, help="that count, of each fine-tune")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    gpu = choose_device(options.device).type == "cuda"
    options.images = options.images or (8192 if gpu else 192)
    base = BaseModel(options.architecture, num_classes=2, seed=0)
    side = base.input_size[0] * 8 // 7
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.images, side, side, 3), np.uint8)
    ways = [way for way in WAYS if gpu or way.startswith("host")]
    found: dict[str, list[Epoch]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            found[way] += epochs(way, options, base, images)
    where = torch.cuda.get_device_name() if gpu else choose_device(options.device).type
    print(
        f"{options.architecture}, {options.images} images of {side} px, batch {options.batch}, "
        f"{options.rounds} rounds, {where}\n"
    )
    print("| images | an epoch's training, s | of it waiting for batches | images/s |")
    print("| --- | --- | --- | --- |")
    for way, of in found.items():
        seconds = float(np.median([epoch.seconds for epoch in of]))
        waiting = float(np.median([epoch.waiting_seconds / epoch.seconds for epoch in of]))
        print(f"| {way} | {seconds:.2f} | {waiting:.1%} | {options.images / seconds:,.1f} |")


if __name__ == "__main__":
    main()
