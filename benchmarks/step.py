"""A masked training step: how near to what the machine can do, and how far below a full step.

    python -m benchmarks.step [--architecture vit_base_patch16_224 --batch 16]

A step's matrix products are recorded and repeated alone, at the same shapes and strides; the share is the
time that they take alone over the time of the step. So 100 % is a step that is nothing but matrix
products, at the rate that this machine has for exactly these. The other figure sets the time of a step
under a mask against that of full fine-tuning, beside the arithmetic (counted by PyTorch) that the mask
leaves. The steps are taken by turns, and the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from fairtune.peft import BaseModel, apply_mask, get_space, set_train_mode
from fairtune.training import Recipe, choose_device
from fairtune.training.hardware import autocast, prepare
from fairtune.training.optimization import make_optimizer
from fairtune.training.step import Stepper
from fairtune.training.strategies import Tactic

PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "linear",
    "matmul",
    "conv2d",
    "convolution",
    "convolution_backward",
)


class Products(TorchDispatchMode):
    """Records every matrix product: operator and arguments, tensors by shape, strides and type."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Any, str]] = Counter()
        self.arguments: dict[tuple[Any, str], tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            described = tree_map(_described, (args, dict(kwargs or {}, out=None)))
            described[1].pop("out")
            key = (func, repr(described))
            self.found[key] += 1
            self.arguments[key] = described
        return func(*args, **(kwargs or {}))

    def seconds(self, device: torch.device) -> float:
        """Return the time that all of them take alone."""
        total = 0.0
        for (func, text), count in self.found.items():
            args, kwargs = tree_map(
                lambda value: value.made(device) if isinstance(value, _Described) else value,
                self.arguments[func, text],
            )
            base = _without_out(func)
            total += count * best(lambda: base(*args, **kwargs), device)  # noqa: B023
        return total


class _Described:
    def __init__(self, tensor: Tensor) -> None:
        self.of = (tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def __repr__(self) -> str:
        return repr(self.of)

    def made(self, device: torch.device) -> Tensor:
        size, stride, dtype = self.of
        return torch.empty_strided(size, stride, dtype=dtype, device=device).normal_()


def _described(value: Any) -> Any:
    return _Described(value) if isinstance(value, Tensor) else value


def _without_out(func: Any) -> Any:
    return func.overloadpacket if func._overloadname == "out" else func


def best(run: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Return the median time of a call, in seconds, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


class Case:
    """A model under one mask, and its step."""

    def __init__(
        self,
        base: BaseModel,
        space: str,
        bits: tuple[int, ...],
        x: Tensor,
        y: Tensor,
        precision: str,
        compiled: str = "none",
    ) -> None:
        self.model, self.x, self.y = base.fresh(0), x, y
        mask = get_space(space).mask(self.model, bits)
        apply_mask(self.model, mask)
        recipe = Recipe(precision=precision, batch_size=len(y), compile=compiled)
        prepare(self.model, recipe, x.device, 1)
        set_train_mode(self.model)
        optimizer = make_optimizer(self.model, recipe, None)
        stepper = Stepper(
            self.model, Tactic(), nn.CrossEntropyLoss(), optimizer, micro_batch_size=len(y),
            precision=precision, clip_gradient=None, tap=None,
        )  # fmt: skip
        self.step = lambda: stepper(x, y, None)
        self.times: list[float] = []

    def flops(self) -> int:
        """Return the operations of a step, a multiplication and an addition being two."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops()

    def products(self) -> float:
        """Return the seconds that a step's matrix products take alone."""
        with Products() as products:
            self.step()
        return products.seconds(self.x.device)


class Evaluation(Case):
    """A forward pass without gradients."""

    def __init__(self, base: BaseModel, x: Tensor, y: Tensor, precision: str) -> None:
        super().__init__(base, "linear_readout", (), x, y, precision)
        self.model.eval()

        def step() -> float:
            with torch.inference_mode(), autocast(x.device, precision):
                return float(self.model(x)[0, 0])

        self.step = step


def large_product(device: torch.device, precision: str) -> float:
    """Return the operations a second of one large product, in the step's number format."""
    n = 8192 if device.type == "cuda" else 2048
    with autocast(device, precision):
        a = torch.randn(n, n, device=device) @ torch.randn(n, n, device=device)
    b = torch.randn(n, n, device=device).to(a.dtype)
    return 2 * n**3 / best(lambda: a @ b, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    torch.manual_seed(0)
    base = BaseModel(options.architecture, num_classes=2, seed=0)
    side = base.input_size[0]
    x = torch.randn(options.batch, 3, side, side, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 2, (options.batch,), device=device)
    n = len(get_space("auto_peft1").bit_names(base.model))
    half = tuple(int(bit) for bit in np.random.default_rng(0).permutation(np.arange(n) % 2))
    cases = {
        "everything": Case(base, "fullft", (), x, y, options.precision),
        "half of auto_peft1's bits": Case(base, "auto_peft1", half, x, y, options.precision),
        "the head": Case(base, "linear_readout", (), x, y, options.precision),
        "nothing (evaluation)": Evaluation(base, x, y, options.precision),
    }
    for _ in range(options.rounds + 1):
        for case in cases.values():
            case.times.append(best(case.step, device, repeats=1))
    rate = large_product(device, options.precision)
    print(
        f"{options.architecture}, batch {options.batch}, {options.rounds} rounds; "
        f"a large matrix product runs at {rate / 1e9:,.0f} GFLOP/s\n"
    )
    columns = (
        "trains",
        "GFLOP an image",
        "images/s",
        "GFLOP/s",
        "of a large product's rate",
        "matrix products alone, of the step",
        "time, of a full step",
        "arithmetic, of a full step",
        "the one over the other",
    )
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    full = None
    for name, case in cases.items():
        seconds, flops, alone = float(np.median(case.times[1:])), case.flops(), case.products()
        full = full or (seconds, flops)
        time_left, work_left = seconds / full[0], flops / full[1]
        cells = (
            name,
            f"{flops / options.batch / 1e9:.2f}",
            f"{options.batch / seconds:.1f}",
            f"{flops / seconds / 1e9:,.0f}",
            f"{flops / seconds / rate:.0%}",
            f"{alone / seconds:.0%}",
            f"{time_left:.2f}",
            f"{work_left:.2f}",
            f"{time_left / work_left:.2f}",
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
