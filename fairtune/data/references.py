"""Reading an image by its reference: a string relative to a root folder that it cannot leave.

A reference is one of

- ``folder/image.jpg``: a file (JPEG, PNG, TIFF, BMP, WebP, `.npy`, DICOM);
- ``images.zip::folder/image.jpg``: the same inside a zip archive;
- ``map.npz::key``: one array of an `.npz` file;
- ``maps.zip::folder/map.npz::key``: the same inside a zip archive;
- ``slices.h5::key``: one data set of an HDF5 file;
- ``images.npy::17``: row 17 of an (N, H, W) or (N, H, W, 3) array, read by memory map;
- ``volume.nii.gz::87`` or ``volume.hdr::86-88``: an axial slice, or three neighbours as channels.

A window, which maps two values to 0 and 255, may follow: ``slices.h5::key?window=-160,240``.
"""

from __future__ import annotations

import io
import os
import re
import threading
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fairtune.data.images import (
    EMPTY,
    ImageError,
    as_rgb,
    check_pixels,
    decode_image,
    missing_extra,
    read_npy,
)
from fairtune.errors import InputError

MEMBER = "::"
MAX_BYTES = 1 << 30
"""A file (or an archive's member, unpacked) of more bytes than this is refused."""

ESCAPES = "lies outside the data set's folder"
_WINDOW = re.compile(r"\?window=(-?\d+(?:\.\d+)?),(-?\d+(?:\.\d+)?)$")
_SLICES = re.compile(r"(\d+)(?:-(\d+))?$")
_VOLUMES = (".nii", ".nii.gz", ".hdr", ".img")
_HDF5 = (".h5", ".hdf5")


@dataclass(frozen=True)
class Reference:
    """The parts of a reference: the file, the member within it, the window."""

    path: str
    member: str | None
    window: tuple[float, float] | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Take a reference apart; any string is one."""
        window = None
        if match := _WINDOW.search(text):
            window = (float(match[1]), float(match[2]))
            text = text[: match.start()]
        path, mark, member = text.partition(MEMBER)
        return cls(path, member if mark else None, window)


def common_window(references: Iterable[str]) -> tuple[float, float] | None:
    """Return the window of all these images; raises `InputError` where they have several."""
    windows = {Reference.parse(reference).window for reference in references}
    if len(windows) > 1:
        told = ", ".join(sorted("none" if w is None else f"{w[0]:g},{w[1]:g}" for w in windows)[:5])
        raise InputError(
            f"the images are read through several windows ({told}), and a served model knows one: give "
            "all the same, or do not register (register.name=null)"
        )
    return windows.pop() if windows else None


def confined(root: Path, path: str, name: str) -> Path:
    """Resolve `path` under `root` (itself resolved), links included; refuse whatever leads out."""
    pure = PurePosixPath(path)
    if not path or "\0" in path or "\\" in path or pure.is_absolute() or ".." in pure.parts:
        raise ImageError(name, ESCAPES)
    try:
        full = (root / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ImageError(name, f"cannot be reached: {error}") from None
    if not full.is_relative_to(root):
        raise ImageError(name, ESCAPES)
    return full


def files_of(path: str) -> tuple[str, ...]:
    """Name the files that hold what a reference's path names: an Analyze volume lies in two."""
    stem, suffix = os.path.splitext(path)
    other = {".hdr": ".img", ".img": ".hdr", ".HDR": ".IMG", ".IMG": ".HDR"}.get(suffix)
    return (path, f"{stem}{other}") if other else (path,)


