"""The mask as a picture of the model: which parameters train, block by block, and how many.

A run keeps the names of the parameters that train. The sizes, and the names of those that are
frozen, come from the headers of the weight files that the search has logged: full fine-tuning has
a weight file with every parameter.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow.entities import Run

from fairtune.report.trials import component_of
from fairtune.tracking.runs import RunLog

MAX_BYTES = 200_000_000
"""A weight file above this is not fetched from a remote store for its header alone."""
WHOLE_MODEL = "full fine-tuning"
OUTSIDE = "outside the blocks"
_NORM = re.compile(r"(^|\.)(norm|bn|ln|gn)\d*(_\w+)?(\.|$)|norm")


@dataclass(frozen=True)
class Cell:
    """A piece of the model: how many of its values train, of how many; NaN where not known."""

    trained: float
    total: float
    bit: int | None = None

    @property
    def share(self) -> float:
        """Trained share in [0, 1]; where sizes are not known, whether anything trains."""
        if self.total and not math.isnan(self.total):
            return self.trained / self.total
        return float(bool(self.bit)) if self.bit is not None else math.nan


@dataclass(frozen=True)
class ModelPicture:
    """Blocks (rows) by components (columns) of a model.

    Attributes
    ----------
    cells
        (row, column) to cell; a piece that the model does not have has no cell.
    trained, total
        Number of values of the whole model.
    exact
        Whether the cells know their sizes; else they show the mask's bits alone.
    """

    space: str
    architecture: str
    fingerprint: str
    bits: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    trained: int
    total: int
    exact: bool

    @property
    def share(self) -> float:
        """Trained share of the model's parameters."""
        return self.trained / self.total if self.total else 0.0


def picture(log: RunLog, finals: Sequence[Run], facts: Mapping[str, Any]) -> ModelPicture | None:
    """Make the picture of a run's mask; None where the run has no mask.

    `finals` are the final runs of its search, of which full fine-tuning knows every parameter;
    `facts` may hold the shapes of all parameters under ``parameters``.
    """
    there = {file.path for file in log.client.list_artifacts(log.run_id)}
    if "mask.json" not in there:
        return None
    mask = json.loads(log.read_text("mask.json"))
    shapes: dict[str, tuple[int, ...]] = {
        str(name): tuple(shape) for name, shape in (facts.get("parameters") or {}).items()
    }
    if not shapes:
        whole = [r for r in finals if r.data.tags.get("fairtune.candidate") == WHOLE_MODEL]
        shapes = _named(log.sibling(whole[0].info.run_id)) if whole else {}
    exact = bool(shapes)
    shapes |= {name: s for name, s in _named(log).items() if name in set(mask["parameters"])}
    cells = _cells_by_size(mask, shapes) if exact else _cells_by_bit(mask)
    rows = tuple(sorted({row for row, _ in cells}, key=_natural))
    columns = tuple(dict.fromkeys(column for _, column in cells))
    joint = "-" if any(bit > 9 for bit in mask["bits"]) else ""
    return ModelPicture(
        space=mask["space"],
        architecture=mask["architecture"],
        fingerprint=mask.get("fingerprint", ""),
        bits=joint.join(map(str, mask["bits"])),
        rows=rows,
        columns=_ordered(columns),
        cells=cells,
        trained=mask["trained"],
        total=mask["total"],
        exact=exact,
    )


def place_of(parameter: str, shape: Sequence[int]) -> tuple[str, str]:
    """Return block and component of a parameter.

    A block is what the first number in the name stands for: ``blocks.3``, ``layer2``. Without a
    number the parameter lies outside the blocks, and its first word is its component.
    """
    words = parameter.split(".")
    for i, word in enumerate(words[:-1]):
        if word.isdecimal():
            return ".".join(words[: i + 1]), _component(words[i + 1 :], shape)
        if re.fullmatch(r"(layer|s|stage)\d+", word):
            return word, _component(words[i + 1 :], shape)
    return OUTSIDE, words[0]


def _component(words: Sequence[str], shape: Sequence[int]) -> str:
    """Name the piece inside a block: by its own name in a transformer, else conv or norm."""
    first = words[0]
    if first in ("attn", "mlp") or re.fullmatch(r"norm\d", first):
        return first
    if len(words) < 2 or re.fullmatch(r"ls\d|gamma_\d", first):
        return "other"
    inner = ".".join(words[:-1])
    return "norm" if _NORM.search(inner) or (len(shape) == 1 and words[-1] == "weight") else "conv"


def _cells_by_size(
    mask: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
) -> dict[tuple[str, str], Cell]:
    trains = set(mask["parameters"])
    sums: dict[tuple[str, str], list[int]] = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        cell = sums.setdefault(place_of(name, shape), [0, 0])
        cell[0] += size if name in trains else 0
        cell[1] += size
    return {place: Cell(*counts) for place, counts in sums.items()}


def _cells_by_bit(mask: Mapping[str, Any]) -> dict[tuple[str, str], Cell]:
    cells = {}
    for name, bit in zip(mask["names"], mask["bits"], strict=True):
        component = component_of(name)
        row = name.removesuffix(component).rstrip(".") or OUTSIDE
        cells[row, component] = Cell(math.nan, math.nan, bit)
    return cells


def _named(log: RunLog) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a run's weight file, by name; empty without one."""
    files = {file.path: file for file in log.client.list_artifacts(log.run_id)}
    found = files.get("delta.safetensors")
    if found is None:
        return {}
    local = _local_path(log, found.path)
    if local is not None:
        return read_shapes(local)
    if (found.file_size or 0) > MAX_BYTES:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        return read_shapes(log.download(found.path, folder))


def _local_path(log: RunLog, name: str) -> Path | None:
    uri = urlparse(str(log.data().info.artifact_uri))
    path = Path(unquote(uri.path)) / name
    return path if uri.scheme in ("", "file") and path.is_file() else None


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a safetensors file's header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}


def _natural(name: str) -> tuple[bool, list[tuple[int, str]]]:
    words = re.split(r"(\d+)", name)
    return name == OUTSIDE, [(int(w), "") if w.isdecimal() else (-1, w) for w in words]


def _ordered(columns: Sequence[str]) -> tuple[str, ...]:
    known = ("norm1", "norms", "attn", "norm2", "mlp", "other", "norm", "conv")
    return tuple(sorted(columns, key=lambda c: known.index(c) if c in known else len(known)))
