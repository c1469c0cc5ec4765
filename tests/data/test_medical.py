"""DICOM and volumes: windows, inverted greys, colour, masks, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairtune.data.images import ImageError, decode_image
from fairtune.data.references import ImageReader

from .official import pixels

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")


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


WINDOW = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_one_window_is_one_contrast_whatever_else_is_in_the_image(kind: str, function: str) -> None:
    from pydicom.pixels.processing import apply_windowing

    tags = WINDOW | {"VOILUTFunction": function}
    soft = np.full((16, 16), 1064, np.uint16)  # 40 units alone
    soft[0, :4] = 1024, 1100, 1200, 1263
    whole = RAMP.copy()
    whole[0, :4], whole[1, 0] = soft[0, :4], soft[1, 0]
    alone, among = (decode_image(dicom(array, kind, **tags))[..., 0] for array in (soft, whole))
    assert np.array_equal(alone[0, :4], among[0, :4])
    assert alone[1, 0] == among[1, 0]
    dataset = pydicom.dcmread(io.BytesIO(dicom(whole, "MONOCHROME2", **tags)))
    dataset.BitsStored = 12  # what the output range is told from
    shown = apply_windowing(whole.astype(float) - 1024, dataset)
    expected = (shown + 1024) * (255 / 4095)
    expected = 255 - expected if kind == "MONOCHROME1" else expected
    assert np.abs(among - expected).max() <= 0.51


def test_a_window_that_is_a_step() -> None:
    decoded = decode_image(dicom(RAMP, WindowCenter=160.5, WindowWidth=1))
    assert np.array_equal(decoded[..., 0], np.where(RAMP > 160, 255, 0))


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 40, "WindowWidth": 0},
        {"WindowCenter": 40, "WindowWidth": 0.5},
        {"WindowCenter": 40, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "CUBIC"},
    ],
)
def test_a_window_of_no_known_kind_is_refused(tags: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="has a window of no known kind"):
        decode_image(dicom(RAMP, **tags))


@pytest.mark.parametrize("tag", ["WindowCenter", "WindowWidth"])
def test_half_a_window_is_none(tag: str) -> None:
    assert np.array_equal(decode_image(dicom(RAMP, **{tag: 40})), decode_image(dicom(RAMP)))
    both = {"WindowCenter": None, "WindowWidth": None}
    assert np.array_equal(decode_image(dicom(RAMP, **both)), decode_image(dicom(RAMP)))


def look_up_table(entries: int, bits: int, first: int = 0) -> dict[str, Any]:
    """Make the tags of a VOI look-up table that is a ramp over its entries."""
    item = pydicom.Dataset()
    item.LUTDescriptor = [entries, first, bits]
    item.LUTData = (np.arange(entries) * (2**bits - 1) // (entries - 1)).astype(np.uint16).tolist()
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return {"VOILUTSequence": pydicom.Sequence([item])}


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("rescaled", [False, True])
def test_a_look_up_table_has_the_range_of_its_bits(bits: int, rescaled: bool) -> None:
    tags = look_up_table(4096, bits) | {"WindowCenter": 40, "WindowWidth": 400}
    tags |= {"RescaleSlope": 1, "RescaleIntercept": 0} if rescaled else {}
    dark = decode_image(dicom((RAMP // 4), **tags))[..., 0]
    assert np.abs(dark - (RAMP // 4) * (255 / 4095)).max() <= 1
    assert np.array_equal(decode_image(dicom(RAMP // 4, "MONOCHROME1", **tags))[..., 0], 255 - dark)


def test_a_look_up_table_begins_at_its_first_value_and_holds_its_ends() -> None:
    decoded = decode_image(dicom(RAMP, **look_up_table(1001, 16, first=1000)))[..., 0]
    expected = np.clip((RAMP.astype(int) - 1000) / 1000, 0, 1) * 255
    assert np.abs(decoded - expected).max() <= 1


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


def masked(folder: Path, outside: float) -> np.ndarray:
    """Write a volume of ten slices whose values stand in a mask; returns them, (8, 9, 10)."""
    volume = np.arange(8 * 9 * 10, dtype=np.float32).reshape(8, 9, 10) + 100
    volume[:2] = outside
    volume[:, :, 7] = np.nan
    nibabel.Nifti1Image(volume, np.eye(4)).to_filename(folder / "masked.nii")
    return volume


@pytest.mark.parametrize("window", ["", "?window=300,800", "?window=-50,800"])
@pytest.mark.parametrize("slices", ["4", "3-5", "6-8"])
def test_nan_outside_a_mask_is_black_and_the_rest_keeps_its_contrast(
    tmp_path: Path, window: str, slices: str
) -> None:
    volume = masked(tmp_path, np.nan)
    first, last = int(slices[0]), int(slices[-1])
    cut = np.rot90(volume[:, :, first : last + 1])
    inside = np.isfinite(cut)
    low, high = cut[inside].min(), np.percentile(cut[inside], 99.5)
    if window:
        low, high = (float(end) for end in window.partition("=")[2].split(","))
    with ImageReader(tmp_path) as reader:
        image = reader.read(f"masked.nii::{slices}{window}")
    expected = np.clip((np.where(inside, cut, low) - low) * (255 / (high - low)), 0, 255)
    assert np.abs(image - expected).max() <= 0.51
    assert (image[np.broadcast_to(~inside, image.shape)] == 0).all()
    assert image.max() > 100


@pytest.mark.parametrize("window", ["", "?window=0,800"])
def test_a_slice_without_a_finite_value_or_with_an_infinite_one_is_refused(
    tmp_path: Path, window: str
) -> None:
    masked(tmp_path, np.inf)
    with ImageReader(tmp_path) as reader:
        for number in (7, 4):
            with pytest.raises(ImageError, match="holds values that are not finite"):
                reader.read(f"masked.nii::{number}{window}")
