"""Class probabilities of a whole split."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fairtune.data.batches import eval_batches
from fairtune.training.hardware import autocast, choose_attention
from fairtune.training.split import ImageSpec, Split


@torch.inference_mode()
def predict(
    model: nn.Module,
    split: Split,
    spec: ImageSpec,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    precision: str = "auto",
) -> NDArray[np.float64]:
    """Predict every image of a split, in order.

    Returns
    -------
    (n, C) float64
        Class probabilities; each row sums to 1. Metrics are computed from these rows as a whole,
        never averaged over batches.
    """
    device = device or next(model.parameters()).device
    choose_attention(model, device, precision)
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    parts = []
    batches = eval_batches(
        split.images,
        split.rows,
        batch_size=batch_size,
        size=spec.size,
        mean=spec.mean,
        std=spec.std,
        device=device,
    )
    for x in batches:  # (B, 3, size, size)
        with autocast(device, precision):
            logits = model(x)  # (B, C)
        parts.append(logits.double().softmax(dim=1).cpu())
    for module in was_training:  # mode by mode: a frozen norm inside a training model stays in eval
        module.training = True
    return torch.cat(parts).numpy()
