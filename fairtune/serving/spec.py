"""What a served model is: two files, weights as safetensors and everything else as JSON.

No pickle is written or read, so that loading a model version from a shared registry runs no code
but the code that stands beside it in plain text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fairtune.errors import InputError

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_FILE = "model.safetensors"
SPEC_FILE = "serving.json"
FORMAT = 1
IMAGE_COLUMN = "image"
# MLflow writes this file beside a model that it downloads by its registered name.
_REGISTRY_NOTE = "registered_model_meta"


@dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """All that inference needs to know besides the weights.

    Attributes
    ----------
    architecture : str
        Name that `fairtune.peft.models.build_model` knows.
    image_size : int
        Side of the square the model sees, in pixels.
    store_size : int or None
        Side of the stored images that the model was trained from, when it is another: an image is
        resized to it first, so that the model sees the pixels that it saw in training.
    mean, std : tuple of float
        Per channel normalisation of images scaled to [0, 1].
    classes : tuple of str
        Class names in the order of the model's outputs; at least two.
    threshold : float or None
        With two classes: the second class is answered when its probability reaches this value.
        Without it, and with more classes, the most probable class is answered.
    options : mapping
        Further keyword options the architecture was built with.
    max_rows : int
        Rows of one request that are answered; each row beyond gets an error.
    max_image_bytes : int
        Largest encoded image that is decoded, in bytes.
    max_pixels : int
        Images whose header says more are refused undecoded; 2**25 is 5,792 squared.
    max_batch : int
        Most images that go through the model at once.
    window : tuple of float or None
        The values that become 0 and 255 in images of more than 8 bits, when all images that the model
        was trained on were read through one window.
    name : str
        Readable name, for the answer and the logs.
    """

    architecture: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    store_size: int | None = None
    threshold: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    max_rows: int = 256
    max_image_bytes: int = 32 * 2**20
    max_pixels: int = 2**25
    max_batch: int = 32
    window: tuple[float, float] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for key in ("mean", "std", "classes"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        if self.window is not None:
            low, high = self.window
            if not low < high:
                raise InputError(f"window must be two rising values, got {low}, {high}")
            object.__setattr__(self, "window", (low, high))
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise InputError(f"classes must be two or more different names, got {self.classes!r}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"threshold must be within [0, 1], got {self.threshold}")
        if self.store_size is not None and self.store_size < 1:
            raise InputError(f"store_size must be at least 1, got {self.store_size}")
        for key in ("image_size", "max_rows", "max_image_bytes", "max_pixels", "max_batch"):
            if getattr(self, key) < 1:
                raise InputError(f"{key} must be at least 1, got {getattr(self, key)}")

    def to_json(self) -> str:
        """Return the text of `serving.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ServingSpec:
        """Read the text of `serving.json`; raises `InputError` for a newer or foreign format."""
        values = json.loads(text)
        version = values.pop("format", None) if isinstance(values, dict) else None
        if version != FORMAT:
            raise InputError(
                f"{SPEC_FILE} has format {version!r}, this version of fairtune reads {FORMAT}; "
                "serve the model with the code that was registered with it"
            )
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise InputError(f"{SPEC_FILE} has unknown keys: {', '.join(unknown)}")
        return cls(**values)


def export_model(model: nn.Module, spec: ServingSpec, folder: Path) -> Path:
    """Write `model.safetensors` and `serving.json` into `folder` and return the folder.

    Parameters
    ----------
    model : torch.nn.Module
        The merged model (base weights and trained tensors), as it was evaluated.
    spec : ServingSpec
        What inference needs to know.
    folder : Path
        Made when missing.
    """
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    (folder / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")
    return folder


def registered_version(folder: Path) -> str:
    """Return `name/version` of the downloaded model that `folder` is part of, else ''."""
    for parent in (folder, *folder.parents):
        note = parent / _REGISTRY_NOTE
        if note.is_file():
            values = yaml.safe_load(note.read_text(encoding="utf-8"))
            return f"{values['model_name']}/{values['model_version']}"
    return ""


def load_exported(folder: Path) -> tuple[nn.Module, ServingSpec]:
    """Read back what `export_model` wrote: the model in eval mode on the CPU, and its spec.

    Raises
    ------
    InputError
        A file is missing, or the weights do not fit the architecture that `serving.json` names.
    """
    from safetensors.torch import load_model

    from fairtune.peft.models import build_model

    for name in (WEIGHTS_FILE, SPEC_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is no exported model: {name} is missing")
    spec = ServingSpec.from_json((folder / SPEC_FILE).read_text(encoding="utf-8"))
    model = build_model(
        spec.architecture,
        num_classes=len(spec.classes),
        weights="none",
        options=dict(spec.options),
    )
    try:
        load_model(model, str(folder / WEIGHTS_FILE), strict=True)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"the weights do not fit {spec.architecture!r}: {first}") from error
    return model.eval(), spec
