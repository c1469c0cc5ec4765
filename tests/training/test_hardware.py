"""Attention is computed the faster way, and comes to the same."""

from __future__ import annotations

import pytest
import timm
import torch

from fairtune.training.hardware import choose_attention


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=2, **options).eval()


def test_plain_attention_in_bf16_on_a_cpu_is_the_same_function(model: torch.nn.Module) -> None:
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        fused = model(x)
        choose_attention(model, torch.device("cpu"), "bf16")
        assert not any(block.attn.fused_attn for block in model.blocks)
        assert torch.allclose(model(x), fused, atol=1e-5)


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), ("cuda", "bf16")])
def test_fused_attention_stays_elsewhere(
    model: torch.nn.Module, device: str, precision: str
) -> None:
    before = [block.attn.fused_attn for block in model.blocks]
    choose_attention(model, torch.device(device), precision)
    assert [block.attn.fused_attn for block in model.blocks] == before
