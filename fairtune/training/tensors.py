"""What a fine-tune changes in a model: to look at as one, to swap, to leave still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fairtune.peft import delta_state, set_train_mode
from fairtune.peft.parts import running_layers


class TrainedTensors(nn.Module):
    """A view of what trains in a model: the parameters, and the running statistics beside them.

    It shares the model's own tensors, so tools that average whole models (torch's `AveragedModel`,
    timm's `ModelEmaV3`) copy, given this, no more than what can change.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        names = set(delta_state(model))
        self.names: dict[str, str] = {}
        found = (*model.named_parameters(), *model.named_buffers())
        for name, tensor in found:
            if name not in names:
                continue
            key = f"t{len(self.names)}"
            self.names[key] = name
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(key, tensor)
            else:
                self.register_buffer(key, tensor)

    def named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the values of such a module's ``state_dict()``, by the model's names."""
        return {name: values[key].detach().clone() for key, name in self.names.items()}


@torch.no_grad()
def put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into a model's tensors, by name."""
    state = model.state_dict()
    for name, value in values.items():
        state[name].copy_(value)


@contextmanager
def holding(model: nn.Module, values: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Let a model hold other values for a while; None changes nothing."""
    if values is None:
        yield
        return
    state = model.state_dict()
    before = {name: state[name].clone() for name in values}
    put(model, values)
    try:
        yield
    finally:
        put(model, before)


def _trained_statistics(model: nn.Module) -> list[nn.Module]:
    return [module for _, module, trains in running_layers(model) if trains]


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Let forward passes leave the running statistics of normalisation layers as they are."""
    buffers = [b for m in _trained_statistics(model) for b in m.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


@torch.no_grad()
def estimate_statistics(
    model: nn.Module, batches: Callable[[], Iterator[Tensor]]
) -> dict[str, Tensor]:
    """Return running statistics that fit the model's weights: those of one pass over the data.

    Averaged weights need them (Izmailov et al. 2018, section 3.3). As torch's ``update_bn``, but for
    the layers that train only, and the model is left as it was; empty, and without a pass, where
    there is no such layer.

    Parameters
    ----------
    batches
        Gives training images (B, 3, size, size).
    """
    layers = _trained_statistics(model)
    if not layers:
        return {}
    set_train_mode(model)
    momenta = [layer.momentum for layer in layers]
    with still_statistics(model), torch.random.fork_rng(_cuda(model)):
        for layer in layers:
            layer.reset_running_stats()  # type: ignore[operator]
            layer.momentum = None  # type: ignore[assignment]  # None: the mean of all batches
        for x in batches():
            model(x)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        names = {id(buffer): name for name, buffer in model.named_buffers()}
        return {names[id(b)]: b.clone() for m in layers for b in m.buffers(recurse=False)}


def _cuda(model: nn.Module) -> list[torch.device]:
    device = next(model.parameters()).device
    return [device] if device.type == "cuda" else []
