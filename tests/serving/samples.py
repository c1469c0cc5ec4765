"""A tiny model that answers differently for different images, and images to ask it about."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import torch
from PIL import Image
from torch import nn

from fairtune.peft.models import build_model
from fairtune.serving.spec import ServingSpec

ARCHITECTURE = "vit_tiny_patch16_224"
OPTIONS = {"img_size": 32, "patch_size": 8, "depth": 2}


def tiny_spec(**changes: object) -> ServingSpec:
    values: dict = {
        "architecture": ARCHITECTURE,
        "options": OPTIONS,
        "image_size": 32,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "classes": ("benign", "malignant"),
        "threshold": 0.35,
        "name": "tiny",
    }
    return ServingSpec(**{**values, **changes})


def tiny_model(classes: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(ARCHITECTURE, num_classes=classes, weights="none", options=dict(OPTIONS))
    for parameter in model.parameters():  # timm's fresh head is nearly zero: all answers alike
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def image_bytes(seed: int = 0, size: tuple[int, int] = (48, 40), kind: str = "JPEG") -> bytes:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def png_bomb(side: int = 40_000) -> bytes:
    """A few kilobytes that promise side by side grey pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
