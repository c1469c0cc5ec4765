"""Decoding: every kind that a clinic has, and every way to be refused."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from fairtune.data.images import ImageError, as_rgb, decode_image, load_image, resize, to_uint8

from .official import encoded, pixels


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def hostile(shape: tuple[int, ...], descr: Any, n_bytes: int) -> bytes:
    """Make an array file whose header promises what no array is."""
    buffer = io.BytesIO()
    facts = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue() + bytes(n_bytes)


def chain(count: int) -> bytes:
    """Make a TIFF of one pixel and a chain of so many directories."""
    tags = {0x0100: 1, 0x0101: 1, 0x0106: 1, 0x0111: 8, 0x0117: 1}  # width, length, grey, strip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    size = 2 + len(entries) + 4
    nexts = [8 + size * (number + 1) for number in range(count - 1)] + [0]
    directories = (struct.pack("<H", len(tags)) + entries + struct.pack("<I", n) for n in nexts)
    return b"II*\0" + struct.pack("<I", 8) + b"".join(directories)


RGB = Image.fromarray(pixels(1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
def test_lossless_kinds_come_back_exactly(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode_image(saved(RGB, kind, **options)), pixels(1))


def test_jpeg_comes_back_closely() -> None:
    smooth = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (1, 64, 3)))
    decoded = decode_image(saved(smooth, "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - np.asarray(smooth)).max() < 8


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA", "LA", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    image = RGB.convert("L").convert("I").convert("I;16") if mode == "I;16" else RGB.convert(mode)
    decoded = decode_image(saved(image, kind))
    assert decoded.shape == (24, 32, 3)
    assert decoded.dtype == np.uint8
    assert decoded.std() > 5


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert (decode_image(saved(clear, "PNG")) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.zeros((16, 32, 3), np.uint8)
    array[:8, :8] = 255  # the upper left corner as it is stored
    decoded = decode_image(saved(Image.fromarray(array), "PNG", exif=exif))
    corner = {
        1: (0, 0),
        2: (0, 1),
        3: (1, 1),
        4: (1, 0),
        5: (0, 0),
        6: (0, 1),
        7: (1, 1),
        8: (1, 0),
    }
    bright = (
        decoded[:4].mean() < decoded[-4:].mean(),
        decoded[:, :4].mean() < decoded[:, -4:].mean(),
    )
    assert tuple(int(side) for side in bright) == corner[orientation]
    assert decoded.shape[:2] == ((32, 16) if orientation >= 5 else (16, 32))


def test_broken_exif_does_not_spoil_the_pixels() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"
    assert decode_image(saved(RGB, "JPEG", exif=exif)).shape == (24, 32, 3)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_grey_is_divided_by_its_full_scale(bits: int) -> None:
    top = 2**bits - 1
    deep = np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)
    decoded = decode_image(saved(Image.fromarray(deep), "PNG"))
    assert decoded.max() == 255
    assert np.abs(decoded[..., 0] - deep * (255 / top)).max() <= 0.5


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[True, False]]), [255, 0]),
        (np.array([[0.0, 0.5]]), [0, 128]),
        (np.array([[-100.0, 300.0]]), [0, 255]),
        (np.array([[7.0, 7.0]]), [0, 0]),
        (np.array([[-5, 5]], np.int16), [0, 255]),
    ],
)
def test_arrays_are_scaled_by_the_rule(array: np.ndarray, expected: list[int]) -> None:
    assert decode_image(npy(array))[0, :, 0].tolist() == expected


def test_window_clips() -> None:
    scaled = to_uint8(np.array([[-1000.0, -160.0, 40.0, 240.0, 3000.0]]), "x", (-160, 240))
    assert scaled.tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("window", [(np.nan, np.nan), (0.0, np.inf), (-np.inf, 0.0), (np.nan, 1.0)])
def test_a_window_that_is_not_finite_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(ImageError, match="x: holds values that are not finite"):
        to_uint8(np.array([[0.0, 1.0]]), "x", window)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3), (1, 5, 6), (3, 5, 6)])
def test_array_shapes(shape: tuple[int, ...]) -> None:
    assert as_rgb(np.zeros(shape, np.uint8), "x").shape == (5, 6, 3)


def test_resize_is_bilinear_and_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    small = resize(stripes, 16)
    assert small.shape == (16, 16, 3)
    assert np.abs(small.astype(int) - 128).max() < 20, "aliasing would give black or white"
    assert resize(stripes, 64) is stripes


def test_big_jpeg_is_decoded_small_and_alike() -> None:
    smooth = np.asarray(Image.fromarray(pixels(3, (8, 8, 3))).resize((1600, 1200), Image.BICUBIC))
    data = saved(Image.fromarray(smooth), "JPEG", quality=95)
    assert decode_image(data, least=96).shape == (300, 400, 3)
    whole = resize(decode_image(data), 96)
    assert np.abs(load_image(data, 96).astype(int) - whole).mean() < 1.5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello world, no image here", "damaged or of an unknown kind"),
        (encoded(1)[:300], "truncated|damaged"),
        (encoded(1, "PNG")[:500], "truncated"),
        (encoded(1, "PNG")[:40], "."),
        (saved(RGB, "GIF"), "unknown kind"),
        (saved(RGB, "TIFF", save_all=True, append_images=[RGB]), "several frames"),
        (saved(RGB, "PNG", save_all=True, append_images=[RGB.rotate(9)]), "several frames"),
        (saved(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(9)]), "several frames"),
        (npy(np.array([{"a": 1}]), allow_pickle=True), "pickled"),
        (npy(np.zeros((4, 4), "U3")), "not numbers"),
        (npy(np.full((4, 4), np.nan)), "not finite"),
        (npy(np.zeros((4, 4, 5))), "shape"),
        (npy(np.zeros((0, 4))), "no pixels"),
        (npy(np.zeros((9, 9)))[:-7], "truncated"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"{'descr': 1}    ", "no readable array"),
        (hostile((-4, -4), "|u1", 16), "no readable array"),
        (hostile((4, 4), "|V0", 0), "no readable array"),
        (hostile((4, 4), ("<f4", (2,)), 128), "no readable array"),
    ],
)
def test_bad_data_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=f"picture: .*({reason})") as caught:
        decode_image(data, name="picture")
    assert "\n" not in str(caught.value)


def test_a_chain_of_directories_is_refused_without_walking_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[int] = []
    real = TiffImagePlugin.ImageFileDirectory_v2.load

    def load(self: Any, file: Any) -> None:
        loaded.append(1)
        real(self, file)

    monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "load", load)
    with pytest.raises(ImageError, match="has several frames"):
        decode_image(chain(20_000))
    assert len(loaded) < 5


def test_a_camera_jpeg_with_a_preview_is_one_image() -> None:
    shown, preview = Image.fromarray(pixels(1, (32, 32, 3))), RGB
    data = saved(shown, "MPO", save_all=True, append_images=[preview])
    assert decode_image(data).shape == (32, 32, 3)


def bomb(width: int, height: int) -> bytes:
    """Make a PNG whose header promises more than memory holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1_000_000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 30_000])
