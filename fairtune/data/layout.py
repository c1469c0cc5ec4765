"""Finding the files of a download in the layouts that people really have."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import translate
from pathlib import Path

import numpy as np
import pandas as pd

from fairtune.data.references import MEMBER, Reference
from fairtune.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".npy", ".dcm")
_DEPTH = 3
_MANY = 1000
_JUNK = ("__MACOSX/", "._")  # what macOS adds to archives


def download(source: Path | None, name: str, page: str) -> Path:
    """Return the folder of a download, or say where the data set is to be had."""
    what = f"its official download ({page})" if page.startswith("http") else page
    if source is None:
        raise InputError(f"data set {name!r} needs --source DIR, {what}")
    if not source.is_dir():
        raise InputError(f"no folder {str(source)!r}; --source is {what}")
    return source.resolve()


def find(source: Path, *patterns: str, what: str, page: str = "") -> Path:
    """Find a file or folder by its name (patterns in order of preference), at most three levels down.

    Case does not matter. Among several matches of one pattern the least nested wins, then the
    first by name.

    Raises
    ------
    InputError
        If nothing matches: says what was looked for, where, and where it is to be had.
    """
    found = find_all(source, *patterns)
    if not found:
        hint = f"; it is part of the official download ({page})" if page else ""
        archives = find_all(source, "*.zip", "*.tar", "*.tar.gz", "*.tgz")
        if archives:
            hint += f"; is it in {archives[0].name}, still to be unpacked?"
        raise InputError(f"{source}: no {what} (looked for {', '.join(patterns)}){hint}")
    return found[0]


def find_all(source: Path, *patterns: str) -> list[Path]:
    """Find all files and folders by name, best first (see `find`); empty if there are none."""
    wanted = [re.compile(translate(pattern.lower())) for pattern in patterns]
    levels = [_listed(source, wanted)]
    for _ in range(_DEPTH):
        folders = (path for path in levels[-1] if path.is_dir())
        levels.append([path for folder in folders for path in _listed(folder, wanted)])
    return [
        path
        for pattern in wanted
        for level in levels
        for path in level
        if pattern.match(path.name.lower())
    ]


def image_references(
    root: Path, places: Sequence[Path], *, suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> dict[str, str]:
    """Map the stem of each image in zip archives and folders (and below) to its reference.

    The first place that has a stem wins, so name the preferred place first.
    """
    found: dict[str, str] = {}
    for place in places:
        relative = place.relative_to(root).as_posix()
        if place.is_dir():
            prefix = "" if relative == "." else f"{relative}/"
            members = ((name, f"{prefix}{name}") for name in files_below(place))
        else:
            members = ((name, f"{relative}{MEMBER}{name}") for name in zip_names(place))
        for name, reference in members:
            stem, suffix = os.path.splitext(name.rsplit("/", 1)[-1])
            if suffix.lower() in suffixes:
                found.setdefault(stem, reference)
    return found


def zip_names(path: Path) -> list[str]:
    """List the files in a zip archive; a damaged one is an `InputError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no readable zip archive ({error}); download it again") from None
    return [name for name in names if not name.endswith("/") and not _is_junk(name)]


def attach_images(
    table: pd.DataFrame,
    references: Mapping[str, str],
    key: str,
    *,
    where: str,
    allow_missing: bool = False,
) -> tuple[pd.DataFrame, dict[str, object]]:
    """Add the column `image`; rows whose image is nowhere are refused, or dropped and listed.

    Parameters
    ----------
    table
        With the column `key`, the stem of each row's image.
    references
        From `image_references`.
    where
        What error messages call the place that was searched.
    allow_missing
        Whether rows without an image are dropped.

    Returns
    -------
    tuple
        The rows that have an image, and a note for the provenance (empty if nothing is missing).
    """
    image = table[key].astype(str).map(references)
    return _without_missing(
        table.assign(image=image), image.notna().to_numpy(), table[key], where, allow_missing
    )


def _without_missing(
    table: pd.DataFrame, there: np.ndarray, names: pd.Series, where: str, allow_missing: bool
) -> tuple[pd.DataFrame, dict[str, object]]:
    if there.all():
        return table.reset_index(drop=True), {}
    missing = names[~there].astype(str).tolist()
    if not allow_missing:
        raise InputError(
            f"{where}: {len(missing):,} of {len(table):,} images are missing, the first is "
            f"{missing[0]!r}; complete the download, or leave their rows out with "
            "-o data.options.allow_missing=true (prepare: --on-missing-image skip)"
        )
    if len(missing) == len(table):
        raise InputError(f"{where}: not one of the {len(table):,} images is there")
    return table[there].reset_index(drop=True), {"missing": missing}


def check_references(
    table: pd.DataFrame, root: Path, *, allow_missing: bool = False
) -> tuple[pd.DataFrame, dict[str, object]]:
    """Check the references of the column `image`; rows without a file are refused or dropped.

    Members of zip archives are looked up; of other containers only the file is.

    Returns
    -------
    tuple
        As of `attach_images`.
    """
    members: dict[str, set[str]] = {}

    def is_there(image: str) -> bool:
        reference = Reference.parse(image)
        path = f"{root}{os.sep}{reference.path}"
        if reference.member is None or not path.lower().endswith(".zip"):
            return os.path.isfile(path)
        if not os.path.isfile(path):
            return False
        if path not in members:
            members[path] = set(zip_names(Path(path)))
        return reference.member.split(MEMBER)[0] in members[path]

    there = np.fromiter((is_there(image) for image in table["image"]), bool, len(table))
    return _without_missing(table, there, table["image"], str(root), allow_missing)


def _listed(folder: Path, wanted: Sequence[re.Pattern[str]]) -> list[Path]:
    """List a folder; one of images, or with a folder a patient, only as far as names are wanted."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from None
    if len(names) > _MANY:
        names = [name for name in names if any(p.match(name.lower()) for p in wanted)]
    return [folder / name for name in names]


def files_below(folder: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder, relative to it, in a fixed order."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        relative = os.path.relpath(place, folder)
        prefix = "" if relative == "." else f"{relative}/".replace(os.sep, "/")
        yield from (prefix + name for name in sorted(files) if not _is_junk(prefix + name))


def _is_junk(name: str) -> bool:
    return name.startswith(_JUNK[0]) or name.rsplit("/", 1)[-1].startswith(_JUNK[1])
