"""Where a fine-tune runs and in which number format."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from fairtune.errors import InputError


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

    That is bf16 on a CPU: the fused kernel's backward pass took 80 % of a step there. With plain
    products a training step was 1.7 times (ViT-Tiny, 224 px) to 4 times (head dimension 16) as
    fast, evaluation 1.2 to 1.4 times (torch 2.15, a processor with avx512_bf16). In fp32 they are even.
    """
    bf16 = precision == "bf16" or (precision == "auto" and has_native_bf16(device))
    if device.type == "cpu" and bf16:
        for module in model.modules():
            if isinstance(getattr(module, "fused_attn", None), bool):
                module.fused_attn = False  # type: ignore[assignment]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass runs: bf16 autocast or plain fp32."""
    if precision == "bf16" or (precision == "auto" and has_native_bf16(device)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