def test_bombs_are_refused_before_they_are_decoded(side: int) -> None:
    with pytest.raises(ImageError, match="pixels, the limit is"):
        decode_image(bomb(side, side))


def test_array_bomb_is_refused_by_its_header() -> None:
    buffer = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": (99_999, 99_999)}
    np.lib.format.write_array_header_1_0(buffer, facts)
    with pytest.raises(ImageError, match="9,999,800,001 pixels"):
        decode_image(buffer.getvalue())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files_give_an_image_or_an_image_error(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from(SEEDS))
    mutated = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        mutated[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(mutated)))
    try:
        decoded = decode_image(bytes(mutated[:cut]))
    except ImageError:
        return
    assert decoded.ndim == 3
    assert decoded.dtype == np.uint8


SEEDS = [
    *(encoded(1, kind) for kind in ("JPEG", "PNG", "TIFF", "BMP", "WEBP")),
    npy(pixels(1)),
]


def test_decoding_needs_pillow_and_numpy_alone() -> None:
    code = (
        "import sys, fairtune.data.images; "
        "heavy = {'torch', 'pandas', 'sklearn', 'pydicom', 'nibabel', 'h5py', 'pydantic'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("a.png", "is truncated")))
    assert (error.name, error.reason, str(error)) == (
        "a.png",
        "is truncated",
        "a.png: is truncated",
    )


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"pip install 'fairtune\[medical\]'"):
        decode_image(b"\0" * 128 + b"DICM" + b"\0" * 100)
