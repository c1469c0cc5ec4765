"""Small models for all tests of this folder; built once, never changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import timm
import torch
from torch import nn


@cache
def _skeleton(architecture: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(architecture, num_classes=2, **options)


@pytest.fixture(scope="session")
def skeleton() -> Callable[..., nn.Module]:
    """Build a model of two classes without memory for its weights: for questions about names."""
    return _skeleton


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
