"""What `fairtune doctor` says of a data set before any training does."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from fairtune.data.images import ImageError
from fairtune.data.manifest import SPLITS, Manifest
from fairtune.data.references import ImageReader
from fairtune.data.splits import patients_in_several
from fairtune.progress import progress_bar

Level = Literal["error", "warning"]
_JUDGED = ("val", "test")
_AUROC = 0.8  # at which the standard error of a small group is told


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or might be.

    Parameters
    ----------
    level
        "error" if a figure will be undefined or false, "warning" if it will be uncertain.
    check
        Which check found it: `split`, `group`, `patient`, `duplicate`, `image`, `missing`.
    message
        What, where, and what to do, in one line.
    """

    level: Level
    check: str
    message: str


def diagnose(
    manifest: Manifest,
    *,
    least: int = 20,
    images: bool = True,
    workers: int | None = None,
    progress: bool = True,
) -> list[Finding]:
    """Look for what would spoil a study of this data set.

    Parameters
    ----------
    manifest
        The data set, with the attributes (and intersections) that will be judged.
    least
        Images of each label that a group should have in validation and test.
    images
        Whether every image is read and decoded, which takes about as long as `prepare`.
    workers, progress
        As in `open_store`.

    Returns
    -------
    list[Finding]
        Errors first; empty if all is well.
    """
    findings = [
        *_splits(manifest),
        *_groups(manifest, least),
        *_patients(manifest),
        *_missing(manifest),
    ]
    if images:
        findings += _images(manifest, workers or os.cpu_count() or 1, progress)
    return sorted(findings, key=lambda finding: finding.level != "error")


def auroc_standard_error(auroc: float, positives: int, negatives: int) -> float:
    """Return the standard error of an AUROC, NaN without both labels.

    References
    ----------
    Hanley, McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC)
    curve", Radiology 143 (1982), equation 1 with Q1 and Q2 of the exponential model.
    """
    if positives < 1 or negatives < 1:
        return math.nan
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = (
        auroc * (1 - auroc) + (positives - 1) * (q1 - auroc**2) + (negatives - 1) * (q2 - auroc**2)
    ) / (positives * negatives)
    return math.sqrt(variance)


def _splits(manifest: Manifest) -> Iterator[Finding]:
    for split in SPLITS:
        rows = manifest.rows(split)
        if not len(rows):
            yield Finding("error", "split", f"{split} has no images")
            continue
        there = manifest.table["label"].iloc[rows].unique()
        absent = [name for code, name in enumerate(manifest.classes) if code not in there]
        if absent:
            yield Finding("error", "split", f"{split} has no image of {', '.join(absent)}")


def _groups(manifest: Manifest, least: int) -> Iterator[Finding]:
    counts = manifest.counts()
    for (split, attribute, group), cell in counts.groupby(
        ["split", "attribute", "group"], sort=False
    ):
        n = dict(zip(cell["label"], cell["n"], strict=True))
        where = f"{split}, {attribute} {group}"
        if not len(manifest.rows(str(split))):
            continue
        told = ", ".join(f"{number:,} {label}" for label, number in n.items())
        advice = "merge it with another group, or split by more patients"
        if not any(n.values()):
            level: Level = "error" if split in _JUDGED else "warning"
            yield Finding(level, "group", f"{where}: no images; {advice}")
        elif sum(number > 0 for number in n.values()) == 1:
            level = "error" if split in _JUDGED else "warning"
            yield Finding(level, "group", f"{where}: one class only ({told}); {advice}")
        elif split in _JUDGED and min(n.values()) < least:
            yield Finding("warning", "group", f"{where}: {told}{_uncertainty(n)}; {advice}")


def _uncertainty(n: dict[str, int]) -> str:
    if len(n) != 2:
        return ""
    negatives, positives = n.values()
    error = auroc_standard_error(_AUROC, positives, negatives)
    return f": an AUROC of {_AUROC} would have a standard error of {error:.2f}"


def _patients(manifest: Manifest) -> Iterator[Finding]:
    shared = patients_in_several(manifest.table)
    if shared:
        yield Finding(
            "error",
            "patient",
            f"{len(shared):,} patients are in more than one split, such as {shared[0]!r}; "
            "split by patient",
        )


def _missing(manifest: Manifest) -> Iterator[Finding]:
    provenance = manifest.provenance
    for reason, number in provenance.get("dropped", {}).items():
        yield Finding("warning", "missing", f"{number:,} rows were left out: {reason}")
    for note, what in (("missing", "have no image"), ("skipped", "have a bad image")):
        if listed := provenance.get(note):
            message = f"{len(listed):,} rows were left out, as they {what}"
            yield Finding("warning", "missing", message)
    for attribute in manifest.attributes:
        number = int((manifest.table[attribute].astype(str).str.lower() == "unknown").sum())
        if number:
            message = f"{attribute}: {number:,} images are of the group 'unknown'"
            yield Finding("warning", "missing", message)


def _images(manifest: Manifest, workers: int, progress: bool) -> Iterator[Finding]:
    """Decode every image: which are bad, and which are the same."""
    names = manifest.table["image"].tolist()
    bar = progress_bar(
        total=len(names),
        desc="reading images",
        unit="img",
        delay=2,
        mininterval=0.5,
        disable=not progress,
    )
    digests: list[bytes | None] = []
    bad: list[ImageError] = []
    with ImageReader(manifest.root) as reader, ThreadPoolExecutor(workers) as pool, bar:

        def look(name: str) -> bytes | ImageError:
            try:
                reader.read(name)
                return hashlib.sha256(reader.raw(name)).digest()
            except ImageError as error:
                return error

        for seen in pool.map(look, names):
            bar.update()
            digests.append(None if isinstance(seen, ImageError) else seen)
            if isinstance(seen, ImageError):
                bad.append(seen)
    if bad:
        message = f"{len(bad):,} images cannot be read, the first is {bad[0]}"
        yield Finding("error", "image", message)
    yield from _duplicates(manifest, digests)


def _duplicates(manifest: Manifest, digests: list[bytes | None]) -> Iterator[Finding]:
    table = manifest.table[["image", "label", "split"]].assign(
        digest=pd.Series(digests, dtype=object)
    )
    table = table[np.asarray(table["digest"].notna())]
    table = table[np.asarray(table["digest"].duplicated(keep=False))]
    if table.empty:
        return
    groups = table.groupby("digest", sort=False)
    for column, what in (
        ("split", "are the same but lie in different splits; keep them in one"),
        ("label", "are the same but have different labels; correct one"),
    ):
        clash = groups[column].nunique()
        clash = clash[clash > 1]
        if len(clash):
            pair = table.loc[table["digest"] == clash.index[0], "image"].tolist()[:2]
            message = f"{len(clash):,} images occur more than once: {' and '.join(pair)} {what}"
            yield Finding("error", "duplicate", message)
    repeated = int(pd.Series(groups.size()).sum() - len(groups))
    yield Finding("warning", "duplicate", f"{repeated:,} images repeat another one's content")
