"""Memory: where the images are while a model trains, what a fine-tune takes and keeps, when it runs out."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairtune.data.batches import Images

SHARE = 0.25
"""Of a GPU's free memory: what the images may take; the rest is the model's."""

_kept: dict[tuple[int, tuple[int, ...], str], tuple[NDArray[np.uint8], Tensor]] = {}
"""By address, shape and device: the images on the GPU, and the array they came from. As long as that
is held, no other store can come to lie at its address."""


def on_device(images: Images, device: torch.device) -> Images:
    """Return the images on a GPU where they fit, once for all trials of a process.

    Parameters
    ----------
    images
        (N, H, W, 3) uint8: the whole store.

    Returns
    -------
    Images
        On the GPU if they take no more than `SHARE` of its free memory, else as they came; then
        each batch goes there while the GPU works on the one before it (`fairtune.data.prefetch`).
    """
    if device.type != "cuda" or isinstance(images, Tensor):
        return images
    key = (images.__array_interface__["data"][0], images.shape, str(device))
    if key not in _kept:
        if not fits(images, torch.cuda.mem_get_info(device)[0]):
            return images
        _kept.clear()  # one store at a time
        _kept[key] = images, torch.from_numpy(np.array(images)).to(device)
    return _kept[key][1]


def fits(images: NDArray[np.uint8], free: int) -> bool:
    """Say whether the images may stay on a GPU with so many bytes free."""
    return images.nbytes <= SHARE * free


_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, its driver, MPS
    "alloc_failed",  # the status of cuBLAS, cuDNN and their like
    "not enough memory",
    "can't allocate memory",
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether a pass failed for want of memory, so that fewer images at once may help."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(part in text for part in _OUT_OF_MEMORY)


_TRIM_THRESHOLD, _MMAP_MAX, _MOST = -1, -4, 2**31 - 1  # malloc.h; the values are C ints
_ENVIRONMENT = ("MALLOC_MMAP_", "MALLOC_TRIM_", "GLIBC_TUNABLES")


@cache
def keep_freed() -> bool:
    """Let the C library keep the memory that a training step frees, for the next one; say whether it does.

    By itself glibc gives every large block back to the system at once and gets it anew, page by page
    and zeroed: 60,000 page faults a step of EfficientNet-Lite0 with 64 images of 96 px. `release` still
    gives it back. Where the environment says something of this (`_ENVIRONMENT`), that stands; other C
    libraries are left alone.
    """
    if any(name.startswith(_ENVIRONMENT) for name in os.environ):
        return False
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _MOST))


def _of_glibc(name: str) -> Callable[..., int] | None:
    try:
        return cast(Callable[..., int], getattr(ctypes.CDLL(None), name))
    except (AttributeError, OSError, TypeError):  # another C library
        return None


def release(device: torch.device) -> None:
    """Give back what is held of a device's memory and not used."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Begin to watch for the greatest use of memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and _RESET.exists():
        release(device)  # else what another fine-tune left counts
        _RESET.write_text("5")  # see proc(5): resets VmHWM


def peak(device: torch.device) -> int | None:
    """Return the greatest use of memory since `reset_peak`, in bytes; None where it is not known.

    On a GPU that of tensors, on a CPU (Linux) that of the whole process.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "cpu" and _RESET.exists():
        found = _STATUS.read_text().split("VmHWM:")[1].split()[0]
        return int(found) * 1024
    return None
