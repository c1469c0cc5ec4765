"""Readers for DICOM and for slices of NIfTI and Analyze volumes (the extra `fairtune[medical]`)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from fairtune.data.images import ImageError, as_rgb, check_pixels, missing_extra

_PERCENTILE = 99.5  # of a slice's voxels; a few bright vessels would darken all the rest


def decode_dicom(data: bytes, name: str, window: tuple[float, float] | None = None) -> np.ndarray:
    """Decode a single-frame DICOM image to (H, W, 3) uint8.

    The modality transform comes first, then `window`, else the file's own (the first, if it has
    several), else the whole range of its values. MONOCHROME1 is inverted, so that in every result
    more signal is brighter.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import (
            apply_color_lut,
            apply_modality_lut,
            apply_voi_lut,
        )
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
            array = apply_voi_lut(array, dataset)
            window = (float(array.min()), float(array.max()))
        image = as_rgb(np.asarray(array, np.float32), name, window)
    except ImageError:
        raise
    except Exception as error:  # pydicom raises nearly anything on damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(name, f"is no readable DICOM image: {reason}") from None
    return 255 - image if kind == "MONOCHROME1" else image


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
        The values that become 0 and 255; by default from the least to the 99.5th percentile.

    Returns
    -------
    np.ndarray
        Shape (Y, X, 3), uint8, with the volume's second axis upwards as radiologists look at it.
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
    if window is None:
        window = (float(array.min()), float(np.percentile(array, _PERCENTILE)))
    return as_rgb(array, name, window)
