"""Compiling a transformer block by block, so that the masks of a search share what is compiled.

A compiled model would be compiled anew for every mask. A block has few ways to train: its norms, its
attention and its MLP do or do not, and its input needs a gradient or not; that is 16 variants at most.
PyTorch keys what it compiles by exactly that, and by the code, which all blocks share; so after a few
trials nothing is left to compile.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from fairtune.errors import InputError
from fairtune.peft.components import n_blocks
from fairtune.peft.parts import architecture_name

LONG = 1000
"""Optimiser steps of a trial from which `auto` compiles on a GPU."""

VARIANTS = 64
"""How often the block's code may be compiled: 16 variants, in training and evaluation, whole batches
and the last."""


def compile_blocks(
    model: nn.Module,
    setting: str,
    device: torch.device,
    steps: int,
    *,
    backend: str = "inductor",
) -> bool:
    """Let a transformer's blocks compile themselves when they first run, in place.

    Parameters
    ----------
    setting
        ``none``; ``block``; ``auto`` = on a GPU, for at least `LONG` steps, where a compiler is there.
    steps
        Optimiser steps in the whole fine-tune.
    backend
        torch.compile's.

    Returns
    -------
    bool
        Whether they will.

    Raises
    ------
    InputError
        When ``block`` is asked for and cannot be: the model has no blocks, or no compiler is there.
    """
    depth = n_blocks(model)
    if setting == "none" or (setting == "auto" and (device.type != "cuda" or steps < LONG)):
        return False
    reason = None
    if not depth:
        reason = f"{architecture_name(model)!r} has no transformer blocks"
    elif backend == "inductor" and not _has_compiler(device):
        reason = "no compiler is there (Triton for a GPU, else a C++ compiler)"
    if reason is not None:
        if setting == "auto":
            return False
        raise InputError(f"train.compile=block is not possible: {reason}; set train.compile=none")
    limit = "recompile_limit"
    if not hasattr(torch._dynamo.config, limit):  # its name before torch 2.6
        limit = "cache_size_limit"
    setattr(torch._dynamo.config, limit, max(VARIANTS, getattr(torch._dynamo.config, limit)))
    for block in model.get_submodule("blocks").children():
        block.compile(backend=backend)
    return True


def _has_compiler(device: torch.device) -> bool:
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return bool(has_triton())
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))
