"""Putting a mask into effect: what gets gradients, and which layers may keep statistics."""

from __future__ import annotations

from torch import nn

from fairtune.errors import InputError
from fairtune.peft.mask import Mask
from fairtune.peft.parts import architecture_name, running_layers
from fairtune.peft.spaces import SPACES, get_space


def apply_mask(model: nn.Module, mask: Mask, *, seed: int = 0) -> list[str]:
    """Set `requires_grad` of every parameter as the mask says.

    Parameters
    ----------
    model
        Changed in place. Follow with `set_train_mode` at the start of every epoch.
    mask
        A mask made for this architecture.
    seed
        Seeds what a space puts into the model (adapters); no other space draws.

    Returns
    -------
    list of str
        The sorted names of the parameters that train.

    Raises
    ------
    InputError
        The mask is for another architecture or names parameters that the model lacks; the model
        is then unchanged.
    """
    name = architecture_name(model)
    if mask.architecture != name:
        raise InputError(
            f"the mask is for {mask.architecture!r}, the model is {name!r}; "
            f"make one with get_space({mask.space!r}).mask(model, bits)"
        )
    known = mask.space.partition(":")[0] in SPACES
    prepare = get_space(mask.space).prepare if known else None
    if prepare is not None:
        prepare(model, mask, seed)
    wanted = set(mask.parameters)
    missing = sorted(wanted - {key for key, _ in model.named_parameters()})
    if missing:
        raise InputError(
            f"the mask trains {missing[0]!r} and {len(missing) - 1} more that this {name!r} lacks; "
            "was the model built with other options?"
        )
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in wanted)
    return list(mask.parameters)


def set_train_mode(model: nn.Module) -> None:
    """Put the model in training mode, but keep frozen running statistics still.

    A normalisation layer with running statistics updates them in every forward pass in training
    mode, gradients or not: a frozen one would drift away from the base weights. So those whose own
    parameters are all frozen are put in evaluation mode. Dropout and stochastic depth stay on.
    """
    model.train()
    for _, module, trains in running_layers(model):
        module.train(trains)


def trained_share(model: nn.Module) -> tuple[int, int]:
    """Return the number of values that train, and of all values in parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
