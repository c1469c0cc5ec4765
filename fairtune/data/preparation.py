"""What `fairtune prepare` does: read a data set, decode its images once, count what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fairtune.data.datasets import load_dataset
from fairtune.data.manifest import SPLITS, Manifest
from fairtune.data.store import OnBadImage, Store, open_store


@dataclass(frozen=True, eq=False)
class Preparation:
    """A data set that is ready, and what to tell of it.

    Parameters
    ----------
    manifest
        Without the images that were skipped.
    store
        The decoded images.
    counts
        Images by attribute and group (rows) and by split and label (columns), for people to read;
        the first row is of all groups together. `Manifest.counts` has the tidy form.
    official
        Published count and own count by split (or "all"); empty where none is published.
    """

    manifest: Manifest
    store: Store
    counts: pd.DataFrame
    official: Mapping[str, tuple[int, int]]

    @property
    def matches(self) -> bool | None:
        """Whether all published counts come out; None where none is published."""
        if not self.official:
            return None
        return all(published == own for published, own in self.official.values())

    def notes(self) -> list[str]:
        """Say in sentences what was left out, and whether the published counts come out."""
        provenance = self.manifest.provenance
        lines = [f"{n:,} left out: {reason}" for reason, n in _left_out(provenance).items()]
        for split, (published, own) in self.official.items():
            verdict = "as published" if published == own else f"published: {published:,}"
            lines.append(f"{split}: {own:,} images ({verdict})")
        return lines


def prepare(
    name: str,
    source: Path | str | None = None,
    *,
    size: int = 224,
    options: Mapping[str, Any] | None = None,
    attributes: Sequence[str] | None = None,
    on_bad_image: OnBadImage = "fail",
    save: Path | str | None = None,
    cache: Path | str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Preparation:
    """Read a data set as its owners ship it, and decode its images into the store.

    A second call finds the store and decodes nothing; one after an interruption goes on.

    Parameters
    ----------
    name, source, options
        As in `load_dataset`.
    size, on_bad_image, cache, workers, progress
        As in `open_store`.
    attributes
        The attributes (and intersections, `a*b`) to count; by default all.
    save
        A folder to write the manifest to.

    Raises
    ------
    InputError
        For anything wrong with the data set, its images or the cache.
    """
    manifest = load_dataset(name, source, **(options or {}))
    if attributes:
        manifest = manifest.select(attributes)
    store = open_store(
        manifest,
        size,
        cache=cache,
        workers=workers,
        on_bad_image=on_bad_image,
        progress=progress,
    )
    if save is not None:
        store.manifest.save(save)
    return Preparation(
        store.manifest, store, count_table(store.manifest), _official(store.manifest)
    )


def count_table(manifest: Manifest) -> pd.DataFrame:
    """Count images by attribute and group (rows), split and label (columns), for people to read."""
    tidy = manifest.counts()
    splits = [split for split in SPLITS if len(manifest.rows(split))]
    order = pd.MultiIndex.from_product([splits, list(manifest.classes)], names=["split", "label"])
    wide = tidy.pivot_table(
        index=["attribute", "group"],
        columns=["split", "label"],
        values="n",
        aggfunc="sum",
        sort=False,
    ).reindex(columns=order)
    labels = manifest.table["label"].map(dict(enumerate(manifest.classes)))
    total = pd.crosstab(labels, manifest.table["split"]).unstack().reindex(order, fill_value=0)
    first = pd.DataFrame([total], index=pd.MultiIndex.from_tuples([("all", "")]))
    return pd.concat([first, wide]).rename_axis(["attribute", "group"]).astype(int)


def _official(manifest: Manifest) -> dict[str, tuple[int, int]]:
    published: Mapping[str, int] = manifest.provenance.get("official_counts", {})
    own = {split: len(manifest.rows(split)) for split in SPLITS} | {"all": len(manifest)}
    return {split: (number, own[split]) for split, number in published.items()}


def _left_out(provenance: Mapping[str, Any]) -> dict[str, int]:
    left_out: dict[str, int] = dict(provenance.get("dropped", {}))
    if missing := provenance.get("missing"):
        left_out[f"image not there, such as {missing[0]}"] = len(missing)
    if skipped := provenance.get("skipped"):
        left_out[f"image bad, such as {skipped[0]['image']}"] = len(skipped)
    return left_out
