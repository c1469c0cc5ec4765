"""Building models: any architecture of timm, weights from anywhere, a fresh classifier."""

from __future__ import annotations

import copy
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from fairtune.errors import InputError
from fairtune.peft.checkpoint import weights_hash
from fairtune.peft.parts import head_modules
from fairtune.peft.weights import Statistics, load_body, weight_source

HEAD_STD = 0.02
NO_HUB = (
    "the pre-trained weights of {architecture!r} cannot be had: {reason}; connect this machine, "
    "or take weights: none, or the path of a .safetensors file{other}"
)


def build_model(
    architecture: str,
    *,
    num_classes: int,
    weights: str = "none",
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Build a timm model with a freshly initialised classifier.

    Parameters
    ----------
    architecture
        timm's name: ``vit_tiny_patch16_224``, ``tf_efficientnet_lite0``.
    num_classes
        Number of outputs, at least 1.
    weights
        ``none`` (random), ``pretrained`` (timm's hub), ``demo``, ``efficientnet_lite0``, any other
        name in `WEIGHTS`, or the path of a safetensors file with timm's names.
    options
        Keyword arguments of the architecture: ``img_size``, ``patch_size``, ``embed_dim``,
        ``depth``, ``num_heads``, ``drop_path_rate``.
    seed
        Seeds all that is drawn, and leaves torch's global generator as it was; None draws from
        that generator.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, on the CPU, every parameter with gradients.

    Raises
    ------
    InputError
        Unknown architecture, weights or options; weights that do not fit; a hub out of reach.
    """
    if num_classes < 1:
        raise InputError(f"num_classes must be at least 1, not {num_classes}")
    source = weight_source(weights)
    _check_architecture(architecture)
    with _seeded(seed):
        model = _create(architecture, num_classes, weights == "pretrained", dict(options or {}))
        if source is not None:
            load_body(model, source.load(model), weights)
        init_head(model)
    return model.eval()


def init_head(model: nn.Module, seed: int | None = None) -> None:
    """Initialise the classifiers anew, in place: normal of deviation 0.02 (cut), biases zero.

    That is what timm does for a ViT; here it is the same for every architecture.
    """
    with _seeded(seed), torch.no_grad():
        for module in head_modules(model).values():
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    # Drawn on the CPU, so that the device does not change the draw.
                    values = torch.empty(parameter.shape)
                    parameter.copy_(nn.init.trunc_normal_(values, std=HEAD_STD))
                else:
                    parameter.zero_()


class BaseModel:
    """A base model, loaded once, that gives a fresh copy to each trial.

    Parameters are those of `build_model`.

    Attributes
    ----------
    hash : str
        `weights_hash` of the base weights.
    """

    def __init__(
        self,
        architecture: str,
        *,
        num_classes: int,
        weights: str = "none",
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self._build = partial(
            build_model, architecture, num_classes=num_classes, options=dict(options or {})
        )
        self._model = self._build(weights=weights, seed=seed)
        self.architecture = architecture
        self.weights = weights
        self.normalization = normalization(self._model, weights)
        self.input_size = input_size(self._model)
        self.hash = weights_hash(self._model)

    @property
    def model(self) -> nn.Module:
        """The base model itself, to ask (its bits, its size), not to train."""
        return self._model

    def fresh(self, seed: int, *, from_scratch: bool = False) -> nn.Module:
        """Return a new model: the base weights, and a classifier drawn from `seed`.

        With `from_scratch` the whole model is drawn from `seed` (see `Space.from_scratch`).
        """
        if from_scratch:
            return self._build(weights="none", seed=seed)
        model = copy.deepcopy(self._model)
        init_head(model, seed)
        return model


def normalization(
    model_or_architecture: nn.Module | str, weights: str = "none"
) -> tuple[Statistics, Statistics]:
    """Return the mean and standard deviation of red, green, blue in [0, 1] that the model wants."""
    source = weight_source(weights)
    if source is not None and source.normalization is not None:
        return source.normalization
    config = _pretrained_config(model_or_architecture)
    mean, std = config.get("mean", (0.5, 0.5, 0.5)), config.get("std", (0.5, 0.5, 0.5))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def input_size(model_or_architecture: nn.Module | str) -> tuple[int, int]:
    """Return height and width in pixels: what the model was built for, else timm's default."""
    embed = getattr(model_or_architecture, "patch_embed", None)
    built = getattr(embed, "img_size", None)
    size = built or _pretrained_config(model_or_architecture).get("input_size", (3, 224, 224))[-2:]
    return int(size[0]), int(size[1])


def _pretrained_config(model_or_architecture: nn.Module | str) -> dict[str, Any]:
    if isinstance(model_or_architecture, nn.Module):
        return dict(getattr(model_or_architecture, "pretrained_cfg", None) or {})
    import timm

    _check_architecture(model_or_architecture)
    config = timm.get_pretrained_cfg(model_or_architecture)
    return dict(vars(config)) if config is not None else {}


def _check_architecture(architecture: str) -> None:
    import difflib

    import timm

    if ":" in architecture or timm.is_model(architecture):
        return
    known = timm.list_models()
    near = difflib.get_close_matches(architecture.split(".")[0], known, n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise InputError(
        f"unknown architecture {architecture!r}{hint} (timm {timm.__version__} has {len(known)}: "
        "timm.list_models())"
    )


def _create(
    architecture: str, num_classes: int, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    import timm

    other = (
        ", or weights: efficientnet_lite0"
        if architecture.startswith("tf_efficientnet_lite0")
        else ""
    )
    if pretrained and (reason := _hub_unreachable(architecture)):
        raise InputError(NO_HUB.format(architecture=architecture, reason=reason, other=other))
    try:
        return timm.create_model(
            architecture, pretrained=pretrained, num_classes=num_classes, **options
        )
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            NO_HUB.format(architecture=architecture, reason=reason, other=other)
        ) from error
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot build {architecture!r} with options {options}: {reason}"
        ) from error


def _hub_unreachable(architecture: str) -> str | None:
    """Say why timm's hub is out of reach; None where it answers or the weights are cached.

    The hub's own client tries for most of a minute before it gives up; this asks once.
    """
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    config = timm.get_pretrained_cfg(architecture) if ":" not in architecture else None
    name = config.hf_hub_id if config is not None else None
    if not isinstance(name, str) or getproxies():
        return None
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(name, file), str) for file in files):
        return None
    parts = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=10).close()
    except OSError as error:
        return f"the hub {parts.hostname} is out of reach ({error})"
    return None


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed torch on the CPU for a while; with None leave the global generator in charge."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