class ImageReader:
    """Reads images by reference; keeps containers open, one handle a thread.

    Parameters
    ----------
    root
        The folder that references are relative to.

    Examples
    --------
    >>> with ImageReader(Path("data")) as reader:
    ...     image = reader.read("part_1.zip::image_1.jpg")  # (H, W, 3) uint8
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).resolve()
        self._local = threading.local()
        self._opened: list[Any] = []
        self._containers: dict[str, Path] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every container of every thread."""
        with self._lock:
            for container in self._opened:
                if hasattr(container, "close"):
                    container.close()
            self._opened.clear()
            self._local = threading.local()

    def read(self, reference: str, least: int | None = None) -> np.ndarray:
        """Return the image as (H, W, 3) uint8; `least` as in `fairtune.data.images.decode_image`.

        Raises
        ------
        ImageError
            If it is missing, damaged, too large, outside the root, or its reader is not installed.
        """
        parts = Reference.parse(reference)
        path = self._path(parts, reference)
        suffix = path.name.lower()
        if parts.member is None:
            data = _read_file(path, reference)
            return decode_image(data, name=reference, window=parts.window, least=least)
        if suffix.endswith(".zip"):
            member, inner, key = parts.member.partition(MEMBER)
            data = self._zip_member(path, member, reference)
            if inner:
                return as_rgb(_npz_array(io.BytesIO(data), key, reference), reference, parts.window)
            return decode_image(data, name=reference, window=parts.window, least=least)
        if suffix.endswith(_VOLUMES):
            return self._slices(path, parts, reference)
        if suffix.endswith(".npz"):
            # One image a file is the rule for .npz, so the archive is not kept open.
            array = _npz_array(path, parts.member, reference)
        elif suffix.endswith(".npy"):
            array = self._row(path, parts.member, reference)
        elif suffix.endswith(_HDF5):
            array = self._hdf5_member(path, parts.member, reference)
        else:
            raise ImageError(reference, "is no container that is known (zip, npz, npy, h5, nii)")
        return as_rgb(array, reference, parts.window)

    def raw(self, reference: str) -> bytes:
        """Return bytes that two references share if they hold one image."""
        parts = Reference.parse(reference)
        path = self._path(parts, reference)
        if parts.member is None:
            return _read_file(path, reference)
        if path.name.lower().endswith(".zip") and MEMBER not in parts.member:
            return self._zip_member(path, parts.member, reference)
        return self.read(reference).tobytes()  # another array may be in the same file

    def npz_values(self, reference: str, keys: Sequence[str]) -> dict[str, str]:
        """Return single values of an `.npz` file (in a zip archive or not) as text.

        Raises
        ------
        ImageError
            If the file is unreadable, or lacks a key, or has an array there.
        """
        data = io.BytesIO(self.raw(reference))
        found = {}
        for key in keys:
            array = _npz_array(data, key, reference)
            if array.size != 1:
                raise ImageError(reference, f"{key!r} has shape {array.shape}, not one value")
            found[key] = str(array.reshape(-1)[0])
        return found

    def _path(self, parts: Reference, reference: str) -> Path:
        """Confine the path; a container's is kept, as thousands of references name the same."""
        if parts.member is None:
            return confined(self.root, parts.path, reference)
        if parts.path not in self._containers:
            self._containers[parts.path] = confined(self.root, parts.path, reference)
        return self._containers[parts.path]

    def _container(self, path: Path, reference: str, opener: Any) -> Any:
        opened = self._local.__dict__.setdefault("containers", {})
        if path not in opened:
            if not path.is_file():
                raise ImageError(reference, "no such file")
            try:
                container = opener(path)
            except ImageError:
                raise
            except Exception as error:  # each format's library has its own errors
                raise ImageError(reference, f"{path.name} cannot be opened: {error}") from None
            opened[path] = container
            with self._lock:
                self._opened.append(container)
        return opened[path]

    def _zip_member(self, path: Path, member: str, reference: str) -> bytes:
        return _unzip(self._container(path, reference, zipfile.ZipFile), member, reference)

    def _row(self, path: Path, member: str, reference: str) -> np.ndarray:
        array = self._container(path, reference, _map_rows)
        if not member.isascii() or not member.isdigit() or int(member) >= len(array):
            raise ImageError(reference, f"wanted a row from 0 to {len(array) - 1}")
        check_pixels(array.shape[1:3], reference)
        return np.array(array[int(member)])

    def _hdf5_member(self, path: Path, member: str, reference: str) -> np.ndarray:
        try:
            import h5py
        except ImportError:
            raise missing_extra(reference, "h5py") from None
        file = self._container(path, reference, lambda path: h5py.File(path, "r"))
        try:
            if isinstance(file.get(member, getlink=True), h5py.ExternalLink):
                raise ImageError(reference, ESCAPES)
            found = file.get(member)
            if not isinstance(found, h5py.Dataset):
                raise ImageError(reference, f"{path.name} has no data set {member!r}")
            elsewhere = Path(found.file.filename).resolve() != path
            if elsewhere or found.external or found.is_virtual:
                raise ImageError(reference, ESCAPES)
            check_pixels(found.shape[:-1] if found.ndim == 3 else found.shape, reference)
            return np.asarray(found[()])
        except ImageError:
            raise
        except Exception as error:  # h5py raises nearly anything on damaged data
            raise ImageError(reference, f"cannot be read: {error}") from None

    def _slices(self, path: Path, parts: Reference, reference: str) -> np.ndarray:
        match = _SLICES.match(parts.member or "")
        if not match:
            raise ImageError(
                reference, "wanted a slice like ::87, or three neighbours like ::86-88"
            )
        if not path.is_file():
            raise ImageError(reference, "no such file")
        from fairtune.data.medical import read_slices

        return read_slices(path, reference, int(match[1]), int(match[2] or match[1]), parts.window)


def _npz_array(file: Path | io.BytesIO, key: str, reference: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(file) as archive:
            data = _unzip(archive, f"{key}.npy", reference)
    except FileNotFoundError:
        raise ImageError(reference, "no such file") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise ImageError(reference, f"is no readable .npz file: {error}") from None
    return read_npy(io.BytesIO(data), reference)


def _map_rows(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (3, 4):
        raise ValueError(f"wanted shape (N, H, W) or (N, H, W, 3), got {array.shape}")
    return array


def _read_file(path: Path, reference: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ImageError(reference, "no such file") from None
    except OSError as error:
        raise ImageError(reference, f"cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise ImageError(reference, f"has more than {MAX_BYTES:,} bytes")
    return data


def _unzip(archive: zipfile.ZipFile, member: str, reference: str) -> bytes:
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise ImageError(reference, f"the archive has no {member!r}") from None
    if info.file_size > MAX_BYTES:
        raise ImageError(reference, f"has more than {MAX_BYTES:,} bytes")
    if info.file_size == 0:
        raise ImageError(reference, EMPTY)
    try:
        with archive.open(info) as file:
            return file.read(MAX_BYTES)
    except Exception as error:  # zlib, CRC, encryption: all of its own kind
        raise ImageError(reference, f"cannot be unpacked: {error}") from None
