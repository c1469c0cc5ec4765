"""Decoding: the bytes of any image a clinic or a web page has, to (H, W, 3) uint8.

Used for files and, on a server, for what strangers send: sizes are checked in the header before
anything is decoded, nothing is unpickled, and every failure is an `ImageError` with its reason.
Only NumPy and Pillow are needed; DICOM wants the extra `fairtune[medical]`.
"""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fairtune.errors import InputError

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
"""Images with more pixels are refused: 89 million, Pillow's own limit, about 9,459 by 9,459."""

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
EMPTY = "the file is empty"
NOT_FINITE = "holds values that are not finite"
TOO_LARGE = "has {pixels:,} pixels, the limit is {limit:,}"
_MEDICAL = "needs {package}: pip install 'fairtune[medical]'"
_FULL_SCALES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits


class ImageError(InputError):
    """One image cannot be used: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return ImageError, (self.name, self.reason)


def load_image(
    data: bytes,
    size: int,
    *,
    name: str = "image",
    window: tuple[float, float] | None = None,
) -> np.ndarray:
    """Decode and resize one image exactly as the store does, so that training equals serving.

    Parameters
    ----------
    data
        The file's bytes.
    size
        Side of the square result, in pixels. The aspect ratio is not kept.

    Returns
    -------
    np.ndarray
        RGB, shape (size, size, 3), uint8.
    """
    return resize(decode_image(data, name=name, window=window, least=size), size)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (size, size, 3): bilinear, antialiased, aspect ratio not kept."""
    if image.shape[:2] == (size, size):
        return image
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def decode_image(
    data: bytes,
    *,
    name: str = "image",
    window: tuple[float, float] | None = None,
    least: int | None = None,
) -> np.ndarray:
    """Decode JPEG, PNG, TIFF, BMP, WebP, `.npy` or DICOM bytes to RGB.

    Parameters
    ----------
    data
        The file's bytes; its kind is read from them, never from a file name.
    name
        What error messages call the image.
    window
        The values that become 0 and 255, for grey images of more than 8 bits. By default see
        `to_uint8`; DICOM brings its own window.
    least
        A side that is wanted in the end: a JPEG more than four times as large is decoded at a half,
        a quarter or an eighth of its size, never below twice this side.

    Returns
    -------
    np.ndarray
        Shape (H, W, 3), uint8, upright as its EXIF says; transparency lies on white.

    Raises
    ------
    ImageError
        If the data is empty, truncated, too large, of many frames or of no known kind.
    """
    if not data:
        raise ImageError(name, EMPTY)
    if data[:6] == b"\x93NUMPY":
        return as_rgb(read_npy(io.BytesIO(data), name), name, window)
    if data[128:132] == b"DICM":
        from fairtune.data.medical import decode_dicom

        return decode_dicom(data, name, window)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, name)
            return _pixels(image, name, window, least)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(name, f"has too many pixels, the limit is {MAX_PIXELS:,}") from None
    except UnidentifiedImageError:
        kinds = ", ".join([*FORMATS, "NPY", "DICOM"])
        raise ImageError(name, f"is damaged or of an unknown kind (known: {kinds})") from None
    except MemoryError:
        raise ImageError(name, "does not fit into memory") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged data
        if "truncated" in str(error).lower():
            raise ImageError(name, "is truncated") from None
        raise ImageError(name, f"cannot be decoded: {error or type(error).__name__}") from None


def _check_header(image: Image.Image, name: str) -> None:
    check_pixels(image.size, name)
    # Not `n_frames`, which walks a TIFF's whole chain of directories, at a cost of its length squared.
    several = getattr(image, "is_animated", False)
    if several and image.format != "MPO":  # MPO: a camera's JPEG with a preview behind it
        raise ImageError(name, "has several frames; give one image a file")


def _pixels(
    image: Image.Image, name: str, window: tuple[float, float] | None, least: int | None
) -> np.ndarray:
    if least is not None and image.format == "JPEG" and min(image.size) > 4 * least:
        image.draft(None, (2 * least, 2 * least))
    image.load()
    with contextlib.suppress(Exception):  # a broken EXIF block does not spoil the pixels
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return as_rgb(np.asarray(image), name, window)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def check_pixels(shape: tuple[int, ...], name: str) -> None:
    """Refuse an image of more than `MAX_PIXELS` values per channel, or of none."""
    pixels = math.prod(shape)
    if pixels > MAX_PIXELS:
        raise ImageError(name, TOO_LARGE.format(pixels=pixels, limit=MAX_PIXELS))
    if pixels <= 0:
        raise ImageError(name, f"has no pixels, its shape is {tuple(shape)}")


def as_rgb(array: np.ndarray, name: str, window: tuple[float, float] | None = None) -> np.ndarray:
    """Make (H, W), (H, W, 1), (H, W, 3) or (3, H, W) of any number type to (H, W, 3) uint8."""
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise ImageError(name, f"has shape {array.shape}; wanted (H, W), (H, W, 3) or (3, H, W)")
    check_pixels(array.shape[:2], name)
    grey = to_uint8(array, name, window)
    return np.ascontiguousarray(np.broadcast_to(grey, (*grey.shape[:2], 3)))


def to_uint8(array: np.ndarray, name: str, window: tuple[float, float] | None = None) -> np.ndarray:
    """Scale any numbers to 0..255 by a rule that treats the images of one data set alike.

    With a window, its ends become 0 and 255. Without one: uint8 stays; booleans become 0 and 255;
    non-negative integers are divided by the least full scale of 8, 10, 12, 14 or 16 bits that holds
    them; floats within 0..1 are multiplied by 255; all else is stretched from its own least to its
    own greatest value.
    """
    if array.dtype.kind not in "buif":
        raise ImageError(name, f"holds {array.dtype}, not numbers")
    if window is None:
        if array.dtype == np.uint8:
            return array
        window = _natural_window(array, name)
    low, high = window
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(name, NOT_FINITE)
    if not high > low:
        return np.zeros(array.shape, np.uint8)
    scaled = (array.astype(np.float32) - low) * (255.0 / (high - low))
    if not np.isfinite(scaled).all():
        raise ImageError(name, NOT_FINITE)
    result: np.ndarray = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return result


def _natural_window(array: np.ndarray, name: str) -> tuple[float, float]:
    if array.dtype == bool:
        return 0.0, 1.0
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(name, NOT_FINITE)
    if array.dtype.kind in "ui" and low >= 0 and high <= _FULL_SCALES[-1]:
        return 0.0, float(next(scale for scale in _FULL_SCALES if high <= scale))
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high


def read_npy(stream: BinaryIO | Any, name: str) -> np.ndarray:
    """Read an array in NumPy's format; its header is checked first, and nothing is unpickled."""
    try:
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read_header(stream)
        if dtype.hasobject:
            raise ImageError(name, "holds pickled Python objects, which are never loaded")
        if shape:  # a single value has no shape
            check_pixels(shape[:-1] if len(shape) == 3 and shape[-1] <= 4 else shape, name)
        wanted = math.prod(shape) * dtype.itemsize
        body = stream.read(wanted)
        if len(body) != wanted:
            raise ImageError(name, f"is truncated: {len(body):,} of {wanted:,} bytes")
        return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
    except ImageError:
        raise
    except Exception as error:  # a hostile header makes NumPy's parser raise nearly anything
        raise ImageError(name, f"is no readable array: {error}") from None


def missing_extra(name: str, package: str) -> ImageError:
    """Build the error for an image whose reader is not installed."""
    return ImageError(name, _MEDICAL.format(package=package))
