"""Delta checkpoints: the trained tensors alone; base weights + delta = the model, bit for bit.

A delta is a safetensors file. Beside the caller's metadata it carries two hashes: of its own
tensors, so that a damaged file is noticed, and of all tensors that it leaves out, so that it cannot
be laid over other base weights than its own.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fairtune.errors import InputError
from fairtune.peft.parts import architecture_name, head_names, running_layers
from fairtune.peft.weights import read_weights

_FORMAT = "fairtune.delta"
_VERSION = "1"
_ARCHITECTURE = "fairtune.architecture"
_DELTA_HASH = "fairtune.delta_hash"
_REST_HASH = "fairtune.rest_hash"


def delta_state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all that training changed: on the CPU, contiguous, by name.

    These are the parameters with gradients, and the running statistics of the normalisation layers
    that train (see `set_train_mode`).
    """
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for prefix, module, trains in running_layers(model):
        if trains:
            own = (name for name, _ in module.named_buffers(recurse=False))
            names.update(f"{prefix}.{name}" if prefix else name for name in own)
    return {name: _plain(v).clone() for name, v in model.state_dict().items() if name in names}


def save_delta(
    path: str | os.PathLike[str], model: nn.Module, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the delta of a model under its mask, whole or not at all.

    Parameters
    ----------
    path
        The file, by custom ``delta.safetensors``; its folder must exist.
    model
        With `requires_grad` as `apply_mask` set it.
    metadata
        Texts to keep with it (the mask, the metrics); keys must not start with ``fairtune.``.
    """
    extra = dict(metadata or {})
    if taken := sorted(key for key in extra if key.startswith("fairtune.")):
        raise ValueError(f"metadata keys {taken} are the checkpoint's own")
    delta = delta_state(model)
    rest = {name: value for name, value in model.state_dict().items() if name not in delta}
    own = {
        _FORMAT: _VERSION,
        _ARCHITECTURE: architecture_name(model),
        _DELTA_HASH: tensors_hash(delta),
        _REST_HASH: tensors_hash(rest),
    }
    write_weights(Path(path), delta, {**extra, **own})


def load_delta(path: str | os.PathLike[str], model: nn.Module) -> dict[str, str]:
    """Lay a delta over its base weights, in place.

    Parameters
    ----------
    path
        What `save_delta` wrote.
    model
        The base model; its classifier may hold anything, what is frozen must be the base weights.

    Returns
    -------
    dict
        The metadata that was given to `save_delta`.

    Raises
    ------
    InputError
        The file is missing, damaged or no delta; it is for another architecture, has names or
        shapes that the model lacks, or other base weights. The model is then unchanged.
    """
    file = Path(path)
    delta, metadata = read_weights(file)
    _check_delta(file, delta, metadata, model)
    state = model.state_dict()
    with torch.no_grad():
        for name, value in delta.items():
            state[name].copy_(value)
    return {key: value for key, value in metadata.items() if not key.startswith("fairtune.")}


def _check_delta(
    file: Path, delta: Mapping[str, Tensor], metadata: Mapping[str, str], model: nn.Module
) -> None:
    if metadata.get(_FORMAT) != _VERSION:
        raise InputError(f"{file} is not a delta checkpoint of version {_VERSION}")
    if tensors_hash(delta) != metadata.get(_DELTA_HASH):
        raise InputError(f"{file} is damaged: its tensors do not have the hash written with them")
    name = architecture_name(model)
    if metadata.get(_ARCHITECTURE) != name:
        raise InputError(f"{file} is for {metadata.get(_ARCHITECTURE)!r}, the model is {name!r}")
    state = model.state_dict()
    for key, value in delta.items():
        if key not in state:
            raise InputError(f"{file} has {key!r}, which the {name!r} lacks")
        if state[key].shape != value.shape or state[key].dtype != value.dtype:
            raise InputError(
                f"{file}: {key!r} is {tuple(value.shape)} {value.dtype}, "
                f"in the model {tuple(state[key].shape)} {state[key].dtype}"
            )
    rest = {key: value for key, value in state.items() if key not in delta}
    if tensors_hash(rest) != metadata.get(_REST_HASH):
        raise InputError(
            f"{file} belongs to other base weights: build the model with the weights that it was "
            "trained from"
        )


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name, then rename: never half a file."""
    from safetensors.torch import save_file

    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} into")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        plain = {name: _plain(value) for name, value in tensors.items()}
        save_file(plain, temporary, metadata=dict(metadata))
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep a server of another user out
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def weights_hash(model: nn.Module) -> str:
    """Return a hash of the base weights: all parameters and buffers but the classifier's.

    Sixteen hexadecimal digits, the same on every machine and device, for every classifier.
    """
    head = set(head_names(model))
    return tensors_hash({k: v for k, v in model.state_dict().items() if k not in head})


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, kinds, shapes and values; the order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = _plain(tensors[name])
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        # Viewed as bytes, as NumPy has no bfloat16; a scalar has to be given a dimension first.
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()
