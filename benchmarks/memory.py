"""A training step on a CPU with freed memory given back to the system, as glibc does, and kept.

    python -m benchmarks.memory [--rounds 3]

One core, full fine-tuning with AdamW. Each way runs in processes of its own, by turns; the median of a
process's steps counts, and of the rounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from torch import nn

from fairtune.peft import BaseModel, apply_mask, get_space
from fairtune.training import Recipe
from fairtune.training.hardware import prepare
from fairtune.training.optimization import make_optimizer
from fairtune.training.step import Stepper
from fairtune.training.strategies import Tactic

CASES = [
    ("tf_efficientnet_lite0", 96, 64),
    ("tf_efficientnet_lite0", 224, 32),
    ("vit_tiny_patch16_224", 224, 32),
    ("resnet18", 96, 64),
]
BY_ITSELF = {"GLIBC_TUNABLES": ""}
"""`keep_freed` leaves the C library alone where this is set; empty it says nothing else."""


def main() -> None:
    """Print a row for each model, or (in the processes of their own) one way's figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(*measured(*CASES[options.case]))
        return
    print(
        "| model | given back, images/s | faults a step | kept, images/s | faults a step | ratio |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for case, (architecture, size, batch) in enumerate(CASES):
        rounds = [
            [run(case, environment) for environment in (BY_ITSELF, {})]
            for _ in range(options.rounds)
        ]
        (back, back_faults), (kept, kept_faults) = np.median(rounds, axis=0)
        print(
            f"| {architecture}, {size} px, batch {batch} | {back:.0f} | {back_faults:,.0f} "
            f"| {kept:.0f} | {kept_faults:,.0f} | {kept / back:.2f} |"
        )


def run(case: int, environment: dict[str, str]) -> tuple[float, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--case", str(case)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE
    )
    rate, faults = done.stdout.split()
    return float(rate), float(faults)


def measured(architecture: str, size: int, batch: int, steps: int = 10) -> tuple[float, float]:
    """Return images a second (the median step) and page faults a step."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    model = BaseModel(architecture, num_classes=2).fresh(0)
    apply_mask(model, get_space("fullft").mask(model, ()))
    recipe = Recipe(batch_size=batch)
    prepare(model, recipe, device, 1)
    stepper = Stepper(
        model.train(), Tactic(), nn.CrossEntropyLoss(), make_optimizer(model, recipe, None),
        micro_batch_size=batch, precision=recipe.precision, clip_gradient=None, tap=None,
    )  # fmt: skip
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 2, (batch,))
    times, faults = [], []
    for _ in range(steps + 3):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        stepper(x, y, None)
        times.append(time.perf_counter() - start)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return batch / float(np.median(times[3:])), float(np.mean(faults[3:]))


if __name__ == "__main__":
    main()
