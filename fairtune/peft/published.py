"""The seventeen methods of the published code, under its names and with its exact meaning.

Source: Dutt, Bohdal, Tsaftaris, Hospedales, "FairTune", ICLR 2024, arXiv:2310.05055, and its code.
The first five and `tune_attention` have no bits. All others have bits for each block of a vision
transformer, block by block; within a block in the order given here.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fairtune.errors import InputError
from fairtune.peft.components import BLOCK_PARTS, n_blocks
from fairtune.peft.parts import architecture_name, body_names, normalization_names
from fairtune.peft.spaces import Bit, Space, register

_NORMS = ("norm1", "norm2")
_ATTENTION_PARAMETERS = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")


def _depth(model: nn.Module, space: str) -> int:
    depth = n_blocks(model)
    if not depth:
        raise InputError(
            f"space {space!r} is for vision transformers whose blocks have "
            f"{', '.join(BLOCK_PARTS)}; {architecture_name(model)!r} is none: take "
            "'stages_norm_conv', 'components' or 'parameters'"
        )
    return depth


def _per_block(
    space: str, *parts: tuple[str, tuple[str, ...]]
) -> Callable[[nn.Module], tuple[Bit, ...]]:
    """Return the rule: for each block one bit per part, which is a label and the block's children.

    A part without children is the whole block.
    """

    def bits(model: nn.Module) -> tuple[Bit, ...]:
        depth = _depth(model, space)
        body = body_names(model)
        found = []
        for i in range(depth):
            for label, children in parts:
                prefixes = tuple(f"blocks.{i}.{child}." for child in children) or f"blocks.{i}."
                name = ".".join(filter(None, (f"blocks.{i:02d}", label)))
                found.append(Bit(name, tuple(p for p in body if p.startswith(prefixes))))
        return tuple(found)

    return bits


def _attention_parameters(model: nn.Module) -> tuple[Bit, ...]:
    depth = _depth(model, "tune_attention_params_random")
    body = set(body_names(model))
    found = []
    for i in range(depth):
        for name in _ATTENTION_PARAMETERS:
            parameter = f"blocks.{i}.attn.{name}"
            if parameter not in body:
                raise InputError(
                    "space 'tune_attention_params_random' wants attention with "
                    f"{', '.join(_ATTENTION_PARAMETERS)}; {architecture_name(model)!r} has no "
                    f"{parameter}: take 'parameters'"
                )
            found.append(Bit(f"blocks.{i:02d}.attn.{name}", (parameter,)))
    return tuple(found)


def _biases(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name in body_names(model) if name.endswith("bias"))


def _positions(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name in body_names(model) if name == "pos_embed")


def _attention(model: nn.Module) -> tuple[str, ...]:
    _depth(model, "tune_attention")
    blocks = (name for name in body_names(model) if name.startswith("blocks."))
    # The published code frees the position embedding along with the attention.
    return (*(name for name in blocks if name.split(".")[2] == "attn"), *_positions(model))


register(Space("fullft", "everything trains", always=body_names))
register(
    Space(
        "train_from_scratch",
        "everything trains, from weights initialised anew",
        always=body_names,
        from_scratch=True,
    )
)
register(Space("linear_readout", "the classifier alone (linear probe)"))
register(Space("bitfit", "every bias", always=_biases))
register(Space("tune_layernorm", "every normalisation layer", always=normalization_names))
register(Space("tune_attention", "all attention and the position embedding", always=_attention))
register(
    Space(
        "tune_attention_params_random",
        "a bit for each attention tensor of each block; the position embedding trains",
        bits=_attention_parameters,
        always=_positions,
    )
)

_BLOCK_SPACES: tuple[tuple[str, str, tuple[tuple[str, tuple[str, ...]], ...]], ...] = (
    ("tune_full_block", "a bit per block", (("", ()),)),
    ("tune_attention_blocks_random", "a bit per block: attention", (("attn", ("attn",)),)),
    ("tune_layernorm_blocks_random", "a bit per block: norms", (("norms", _NORMS),)),
    ("tune_mlp_blocks_random", "a bit per block: MLP", (("mlp", ("mlp",)),)),
    (
        "tune_attention_layernorm",
        "a bit per block: attention and norms",
        (("attn_norms", ("attn", *_NORMS)),),
    ),
    ("tune_attention_mlp", "a bit per block: attention and MLP", (("attn_mlp", ("attn", "mlp")),)),
    ("tune_layernorm_mlp", "a bit per block: norms and MLP", (("norms_mlp", (*_NORMS, "mlp")),)),
    (
        "tune_attention_layernorm_mlp",
        "a bit per block: attention, norms and MLP",
        (("attn_norms_mlp", BLOCK_PARTS),),
    ),
    (
        "auto_peft1",
        "three bits per block: norms, attention, MLP",
        (("norms", _NORMS), ("attn", ("attn",)), ("mlp", ("mlp",))),
    ),
    (
        "auto_peft2",
        "four bits per block: first norm, attention, second norm, MLP",
        tuple((part, (part,)) for part in BLOCK_PARTS),
    ),
)
for _name, _summary, _parts in _BLOCK_SPACES:
    register(Space(_name, _summary, bits=_per_block(_name, *_parts)))
