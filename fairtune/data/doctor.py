"""What `fairtune doctor` says of a data set before any training does."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from fairtune.data.images import ImageError
from fairtune.data.manifest import SPLITS, Manifest
from fairtune.data.references import ImageReader
from fairtune.data.splits import k_folds, patients_in_several
from fairtune.data.store import OnBadImage
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
    on_bad_image: OnBadImage = "fail",
    folds: int | None = None,
    fold: int | None = None,
    fold_seed: int = 0,
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
        Whether every image is read and decoded, once, which takes about as long as `prepare`.
    on_bad_image
        As in `open_store`: with "skip" unreadable images are a warning, and the rest is judged
        without them.
    folds, fold, fold_seed
        Judge cross-testing in this many folds in place of the manifest's own splits, each fold or
        one alone; as in `k_folds`.
    workers, progress
        As in `open_store`.

    Returns
    -------
    list[Finding]
        Errors first; empty if all is well.
    """
    divisions: dict[int | None, Manifest] = {None: manifest}
    if folds is not None:
        parts = enumerate(k_folds(manifest, folds, seed=fold_seed))
        divisions = {number: part for number, part in parts if fold in (None, number)}
    findings = []
    repeats = pd.DataFrame(columns=["image", "label", "digest"])
    if images:
        digests, bad = _read(manifest, workers or os.cpu_count() or 1, progress)
        skip = on_bad_image == "skip" and len(bad) < len(manifest)
        if bad:
            findings.append(_unreadable(bad, skip))
        if bad and skip:
            good = np.flatnonzero(digests.notna())
            divisions = {number: part.keep(good) for number, part in divisions.items()}
            digests = digests.iloc[good].reset_index(drop=True)
        repeats = _repeats(next(iter(divisions.values())), digests)
    found: dict[Finding, list[int | None]] = {}
    for number, part in divisions.items():
        for finding in _of_division(part, least, repeats):
            found.setdefault(finding, []).append(number)
    findings += [_in_folds(finding, numbers) for finding, numbers in found.items()]
    findings += [*_missing(manifest), *_duplicates(repeats)]
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


def _of_division(manifest: Manifest, least: int, repeats: pd.DataFrame) -> Iterator[Finding]:
    """Look at what depends on how the images are divided into train, val and test."""
    yield from _splits(manifest)
    yield from _groups(manifest, least)
    yield from _patients(manifest)
    split = manifest.table["split"].reindex(repeats.index)
    yield from _clash(
        repeats.assign(split=split), "split", "lie in different splits; keep them in one"
    )


def _in_folds(finding: Finding, numbers: list[int | None]) -> Finding:
    """Say in which folds something was found."""
    if numbers == [None]:
        return finding
    told = f"fold{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
    return replace(finding, message=f"{told}: {finding.message}")


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
    for column in manifest.attributes:
        there = manifest.table[column].unique()
        if len(there) == 1:
            alone = (
                f"{column}: all images are of the group {str(there[0])!r}, so nothing is compared"
            )
            advice = "give other edges, or judge by another column"
            yield Finding("error", "attribute", f"{alone}; {advice}")
    counts = manifest.counts()
    for (split, attribute, group), cell in counts.groupby(
        ["split", "attribute", "group"], sort=False
    ):
        n = dict(zip(cell["label"], cell["n"], strict=True))
        where = f"{split}, {attribute} {group}"
        if not len(manifest.rows(str(split))):
            continue
        told = ", ".join(f"{number:,} {label}" for label, number in n.items())
        absent = [label for label, number in n.items() if not number]
        advice = "merge it with another group, or split by more patients"
        if absent:
            what = {
                len(n): "no images",
                len(n) - 1: f"one class only ({told})",
            }.get(len(absent), f"no image of {', '.join(absent)} ({told})")
            level: Level = "error" if split in _JUDGED else "warning"
            yield Finding(level, "group", f"{where}: {what}; {advice}")
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


def _read(manifest: Manifest, workers: int, progress: bool) -> tuple[pd.Series, list[ImageError]]:
    """Decode every image; returns what each one's bytes hash to, None where bad, and the errors."""
    names = manifest.table["image"].tolist()
    bar = progress_bar(
        total=len(names),
        desc="reading images",
        unit="img",
        delay=2,
        mininterval=0.5,
        disable=not progress,
    )
    seen: list[bytes | ImageError] = []
    with ImageReader(manifest.root) as reader, ThreadPoolExecutor(workers) as pool, bar:

        def look(name: str) -> bytes | ImageError:
            try:
                reader.read(name)
                return hashlib.sha256(reader.raw(name)).digest()
            except ImageError as error:
                return error

        for one in pool.map(look, names):
            bar.update()
            seen.append(one)
    digests = [None if isinstance(one, ImageError) else one for one in seen]
    return pd.Series(digests, dtype=object), [one for one in seen if isinstance(one, ImageError)]


def _unreadable(bad: list[ImageError], skip: bool) -> Finding:
    left = " and are left out" if skip else ""
    message = f"{len(bad):,} images cannot be read{left}, the first is {bad[0]}"
    return Finding("warning" if skip else "error", "image", message)


def _repeats(manifest: Manifest, digests: pd.Series) -> pd.DataFrame:
    """Return the rows whose content another one has, too: `image, label, digest`."""
    table = manifest.table[["image", "label"]].assign(digest=digests)
    table = table[np.asarray(table["digest"].notna())]
    return table[np.asarray(table["digest"].duplicated(keep=False))]


def _clash(repeats: pd.DataFrame, column: str, what: str) -> Iterator[Finding]:
    different = repeats.groupby("digest", sort=False)[column].nunique()
    different = different[different > 1]
    if len(different):
        pair = repeats.loc[repeats["digest"] == different.index[0], "image"].tolist()[:2]
        occur = f"{len(different):,} images occur more than once: {' and '.join(pair)}"
        yield Finding("error", "duplicate", f"{occur} are the same but {what}")


def _duplicates(repeats: pd.DataFrame) -> Iterator[Finding]:
    yield from _clash(repeats, "label", "have different labels; correct one")
    repeated = len(repeats) - repeats["digest"].nunique()
    if repeated:
        yield Finding("warning", "duplicate", f"{repeated:,} images repeat another one's content")
