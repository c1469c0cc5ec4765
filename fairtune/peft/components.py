"""Components: a model's parameters, cut into named pieces that are frozen or trained as one.

Two families of timm models are known, recognised by their structure and not by their names.

Vision transformers
    The model has `blocks`, each with `norm1`, `attn`, `norm2` and `mlp` (ViT, DeiT, DeiT-3, BEiT,
    EVA, ...; class token or pooled head, distilled or not). The components of block 3 are
    ``blocks.3.norm1``, ``blocks.3.attn``, ``blocks.3.norm2``, ``blocks.3.mlp``. What lies inside
    `attn`, such as normalised queries and keys or relative position tables, belongs to it. What a
    block has beyond the four (layer scale: `ls1`, `ls2`, `gamma_1`, `gamma_2`) is a fifth
    component, ``blocks.3.other``, so that the four mean the same in every model. The *rest*:
    tokens, position and patch embedding, the norms before and after the blocks, attention pooling.

Convolutional nets with stages
    The model has stages: EfficientNet and MobileNet (`blocks` of blocks), ResNet (`layer1` ...),
    RegNet (`s1` ...), ConvNeXt, ResNetV2 and others (`stages`). The components of a stage, counted
    from 0, are ``stages.2.norm``, its normalisation layers, and ``stages.2.conv``, everything
    else. What comes before the first stage (the stem) belongs to the first, what follows the last
    (`conv_head` and `bn2` of EfficientNet, ConvNeXt's `head.norm`) belongs to the last. So the
    rest is empty and a mask of ones is full fine-tuning. A component without parameters (a net
    without norms) is left out.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from fairtune.errors import InputError
from fairtune.peft.parts import (
    architecture_name,
    body_names,
    has_parameters,
    normalization_names,
)

BLOCK_PARTS = ("norm1", "attn", "norm2", "mlp")
UNSUPPORTED = (
    "model {model!r} cannot be cut into components; supported are vision transformers whose blocks "
    "have norm1, attn, norm2 and mlp (vit, deit, beit, eva) and convolutional nets with stages "
    "(efficientnet, mobilenetv3, resnet, resnetv2, regnet, convnext); "
    "the spaces 'parameters', 'fullft', 'linear_readout' and 'bitfit' take any model"
)


@dataclass(frozen=True)
class Component:
    """A named piece of a model; `parameter_names` are in the model's order."""

    name: str
    parameter_names: tuple[str, ...]


def components(model: nn.Module) -> tuple[Component, ...]:
    """Cut the parameters of a timm model into components.

    Parameters
    ----------
    model
        A model made by timm, on any device, with any classifier.

    Returns
    -------
    tuple of Component
        In the model's order, disjoint, none empty. Parameters in none of them are the head
        (always trained, see `head_names`) or the rest (see `rest_names`).

    Raises
    ------
    InputError
        The model belongs to neither family; the message names the supported ones.
    """
    for family in (block_components, stage_components):
        found = family(model)
        if found:
            return found
    raise InputError(UNSUPPORTED.format(model=architecture_name(model)))


def rest_names(model: nn.Module) -> tuple[str, ...]:
    """Return the parameters that are in no component and not in the head, in the model's order."""
    taken = {name for component in components(model) for name in component.parameter_names}
    return tuple(name for name in body_names(model) if name not in taken)


def n_blocks(model: nn.Module) -> int:
    """Return the number of transformer blocks; 0 where the model is no such transformer."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len(blocks) == 0:
        return 0
    whole = all(
        isinstance(getattr(block, part, None), nn.Module)
        for block in blocks
        for part in BLOCK_PARTS
    )
    return len(blocks) if whole else 0


def block_components(model: nn.Module) -> tuple[Component, ...]:
    """Return the components of a vision transformer; empty for any other model."""
    depth = n_blocks(model)

    def name_of(parameter: str) -> str | None:
        path = parameter.split(".")
        if not depth or path[0] != "blocks":
            return None
        part = path[2] if path[2] in BLOCK_PARTS else "other"
        return f"blocks.{path[1]}.{part}"

    order = [f"blocks.{i}.{part}" for i in range(depth) for part in (*BLOCK_PARTS, "other")]
    return _group(body_names(model), name_of, order)


def stage_components(model: nn.Module) -> tuple[Component, ...]:
    """Return the components of a convolutional net with stages; empty for any other model."""
    stages = _stage_names(model)
    if not stages:
        return ()
    body = body_names(model)
    norms = normalization_names(model)
    # A parameter outside the stages joins the stage that follows it in the model's order, or the
    # last: `ends[k]` is the position of the last parameter of stage k.
    ends = [
        max((i for i, name in enumerate(body) if name.startswith(f"{stage}.")), default=-1)
        for stage in stages
    ]
    position = {name: i for i, name in enumerate(body)}

    def name_of(parameter: str) -> str:
        stage = min(bisect.bisect_left(ends, position[parameter]), len(ends) - 1)
        return f"stages.{stage}.{'norm' if parameter in norms else 'conv'}"

    order = [f"stages.{i}.{part}" for i in range(len(stages)) for part in ("norm", "conv")]
    return _group(body, name_of, order)


def _stage_names(model: nn.Module) -> list[str]:
    """Return the module names of the stages, first to last."""
    stages = getattr(model, "stages", None)
    if isinstance(stages, nn.Sequential | nn.ModuleList):
        names = [f"stages.{name}" for name, _ in stages.named_children()]
    elif (blocks := getattr(model, "blocks", None)) is not None:
        nested = isinstance(blocks, nn.Sequential) and all(
            isinstance(stage, nn.Sequential) for stage in blocks
        )
        names = [f"blocks.{name}" for name, _ in blocks.named_children()] if nested else []
    else:
        children = {name for name, _ in model.named_children()}
        names = []
        for prefix in ("layer", "s"):
            names = names or [f"{prefix}{i}" for i in range(1, 10) if f"{prefix}{i}" in children]
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
    filled = [name for name in names if has_parameters(model.get_submodule(name))]
    return filled if convolutional and len(filled) > 1 else []


def _group(
    parameters: Iterable[str], name_of: Callable[[str], str | None], order: Iterable[str]
) -> tuple[Component, ...]:
    groups: dict[str, list[str]] = {name: [] for name in order}
    for parameter in parameters:
        name = name_of(parameter)
        if name is not None:
            groups[name].append(parameter)
    return tuple(Component(name, tuple(names)) for name, names in groups.items() if names)
