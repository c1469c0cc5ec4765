"""The space `lora`: low-rank adapters on a vision transformer, with a rank per place.

Three values per block, each a rank of 0, 4, 8 or 16: for the adapter on the attention's `qkv`, on its
`proj`, and on the two layers of the MLP. The base weights stay frozen; the adapters and the
classifier train. The adapters are those of the library `peft`, which is an extra of fairtune.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
arXiv:2106.09685: W x + (alpha / r) B A x, here with alpha = r, so that a rank is no learning rate.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch
from torch import nn

from fairtune.errors import InputError
from fairtune.peft.components import BLOCK_PARTS, n_blocks
from fairtune.peft.mask import Mask
from fairtune.peft.parts import architecture_name
from fairtune.peft.spaces import Bit, Space, padded, parameter_sizes, register

RANKS = (0, 4, 8, 16)
PLACES: dict[str, tuple[str, ...]] = {
    "attn.qkv": ("attn.qkv",),
    "attn.proj": ("attn.proj",),
    "mlp": ("mlp.fc1", "mlp.fc2"),
}
NO_LIBRARY = "space 'lora' needs the library peft: pip install peft"
_ADAPTER = "default"
_HALVES = tuple(f"lora_{half}.{_ADAPTER}.weight" for half in "AB")


def _layers(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return for every place (``blocks.3.mlp``) the names of its linear layers."""
    if importlib.util.find_spec("peft") is None:
        raise InputError(NO_LIBRARY)
    name = architecture_name(model)
    depth = n_blocks(model)
    if not depth:
        raise InputError(
            f"space 'lora' is for vision transformers whose blocks have {', '.join(BLOCK_PARTS)}; "
            f"{name!r} is none"
        )
    found = {
        f"blocks.{i}.{place}": tuple(f"blocks.{i}.{layer}" for layer in layers)
        for i in range(depth)
        for place, layers in PLACES.items()
    }
    modules = dict(model.named_modules())
    for layer in (layer for layers in found.values() for layer in layers):
        if not isinstance(modules.get(layer), nn.Linear):
            raise InputError(f"space 'lora' wants a linear layer {layer}; {name!r} has none there")
    return found


def _bits(model: nn.Module) -> tuple[Bit, ...]:
    return tuple(
        Bit(padded(place), tuple(f"{layer}.{half}" for layer in layers for half in _HALVES))
        for place, layers in _layers(model).items()
    )


def _sizes(model: nn.Module, chosen: Mapping[Bit, int]) -> dict[str, int]:
    sizes = parameter_sizes(model, chosen)
    for bit, rank in chosen.items():
        for name in bit.parameters if rank else ():
            layer, half = name.split(".lora_")
            linear = model.get_submodule(layer)
            assert isinstance(linear, nn.Linear)
            width = linear.in_features if half.startswith("A") else linear.out_features
            sizes[name] = rank * width
    return sizes


def inject_adapters(model: nn.Module, mask: Mask, seed: int) -> None:
    """Put the adapters of a mask into a model, in place: A drawn from `seed`, B zero.

    Raises
    ------
    InputError
        The model has adapters already, or does not fit the mask.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if any(name.endswith(_HALVES) for name, _ in model.named_parameters()):
        raise InputError("the model has adapters already; take a fresh copy of the base model")
    layers = _layers(model)
    if mask.names != tuple(padded(place) for place in layers):
        raise InputError(
            f"the mask has {len(mask.names)} places for adapters, the model has {len(layers)}; "
            "was the model built with other options?"
        )
    places = zip(layers.values(), mask.bits, strict=True)
    ranks = {layer: rank for names, rank in places if rank for layer in names}
    if not ranks:
        return
    # Full names as patterns: `rank_pattern` matches the end of a name, as `target_modules` does.
    config = LoraConfig(
        target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)


def merge_adapters(model: nn.Module) -> nn.Module:
    """Fold the adapters into their layers, in place: a plain timm model that computes the same.

    A model without adapters is returned as it is. Call it before a model is exported to be served.
    """
    if not any(name.endswith(_HALVES) for name, _ in model.named_parameters()):
        return model
    from peft.tuners.lora import LoraLayer

    adapted = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in adapted:
        layer.merge()  # type: ignore[operator]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model


register(
    Space(
        "lora",
        "a rank of 0, 4, 8 or 16 per block for adapters on qkv, on proj and on the MLP",
        bits=_bits,
        levels=RANKS,
        sizes=_sizes,
        prepare=inject_adapters,
    )
)
