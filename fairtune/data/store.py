"""The store: a manifest's images, decoded once, read by memory map ever after.

A store is a folder in the cache: `images.u8`, the raw pixels, and `store.json`, which says what
they are. Its name is a hash of what it was made from (the image references, their files' sizes and
times, the side in pixels, the format's version), so that it never has to be invalidated: other labels,
splits or attributes share it, other images make another one. Because it is complete before it gets
its name, a reader needs no lock.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from fairtune.data.cache import CACHE_VARIABLE, cache_dir
from fairtune.data.manifest import Manifest
from fairtune.data.references import Reference, files_of
from fairtune.data.store_build import bad_images, build
from fairtune.errors import InputError

FORMAT = 2
"""Rises whenever decoding or resizing changes a pixel."""

SIZES = range(8, 4097)
OnBadImage = Literal["fail", "skip"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Store:
    """Decoded images and the manifest whose rows they are.

    Parameters
    ----------
    images
        Shape (N, size, size, 3), uint8, read-only memory map; row i is row i of `manifest`.
    manifest
        The manifest that was asked for, without the rows that were skipped.
    path
        The store's folder.
    """

    images: np.ndarray
    manifest: Manifest
    path: Path

    @property
    def size(self) -> int:
        """The side of the images in pixels."""
        return int(self.images.shape[1])


def open_store(
    manifest: Manifest,
    size: int,
    *,
    cache: Path | str | None = None,
    workers: int | None = None,
    on_bad_image: OnBadImage = "fail",
    progress: bool = True,
) -> Store:
    """Open the decoded images of a manifest, decoding them first if nobody has.

    Images are resized to (size, size) directly, bilinear and antialiased, the aspect ratio not
    kept. Two processes that ask at once build once; an interrupted build continues where it was.

    Parameters
    ----------
    manifest
        What to decode.
    size
        Side of the images in pixels, 8 to 4,096.
    cache
        The cache folder; by default `cache_dir()`.
    workers
        Decoding threads; by default one a core.
    on_bad_image
        "fail" refuses the data set and names its bad images; "skip" leaves their rows out and
        lists them in the manifest's provenance under "skipped".
    progress
        Whether a build that takes over two seconds shows a bar on stderr.

    Raises
    ------
    InputError
        For a bad image (with "fail"), a full disk, or a cache that cannot be written.
    """
    if size not in SIZES:
        raise InputError(f"image size must be {SIZES.start} to {SIZES.stop - 1}, got {size}")
    if on_bad_image not in ("fail", "skip"):
        raise InputError(f"on_bad_image must be 'fail' or 'skip', got {on_bad_image!r}")
    stores = (Path(cache) if cache is not None else cache_dir()) / "stores"
    folder = stores / _store_name(manifest, size)
    facts = _facts(folder)
    if facts is None:
        try:
            stores.mkdir(parents=True, exist_ok=True)
            facts = _build_once(manifest, size, folder, workers, on_bad_image, progress)
        except OSError as error:
            raise InputError(
                f"cannot write decoded images to {stores}: {error.strerror or error}; free "
                f"{len(manifest) * size * size * 3 / 1e6:,.0f} MB there, or name another folder "
                f"by {CACHE_VARIABLE}"
            ) from error
    return _opened(manifest, size, folder, facts, on_bad_image)


def _build_once(
    manifest: Manifest,
    size: int,
    folder: Path,
    workers: int | None,
    on_bad_image: OnBadImage,
    progress: bool,
) -> Mapping[str, Any]:
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        _log.info("another process is decoding %s; waiting for it", manifest.name)
        lock.acquire()
    try:
        facts = _facts(folder)
        if facts is not None:
            return facts
        if folder.exists():
            _log.warning("%s is incomplete; decoding again", folder)
            shutil.rmtree(folder)
        partial = folder.with_name(folder.name + ".partial")
        skipped = build(
            manifest, size, partial, workers=workers, on_bad_image=on_bad_image, progress=progress
        )
        facts = {
            "format": FORMAT,
            "name": manifest.name,
            "size": size,
            "count": len(manifest) - len(skipped),
            "skipped": {str(row): reason for row, reason in skipped.items()},
        }
        (partial / "store.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
        partial.rename(folder)
        return facts
    finally:
        lock.release()


def _opened(
    manifest: Manifest, size: int, folder: Path, facts: Mapping[str, Any], on_bad_image: OnBadImage
) -> Store:
    skipped = {int(row): reason for row, reason in facts["skipped"].items()}
    if skipped:
        if on_bad_image == "fail":
            raise bad_images(manifest, skipped)
        rows = np.setdiff1d(np.arange(len(manifest)), list(skipped))
        names = manifest.table["image"]
        listed = [{"image": names.iloc[row], "reason": why} for row, why in skipped.items()]
        manifest = manifest.keep(rows, skipped=listed)
    shape = (facts["count"], size, size, 3)
    images = np.memmap(folder / "images.u8", dtype=np.uint8, mode="r", shape=shape)
    return Store(images=images, manifest=manifest, path=folder)


def _facts(folder: Path) -> Mapping[str, Any] | None:
    """Return what `store.json` says if the store is whole, else None."""
    try:
        facts: dict[str, Any] = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        wanted = facts["count"] * facts["size"] ** 2 * 3
        whole = facts["format"] == FORMAT and (folder / "images.u8").stat().st_size == wanted
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if whole else None


def _store_name(manifest: Manifest, size: int) -> str:
    images = manifest.table["image"].tolist()
    made_from = [FORMAT, size, images, _fingerprint(manifest.root, images)]
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9]+", "-", manifest.name).strip("-")[:40] or "images"
    return f"{name}-{size}-{digest[:20]}"


def _fingerprint(root: Path, images: list[str]) -> list[tuple[str, int, int]]:
    """Tell changed files from unchanged ones: path, size and time of change of each file."""
    found = []
    named = dict.fromkeys(Reference.parse(image).path for image in images)
    for path in dict.fromkeys(itertools.chain.from_iterable(map(files_of, named))):
        try:
            stat = os.stat(os.path.join(root, path))
            found.append((path, stat.st_size, stat.st_mtime_ns))
        except (OSError, ValueError):  # the build will name the image
            found.append((path, -1, 0))
    return found
