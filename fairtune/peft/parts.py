"""What the parts of a timm model are: its name, its head, its normalisation layers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

# By type where torch has one; timm's own layers (RmsNorm, GlobalResponseNorm, EvoNorm2dS0, ...)
# share no base class, so a layer of its own parameters whose class is named so counts as well.
_TORCH_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def architecture_name(model: nn.Module) -> str:
    """Return timm's name of the model's architecture, else the name of its class."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)


def has_parameters(module: nn.Module) -> bool:
    """Say whether a module or anything in it has parameters."""
    return next(module.parameters(), None) is not None


def head_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the classifiers by their names in the model; a distilled model has two.

    A model without a classifier (``num_classes=0``) gives an empty dictionary.
    """
    getter = getattr(model, "get_classifier", None)
    found = getter() if callable(getter) else ()
    wanted = found if isinstance(found, tuple | list) else (found,)
    names = {id(module): name for name, module in model.named_modules()}
    return {
        names[id(module)]: module
        for module in wanted
        if isinstance(module, nn.Module) and id(module) in names and has_parameters(module)
    }


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the classifier's parameters, in the model's order; they always train."""
    prefixes = tuple(f"{name}." for name in head_modules(model))
    return tuple(name for name, _ in model.named_parameters() if name.startswith(prefixes or "\0"))


def body_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of all parameters but the classifier's, in the model's order."""
    head = set(head_names(model))
    return tuple(name for name, _ in model.named_parameters() if name not in head)


def is_normalization(module: nn.Module) -> bool:
    """Say whether a module is a normalisation layer (batch, layer, group, RMS, response, ...)."""
    if isinstance(module, _TORCH_NORMS):
        return True
    own = next(module.parameters(recurse=False), None)
    return own is not None and "norm" in type(module).__name__.lower()


def normalization_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that normalisation layers own, the classifier's aside."""
    head = set(head_names(model))
    names = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if is_normalization(module)
        for name, _ in module.named_parameters(recurse=False)
    }
    return frozenset(names - head)


def running_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield the layers that keep running statistics: name, module, whether it trains.

    Such a layer trains when any of its own parameters does. One without parameters has nothing of
    its own to ask, so it trains only where the whole model does.
    """
    whole = all(parameter.requires_grad for parameter in model.parameters())
    for prefix, module in model.named_modules():
        running = [name for name, _ in module.named_buffers(recurse=False)]
        if not any(name.startswith("running_") for name in running):
            continue
        own = list(module.parameters(recurse=False))
        yield prefix, module, any(p.requires_grad for p in own) if own else whole
