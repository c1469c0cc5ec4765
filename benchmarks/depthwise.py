"""A training step of a convolutional net in bf16 on a CPU: PyTorch's depthwise gradients, and fairtune's.

    python -m benchmarks.depthwise [--architecture tf_efficientnet_lite0 --size 96 --batch 64]

One core, full fine-tuning, the same weights and images; by turns, and the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch
from torch import Tensor, nn

from fairtune.peft import build_model
from fairtune.training.depthwise import use_fast_depthwise


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain = build_model(options.architecture, num_classes=2, seed=0)
    plain.to(memory_format=torch.channels_last).train()
    fast = copy.deepcopy(plain)
    use_fast_depthwise(fast)
    kinds = {"fp32": (plain, False), "bf16": (plain, True), "bf16, fairtune": (fast, True)}
    x = torch.randn(options.batch, 3, options.size, options.size)
    x = x.contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds + 1):
        for kind, (model, bf16) in kinds.items():
            times[kind].append(seconds(model, x, bf16=bf16))
    print(f"{options.architecture}, {options.size} px, batch {options.batch}, one core\n")
    print("| gradients | images/s | of bf16 |")
    print("| --- | --- | --- |")
    found = {kind: options.batch / np.median(taken[1:]) for kind, taken in times.items()}
    for kind, rate in found.items():
        print(f"| {kind} | {rate:.0f} | {rate / found['bf16']:.1f} |")


def seconds(model: nn.Module, x: Tensor, *, bf16: bool) -> float:
    """Time the forward and the backward pass."""
    start = time.perf_counter()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(x).float().square().mean()
    loss.backward()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
