"""Depthwise convolutions for bf16 on a CPU: the backward pass from kernels that are fast there.

Three of oneDNN's bf16 kernels fall back to plain loops: the gradient of the input where the stride is 2
(50 times as slow as the forward pass), that of a weight larger than 3 x 3 (30 times) and that of a weight
taller than the map it goes over (60 times). The first two took 84 % of a training step of EfficientNet-Lite0
at 96 pixels, the third a tenth of what was left at 64. All can be had from kernels that are fast:

- the gradient of the input is a convolution with stride 1 of the output's gradient, spread out with
  zeros between, by the flipped weight;
- the gradient of a 5 x 5 weight is put together from those of 3 x 3 weights over shifted inputs;
- the gradient of a 3 x 3 weight over a map of 2 x 2 is that over the map with its padding around it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

Pair = tuple[int, int]


class _Depthwise(torch.autograd.Function):
    """`functional.conv2d` of one channel at a time."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_input, of_weight, of_bias = ctx.needs_input_grad[:3]
        return (
            _input_gradient(gradient, x, weight, ctx.stride, ctx.padding) if of_input else None,
            _weight_gradient(gradient, x, weight, ctx.stride, ctx.padding) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
            None,
            None,
        )


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, pad: Pair) -> Tensor:
    kernel = weight.shape[2:]
    if stride != (1, 1):
        height, width = (
            n + 2 * p - k + 1 for n, p, k in zip(x.shape[2:], pad, kernel, strict=True)
        )
        shape = (*x.shape[:2], height, width)
        spread = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last).zero_()
        spread[:, :, :: stride[0], :: stride[1]] = gradient
        gradient = spread
    around = tuple(k - 1 - p for k, p in zip(kernel, pad, strict=True))
    return functional.conv2d(gradient, weight.flip(2, 3), None, 1, around, 1, len(weight))


def _weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, pad: Pair
) -> Tensor:
    height, width = ((n - 1) * s + 3 for n, s in zip(gradient.shape[2:], stride, strict=True))
    padded = functional.pad(x, (pad[1], pad[1], pad[0], pad[0]))
    found = torch.empty_like(weight)
    for top in _starts(weight.shape[2]):
        for left in _starts(weight.shape[3]):
            seen = padded[:, :, top : top + height, left : left + width]
            part = weight[:, :, top : top + 3, left : left + 3]
            found[:, :, top : top + 3, left : left + 3] = conv2d_weight(  # type: ignore[no-untyped-call]
                seen.contiguous(memory_format=torch.channels_last),
                part.shape, gradient, stride, 0, 1, len(weight),
            )  # fmt: skip
    return found


def _starts(size: int) -> list[int]:
    """Return where windows of three begin that cover `size` places: 0 and 2 of 5."""
    return [*range(0, size - 3, 3), size - 3]


def _slow_otherwise(conv: nn.Conv2d, rows: int) -> bool:
    """Say whether PyTorch's own backward pass may follow, and would be slow, for a map of `rows`."""
    if not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return False
    return max(conv.kernel_size) > 3 or max(conv.stride) > 1 or rows < 3


def _convolve(conv: nn.Conv2d, x: Tensor, padding: Pair) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu")
    x = x.to(dtype, memory_format=torch.channels_last)
    bias = None if conv.bias is None else conv.bias.to(dtype)
    out: Tensor = _Depthwise.apply(x, conv.weight.to(dtype), bias, conv.stride, padding)
    return out


class DepthwiseConv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, computed as above; no parameter and no name differs."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  (as torch's)
        if not _slow_otherwise(self, x.shape[2]):
            return super().forward(x)
        return _convolve(self, x, self.padding)  # type: ignore[arg-type]


class DepthwiseConv2dSame(Conv2dSame):
    """timm's convolution with TensorFlow's padding, computed as above."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  (as timm's)
        if not _slow_otherwise(self, x.shape[2] + self.kernel_size[0] - 1):  # it pads itself
            return super().forward(x)  # type: ignore[no-untyped-call,no-any-return]
        padded = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        return _convolve(self, padded, (0, 0))


FAST: dict[type, type] = {nn.Conv2d: DepthwiseConv2d, Conv2dSame: DepthwiseConv2dSame}


def use_fast_depthwise(model: nn.Module) -> None:
    """Let every depthwise convolution that has a slow kernel compute as above, in place."""
    for module in model.modules():
        if type(module) in FAST and _fits(cast(nn.Conv2d, module)):
            module.__class__ = FAST[type(module)]


def _fits(conv: nn.Conv2d) -> bool:
    return (
        1 < conv.groups == conv.in_channels == conv.out_channels
        and min(conv.kernel_size) >= 3
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and all(p < k for p, k in zip(conv.padding, conv.kernel_size, strict=True))
    )
