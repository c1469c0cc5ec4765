"""Spaces beyond the published ones: for convolutional nets, and for any model."""

from __future__ import annotations

from torch import nn

from fairtune.errors import InputError
from fairtune.peft.components import components, stage_components
from fairtune.peft.parts import architecture_name, body_names
from fairtune.peft.spaces import Bit, Space, padded, register


def _stages(model: nn.Module) -> tuple[Bit, ...]:
    found = stage_components(model)
    if not found:
        raise InputError(
            "space 'stages_norm_conv' is for convolutional nets with stages; "
            f"{architecture_name(model)!r} is none: take 'auto_peft1' for a vision transformer, "
            "else 'parameters'"
        )
    return tuple(Bit(padded(part.name), part.parameter_names) for part in found)


def _components(model: nn.Module) -> tuple[Bit, ...]:
    return tuple(Bit(padded(part.name), part.parameter_names) for part in components(model))


def _parameters(model: nn.Module) -> tuple[Bit, ...]:
    return tuple(Bit(padded(name), (name,)) for name in body_names(model))


def _last_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return what lies behind the first two thirds of the blocks or stages."""
    numbers = {part.name: int(part.name.split(".")[1]) for part in components(model)}
    first = max(numbers.values()) + 1 - -(-(max(numbers.values()) + 1) // 3)
    chosen = [p for p in components(model) if numbers[p.name] >= first]
    names = {name for part in chosen for name in part.parameter_names}
    body = body_names(model)
    last = max(i for i, name in enumerate(body) if name in names)
    return (*names, *body[last + 1 :])


register(
    Space(
        "last_blocks",
        "the last third of the blocks or stages and what follows them",
        always=_last_blocks,
    )
)
register(
    Space(
        "stages_norm_conv",
        "two bits per stage of a convolutional net: its normalisation layers, the rest of it",
        bits=_stages,
    )
)
register(Space("components", "a bit per component, whatever the model", bits=_components))
register(Space("parameters", "a bit per tensor, whatever the model", bits=_parameters))
