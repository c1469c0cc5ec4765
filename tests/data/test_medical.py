"""DICOM: windows, inverted greys, colour, and what is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from fairtune.data.images import ImageError, decode_image

from .official import pixels

pydicom = pytest.importorskip("pydicom")


def dicom(array: np.ndarray, kind: str = "MONOCHROME2", **tags: Any) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = array.shape[:2]
    dataset.SamplesPerPixel = 3 if array.ndim == 3 else 1
    if array.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = kind
    dataset.BitsAllocated = dataset.BitsStored = array.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    dataset.PixelData = array.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def test_without_a_window_the_whole_range_is_shown() -> None:
    decoded = decode_image(dicom(RAMP))
    assert decoded.shape == (16, 16, 3)
    assert (decoded.min(), decoded.max()) == (0, 255)
    assert np.abs(decoded[..., 0] - RAMP * (255 / 4080)).max() <= 0.5


def test_monochrome1_is_inverted() -> None:
    assert np.array_equal(decode_image(dicom(RAMP, "MONOCHROME1")), 255 - decode_image(dicom(RAMP)))


def test_own_window_and_rescaling() -> None:
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    decoded = decode_image(dicom(RAMP, **tags))[..., 0]
    units = RAMP.astype(int) - 1024
    assert (decoded[units <= -160] == 0).all()
    assert (decoded[units >= 240] == 255).all()
    assert 120 < decoded[np.abs(units - 40).argmin() // 16, np.abs(units - 40).argmin() % 16] < 136


def test_given_window_wins() -> None:
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    decoded = decode_image(dicom(RAMP, **tags), window=(-1024, 3056))
    assert np.array_equal(decoded, decode_image(dicom(RAMP)))


def test_signed_values_and_several_windows() -> None:
    signed = (RAMP.astype(np.int32) - 2000).astype(np.int16)
    tags = {"WindowCenter": [0, 500], "WindowWidth": [4000, 10]}
    decoded = decode_image(dicom(signed, **tags))
    assert decoded.min() == 0
    assert len(np.unique(decoded)) > 200, "the first window is wide"


def test_colour() -> None:
    assert np.array_equal(decode_image(dicom(pixels(1), "RGB")), pixels(1))


def test_refusals() -> None:
    with pytest.raises(ImageError, match="12 frames"):
        decode_image(dicom(RAMP, NumberOfFrames=12))
    with pytest.raises(ImageError, match=r"truncated|readable"):
        decode_image(dicom(RAMP)[:-100])
    with pytest.raises(ImageError, match="pixels, the limit"):
        decode_image(dicom(RAMP, Rows=60_000, Columns=60_000))
    empty = pydicom.dcmread(io.BytesIO(dicom(RAMP)))
    del empty.PixelData
    buffer = io.BytesIO()
    empty.save_as(buffer)
    with pytest.raises(ImageError, match="without an image"):
        decode_image(buffer.getvalue())
    with pytest.raises(ImageError):
        decode_image(dicom(RAMP)[:140])
