"""Readers for DICOM and for slices of NIfTI and Analyze volumes (the extra `fairtune[medical]`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairtune.data.images import NOT_FINITE, ImageError, as_rgb, check_pixels, missing_extra

_PERCENTILE = 99.5  # of a slice's voxels; a few bright vessels would darken all the rest
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def decode_dicom(data: bytes, name: str, window: tuple[float, float] | None = None) -> np.ndarray:
    """Decode a single-frame DICOM image to (H, W, 3) uint8.

    The modality transform comes first, then `window`, else the file's own VOI look-up table or
    window (the first, if it has several). Either maps one range of values to 0..255 in all images
    that declare it; only a file that has neither is stretched from its own least to its own greatest
    value. MONOCHROME1 is inverted, so that in every result more signal is brighter.

    References
    ----------
    DICOM PS3.3, C.11.2.1.1 (look-up tables) and C.11.2.1.2 and C.11.2.1.3 (windows).
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
        from pydicom.pixels.utils import pixel_array
    except ImportError:
        raise missing_extra(name, "pydicom") from None
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        if "PixelData" not in dataset:
            raise ImageError(name, "is a DICOM file without an image")
        frames = int(dataset.get("NumberOfFrames", 1) or 1)
        if frames > 1:
            raise ImageError(name, f"is a DICOM file of {frames} frames; export one frame a file")
        check_pixels((int(dataset.Rows), int(dataset.Columns)), name)
        array = pixel_array(dataset)
        kind = str(dataset.PhotometricInterpretation)
        if kind == "PALETTE COLOR":
            array = apply_color_lut(array, dataset)
        if array.ndim == 3:
            return as_rgb(array, name)
        array = apply_modality_lut(array, dataset)
        if window is None:
            array, window = _as_the_file_says(array, dataset, name)
        image = as_rgb(np.asarray(array, np.float32), name, window)
    except ImageError:
        raise
    except Exception as error:  # pydicom raises nearly anything on damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(name, f"is no readable DICOM image: {reason}") from None
    return 255 - image if kind == "MONOCHROME1" else image


def _as_the_file_says(
    array: np.ndarray, dataset: Any, name: str
) -> tuple[np.ndarray, tuple[float, float]]:
    """Apply the file's own look-up table or window; returns values, and which are black and white."""
    tables = dataset.get("VOILUTSequence")
    if tables and "LUTDescriptor" in tables[0] and "LUTData" in tables[0]:
        return _looked_up(array, tables[0], dataset.original_encoding[1] is not False)
    center, width = (_first(dataset.get(tag)) for tag in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return array, (float(array.min()), float(array.max()))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function not in _FUNCTIONS or not width > 0 or (function == "LINEAR" and width < 1):
        raise ImageError(name, f"has a window of no known kind: {function}, {width:g} wide")
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
        if width == 0:  # a step
            return array > center, (0.0, 1.0)
    if function == "SIGMOID":  # 1 / (1 + exp(-4 (x - center) / width)), scaled to -1..1
        return np.tanh(2 * (array - center) / width), (-1.0, 1.0)
    return array, (center - width / 2, center + width / 2)


def _looked_up(
    array: np.ndarray, item: Any, little_endian: bool
) -> tuple[np.ndarray, tuple[float, float]]:
    """Apply a VOI look-up table, whose range is 0 to the largest number of its bits.

    Not by pydicom's `apply_voi`, which counts a table's entries in as many bits as they have: all is
    black where a table of 4,096 entries has 8.
    """
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    table = item.LUTData
    if isinstance(table, bytes):
        packed = bits == 8 and len(table) < 2 * (entries or 1 << 16)
        table = np.frombuffer(table, "u1" if packed else "<u2" if little_endian else ">u2")
    index = np.clip(np.rint(array) - first, 0, len(table) - 1).astype(np.intp)
    return np.asarray(table)[index], (0.0, 2.0**bits - 1)


def _first(value: Any) -> float | None:
    """Return the first of one or several numbers, None where there is none."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return None if not values or values[0] in (None, "") else float(values[0])


def read_slices(
    path: Path, name: str, first: int, last: int, window: tuple[float, float] | None = None
) -> np.ndarray:
    """Read one slice along the third axis as grey, or three neighbours as the three channels.

    Parameters
    ----------
    path
        A NIfTI (`.nii`, `.nii.gz`) or Analyze (`.hdr` beside `.img`) volume.
    first, last
        Indices of the first and the last slice: equal, or two apart.
    window
        The values that become 0 and 255; by default from the least to the 99.5th percentile of
        those that are numbers. NaN, which marks what is outside a mask, becomes 0.

    Returns
    -------
    np.ndarray
        Shape (Y, X, 3), uint8, with the volume's second axis upwards as radiologists look at it.

    Raises
    ------
    ImageError
        If the volume cannot be read or has no such slice; if no value is finite, or one is infinite.
    """
    if last - first not in (0, 2):
        raise ImageError(name, f"takes one slice or three neighbours, not {first} to {last}")
    try:
        import nibabel
    except ImportError:
        raise missing_extra(name, "nibabel") from None
    try:
        volume: Any = nibabel.load(path)
        shape = volume.shape
        if len(shape) == 4 and shape[3] == 1:
            shape = shape[:3]
        if len(shape) != 3 or not 0 <= first <= last < shape[2]:
            raise ImageError(name, f"the volume's shape is {volume.shape}: no slice {first}-{last}")
        check_pixels(shape[:2], name)
        cut = (slice(None), slice(None), slice(first, last + 1))
        array = np.asarray(volume.dataobj[cut if len(volume.shape) == 3 else (*cut, 0)])
    except ImageError:
        raise
    except Exception as error:  # nibabel raises nearly anything on damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(name, f"is no readable volume: {reason}") from None
    array = np.rot90(np.asarray(array, np.float32))  # (X, Y, slices) -> (Y, X, slices), Y upwards
    finite = array[np.isfinite(array)]
    if not finite.size:
        raise ImageError(name, NOT_FINITE)
    if window is None:
        window = (float(finite.min()), float(np.percentile(finite, _PERCENTILE)))
    return as_rgb(np.where(np.isnan(array), np.float32(window[0]), array), name, window)
