"""A search's worth of masks: compiled blocks against eager ones, in total time, on a GPU.

    python -m benchmarks.compiled [--trials 20 --steps 200]

Each way runs in a process of its own and pays for all that it compiles. A trial here is its training
steps on random images; each has another random mask, as in a search.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import numpy as np
import torch

from benchmarks.step import Case
from fairtune.peft import BaseModel, get_space
from fairtune.training import choose_device

WAYS = ("none", "block")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="vit_base_patch16_224")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("not measured: no GPU")
        return
    if options.child:
        print(json.dumps(trials(options)))
        return
    totals = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.compiled", *sys.argv[1:], "--child", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        totals[way] = json.loads(done.stdout.splitlines()[-1])
    print(f"{options.architecture}, {options.trials} trials of {options.steps} steps\n")
    print("| blocks | seconds in all | the first trial | the last |")
    print("| --- | --- | --- | --- |")
    for way, name in zip(WAYS, ("eager", "compiled"), strict=True):
        seconds = totals[way]
        print(f"| {name} | {sum(seconds):.0f} | {seconds[0]:.1f} | {seconds[-1]:.1f} |")
    print(f"\ncompiled over eager: {sum(totals['block']) / sum(totals['none']):.2f}")


def trials(options: argparse.Namespace) -> list[float]:
    """Return the seconds of each trial."""
    device = choose_device(options.device)
    base = BaseModel(options.architecture, num_classes=2, seed=0)
    side = base.input_size[0]
    x = torch.randn(options.batch, 3, side, side, device=device)
    y = torch.randint(0, 2, (options.batch,), device=device)
    n = len(get_space("auto_peft1").bit_names(base.model))
    rng = np.random.default_rng(0)
    found = []
    for _ in range(options.trials):
        started = time.perf_counter()
        bits = tuple(int(bit) for bit in rng.integers(0, 2, n))
        case = Case(base, "auto_peft1", bits, x, y, "auto", compiled=options.child)
        for _ in range(options.steps):
            loss = case.step()
        float(loss)
        found.append(time.perf_counter() - started)
    return found


if __name__ == "__main__":
    main()
