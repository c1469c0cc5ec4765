"""Where a fine-tune runs and in which number format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from fairtune.errors import InputError
from fairtune.peft.parts import architecture_name
from fairtune.training.attention import use_plain_attention
from fairtune.training.compilation import compile_blocks
from fairtune.training.depthwise import use_fast_depthwise
from fairtune.training.memory import keep_freed
from fairtune.training.recipe import Recipe


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name; `auto` takes a GPU where there is one.

    Raises
    ------
    InputError
        If the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {name!r} cannot be used here: {reason}; try device=auto"
        ) from None
    return device


def has_native_bf16(device: torch.device) -> bool:
    """Say whether bf16 arithmetic is faster than fp32 on this device, not only emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def choose_attention(model: nn.Module, device: torch.device, precision: str) -> None:
    """Let timm's attention multiply matrices where PyTorch's fused kernel is the slower one.

    That is bf16 on a CPU: with `fairtune.training.attention` a training step was 1.7 times (ViT-Tiny,
    224 px) to 4 times (head dimension 16) as fast (torch 2.15, a processor with avx512_bf16). In fp32
    they are even.
    """
    if device.type == "cpu" and _in_bf16(device, precision):
        use_plain_attention(model)


def _in_bf16(device: torch.device, precision: str) -> bool:
    return precision == "bf16" or (precision == "auto" and has_native_bf16(device))


def prepare(model: nn.Module, recipe: Recipe, device: torch.device, steps: int) -> None:
    """Put a model on its device, in the form in which it trains fastest there, in place.

    Parameters
    ----------
    steps
        Optimiser steps in the whole fine-tune.

    Raises
    ------
    InputError
        When the recipe asks for what this model or this machine cannot do.
    """
    # Channels last is how the batches come, and what convolutions read fastest.
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    choose_attention(model, device, recipe.precision)
    if device.type == "cpu":
        keep_freed()
        if _in_bf16(device, recipe.precision):
            use_fast_depthwise(model)
    if recipe.checkpoint_activations:
        _checkpoint_activations(model)
    compile_blocks(model, recipe.compile, device, steps)


def _checkpoint_activations(model: nn.Module) -> None:
    """Let blocks compute their activations again in the backward pass instead of keeping them."""
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):
        raise InputError(
            f"train.checkpoint_activations: {architecture_name(model)!r} cannot do it; set it to "
            "false, and train.micro_batch_size lower"
        ) from None


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let PyTorch use only algorithms that repeat their bits for a while; False changes nothing.

    On a CPU all that is used here repeats them anyway.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled()
    fill, benchmark = settings.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a debugging aid, and slow
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass runs: bf16 autocast or plain fp32."""
    if _in_bf16(device, precision):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
