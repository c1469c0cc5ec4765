"""What travels with a registered model: its code, its requirements, its signature, an example.

The code is the part of fairtune that the served model imports, found by following the imports from
`fairtune.serving.model`; so a server needs no fairtune, and the bundle cannot miss a module.
"""

from __future__ import annotations

import ast
import base64
import io
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import fairtune
from fairtune.serving.predictor import probability_columns
from fairtune.serving.spec import IMAGE_COLUMN, ServingSpec

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

ENTRYPOINT = Path(__file__).with_name("entrypoint.py")
ROOT_MODULE = "fairtune.serving.model"
# mlflow-skinny has the scoring server and not the tracking server, its databases and its plots.
REQUIRED = (
    "mlflow-skinny",
    "numpy",
    "pandas",
    "pillow",
    "pyyaml",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
)


def requirements() -> list[str]:
    """Pin the distributions a server needs to the versions installed here.

    A local part such as `+cu132` is dropped, so that a server without a GPU may take a CPU build.
    """
    return [f"{name}=={version(name).partition('+')[0]}" for name in REQUIRED]


def signature(spec: ServingSpec) -> ModelSignature:
    """Describe input and output: one text column in; label, probabilities, threshold, error out.

    A text column rather than a typed object, and an optional one: MLflow quotes the whole request
    back when an object does not validate or a required column is missing. The model itself says
    which row has no image.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    def optional(kind: DataType, *names: str) -> list[ColSpec | TensorSpec]:
        return [ColSpec(kind, name, required=False) for name in names]

    outputs = [
        *optional(DataType.string, "label"),
        *optional(DataType.double, *probability_columns(spec.classes), "threshold"),
        *optional(DataType.string, "model_version", "error"),
    ]
    return ModelSignature(
        inputs=Schema(optional(DataType.string, IMAGE_COLUMN)), outputs=Schema(outputs)
    )


def input_example(spec: ServingSpec) -> pd.DataFrame:
    """Draw a small real JPEG, a gradient with a disc, as a one-row table."""
    import pandas as pd
    from PIL import Image

    side = min(spec.image_size, 64)
    y, x = np.mgrid[0:side, 0:side] / side
    disc = (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.09
    pixels = np.stack([x, y, disc], axis=-1) * 255
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="JPEG", quality=90)
    return pd.DataFrame({IMAGE_COLUMN: [base64.b64encode(buffer.getvalue()).decode("ascii")]})


def copy_code(folder: Path) -> Path:
    """Copy the modules the served model imports below `folder`; return the package's folder."""
    package = Path(fairtune.__file__).parent
    for source in code_files():
        target = folder / package.name / source.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return folder / package.name


def code_files() -> list[Path]:
    """Files of fairtune that the served model can import, sorted."""
    found: dict[str, Path] = {}
    waiting = [ROOT_MODULE]
    while waiting:
        name = waiting.pop()
        path = _module_file(name)
        if path is None or name in found:
            continue
        found[name] = path
        waiting.append(name.rpartition(".")[0])
        is_package = path.name == "__init__.py"
        waiting.extend(_imports(ast.parse(path.read_text(encoding="utf-8")), name, is_package))
    return sorted(found.values())


def _module_file(name: str) -> Path | None:
    top, _, rest = name.partition(".")
    if top != "fairtune":
        return None
    path = Path(fairtune.__file__).parent.joinpath(*rest.split(".")) if rest else None
    if path is None:
        return Path(fairtune.__file__)
    if (path / "__init__.py").is_file():
        return path / "__init__.py"
    module = path.with_suffix(".py")
    return module if module.is_file() else None


def _imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Names that may be modules, imported anywhere but under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") + ([""] if is_package else [])
                base = ".".join([*parts[: -node.level], *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node, module, is_package)
