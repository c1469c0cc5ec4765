"""A fine-tune that is paused: what it leaves on disk, so that it can go on to the same bits."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

ABANDONED_DAYS = 30
"""How long the states of a search that nobody goes on with are kept."""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and containers of them; what stood there is replaced in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        with unfinished.open("wb") as file:  # by its name torch would hide that a disk is full
            torch.save(state, file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read what `save_state` wrote, into main memory; None where nothing is, or nothing whole."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:  # after a power loss, say
        logger.warning("%s cannot be read and is not used: %s", path, str(error).partition("\n")[0])
        return None
    return state


def forget_abandoned(folder: Path) -> None:
    """Remove the folders in this one into which nobody has written for `ABANDONED_DAYS`."""
    oldest = time.time() - ABANDONED_DAYS * 24 * 3600
    for one in folder.glob("*"):
        with suppress(OSError):  # somebody else's, or somebody else was faster
            if one.stat().st_mtime < oldest:
                shutil.rmtree(one, ignore_errors=True)


def random_state(device: torch.device) -> torch.Tensor:
    """Return the state of torch's generator for a device: (n,) uint8."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Put torch's generator for a device back."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
