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


register(
    Space(
        "stages_norm_conv",
        "two bits per stage of a convolutional net: its normalisation layers, the rest of it",
        bits=_stages,
    )
)
register(Space("components", "a bit per component, whatever the model", bits=_components))
register(Space("parameters", "a bit per tensor, whatever the model", bits=_parameters))
