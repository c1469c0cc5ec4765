"""One split of a data set, as training and evaluation see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairtune.data.batches import Images

if TYPE_CHECKING:
    import pandas as pd

    from fairtune.data import Manifest


@dataclass(frozen=True)
class ImageSpec:
    """How pixels enter a model: side length in pixels, and mean and std per channel in 0…1."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Split:
    """One split: which rows of the store it has, and what is known of them.

    Attributes
    ----------
    name
        ``train``, ``val`` or ``test``.
    images
        (N, H, W, 3) uint8, an array or a tensor: the whole store, of which `rows` are this split's.
    rows
        (n,) positions in `images`.
    labels
        (n,) class indices.
    groups
        n rows, one column per sensitive attribute. Metrics read it; models never do.
    patients
        (n,) patient of each image: the unit of resampling.
    references
        (n,) image reference of each row, as the manifest names it.
    classes
        Name of each class.
    """

    name: str
    images: Images
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: pd.DataFrame
    patients: NDArray[Any]
    references: NDArray[Any]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, manifest: Manifest, images: NDArray[np.uint8], name: str) -> Split:
        """Take one split out of a manifest and its store's images (N, H, W, 3)."""
        rows = np.flatnonzero((manifest.table["split"] == name).to_numpy())
        table = manifest.table.iloc[rows]
        return cls(
            name=name,
            images=images,
            rows=rows,
            labels=table["label"].to_numpy(np.int64),
            groups=table[list(manifest.attributes)].reset_index(drop=True),
            patients=table["patient"].to_numpy(),
            references=table["image"].to_numpy(),
            classes=manifest.classes,
        )
