"""Attention for bf16 on a CPU: plain matrix products, with no copy more than they need.

PyTorch's fused kernel is the slower one there: its backward pass took 80 % of a training step. timm's
own unfused path is twice as fast, but its views of queries, keys and values are copied into shape one by
one, forwards and backwards. Here they are put into shape together, once each way, and the softmax is
written over the scores.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn


class _Attend(torch.autograd.Function):
    """softmax(q kᵀ · scale) v, for all heads, from the output of the `qkv` layer."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, scale: float) -> Tensor:
        batch, tokens, width = qkv.shape  # (B, N, 3 · H · d)
        dim = width // (3 * heads)
        parts = qkv.view(batch, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4).contiguous()
        q, k, v = parts.view(3, batch * heads, tokens, dim)  # (B · H, N, d) each
        scores = _product(q, k.transpose(1, 2), scale)  # (B · H, N, N)
        weights = torch.softmax(scores, -1, out=scores)
        out = torch.bmm(weights, v)
        ctx.save_for_backward(parts, weights)
        ctx.scale = scale
        return out.view(batch, heads, tokens, dim).transpose(1, 2).reshape(batch, tokens, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        parts, weights = ctx.saved_tensors
        _, batch, heads, tokens, dim = parts.shape
        q, k, v = parts.view(3, batch * heads, tokens, dim)
        g = gradient.view(batch, tokens, heads, dim).transpose(1, 2)
        g = g.reshape(batch * heads, tokens, dim)
        found = torch.empty_like(parts)
        dq, dk, dv = found.view(3, batch * heads, tokens, dim)
        torch.bmm(weights.transpose(1, 2), g, out=dv)
        scores = torch._softmax_backward_data(
            torch.bmm(g, v.transpose(1, 2)), weights, -1, weights.dtype
        )
        dq.copy_(_product(scores, k, ctx.scale))
        dk.copy_(_product(scores.transpose(1, 2), q, ctx.scale))
        return found.permute(1, 3, 0, 2, 4).reshape(batch, tokens, -1), None, None


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return scale · a b; the factor costs nothing within the product."""
    empty = a.new_empty(())
    return torch.baddbmm(empty, a, b, beta=0, alpha=scale)


class PlainAttention(Attention):
    """timm's attention, computed as above; no parameter and no name differs."""

    def forward(  # noqa: D102  (as timm's)
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        if attn_mask is not None or is_causal or (self.training and self.attn_drop.p):
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        out: Tensor = _Attend.apply(self.qkv(x), self.num_heads, self.scale)
        out = self.proj_drop(self.proj(out))
        return out


def use_plain_attention(model: nn.Module) -> None:
    """Let every attention of timm's common kind compute as above, others unfused, in place."""
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = False  # type: ignore[assignment]
        if type(module) is Attention and _is_common(module):
            module.__class__ = PlainAttention


def _is_common(attention: Attention) -> bool:
    extras = (attention.q_norm, attention.k_norm, getattr(attention, "norm", nn.Identity()))
    return (
        getattr(attention, "gate", None) is None
        and all(isinstance(extra, nn.Identity) for extra in extras)
        and type(attention.qkv) is nn.Linear
    )
