"""References: every container is read, and none leads out of the root."""

from __future__ import annotations

import gzip
import os
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fairtune.data.images import ImageError
from fairtune.data.references import ImageReader, Reference, confined

from .official import encoded, pixels, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    import h5py
    import nibabel

    root = tmp_path / "root"
    write(root / "a" / "b.png", encoded(1, "PNG"))
    write(root / "why?.png", encoded(1, "PNG"))
    with zipfile.ZipFile(root / "part.zip", "w") as archive:
        archive.writestr("x/c.png", encoded(2, "PNG"))
        archive.writestr("zero.png", b"")
    np.savez(root / "maps.npz", deep=pixels(3).astype(np.uint16) * 256, bad=np.array([{}]))
    with zipfile.ZipFile(root / "maps.zip", "w") as archive:
        archive.write(root / "maps.npz", "in/maps.npz")
    np.save(root / "rows.npy", np.stack([pixels(4), pixels(5)]))
    np.save(root / "grey.npy", np.stack([pixels(4)[..., 0], pixels(5)[..., 0]]))
    with h5py.File(root / "slices.h5", "w") as file:
        file["one"] = pixels(6)[..., 0].astype(np.int16) * 10 - 1000
        file.create_group("group")
        file["out"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "s")
        file["group/out"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["s"] = pixels(7)[..., 0]
    volume = np.zeros((6, 9, 5), np.int16)
    volume[..., 1], volume[..., 2], volume[..., 3] = 10, 20, 30
    volume[0, 8, 2] = 100  # left, and far along the second axis
    nibabel.Nifti1Image(volume, np.eye(4)).to_filename(root / "brain.nii.gz")
    nibabel.AnalyzeImage(volume[..., None], np.eye(4)).to_filename(root / "brain.hdr")
    write(tmp_path / "outside.png", encoded(1, "PNG"))
    return root


def read(root: Path, reference: str) -> np.ndarray:
    with ImageReader(root) as reader:
        return reader.read(reference)


@pytest.mark.parametrize(
    ("reference", "number"),
    [
        ("a/b.png", 1),
        ("why?.png", 1),
        ("part.zip::x/c.png", 2),
        ("maps.npz::deep?window=0,65280", 3),
        ("maps.zip::in/maps.npz::deep?window=0,65280", 3),
        ("rows.npy::0", 4),
        ("rows.npy::1", 5),
    ],
)
def test_colour_images_come_back_exactly(root: Path, reference: str, number: int) -> None:
    assert np.array_equal(read(root, reference), pixels(number))


def test_grey_arrays_and_windows(root: Path) -> None:
    assert np.array_equal(read(root, "grey.npy::1")[..., 2], pixels(5)[..., 0])
    window = read(root, "slices.h5::one?window=-1000,1550")
    assert np.array_equal(window[..., 0], pixels(6)[..., 0])


@pytest.mark.parametrize("volume", ["brain.nii.gz", "brain.hdr"])
def test_slices_and_their_neighbours(root: Path, volume: str) -> None:
    three = read(root, f"{volume}::1-3?window=0,255")
    assert three.shape == (9, 6, 3)
    assert three[5, 5].tolist() == [10, 20, 30]
    assert three[0, 0].tolist() == [10, 100, 30], "the second axis points up"
    assert (read(root, f"{volume}::3?window=0,255") == 30).all()
    for wrong in ("5", "3-5", "1-2", "x", "-1"):
        with pytest.raises(ImageError):
            read(root, f"{volume}::{wrong}")


def test_parse() -> None:
    assert Reference.parse("a.png") == Reference("a.png", None, None)
    assert Reference.parse("a.h5::k?window=-2,3.5") == Reference("a.h5", "k", (-2.0, 3.5))
    assert Reference.parse("a.zip::") == Reference("a.zip", "", None)


@pytest.mark.parametrize(
    "path",
    [
        "../outside.png",
        "a/../../outside.png",
        "/etc/passwd",
        "",
        "a\\..\\b.png",
        "a\0.png",
        "link.png",
        "dir/outside.png",
    ],
)
def test_paths_that_lead_out_are_refused(root: Path, path: str) -> None:
    (root / "link.png").symlink_to(root.parent / "outside.png")
    (root / "dir").symlink_to(root.parent)
    with pytest.raises(ImageError, match="outside the data set's folder"):
        read(root, path)


def test_links_within_the_root_are_followed(root: Path) -> None:
    (root / "link.png").symlink_to("a/b.png")
    assert confined(root.resolve(), "link.png", "x") == (root / "a" / "b.png").resolve()
    (root / "loop").symlink_to("loop")
    with pytest.raises(ImageError):
        read(root, "loop")


@pytest.mark.parametrize("reference", ["slices.h5::out", "slices.h5::group/out/s"])
def test_links_out_of_a_container_are_refused(root: Path, reference: str) -> None:
    with pytest.raises(ImageError, match="outside"):
        read(root, reference)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("no.png", "no such file"),
        ("no.zip::a.png", "no such file"),
        ("no.npz::a", "no such file"),
        ("no.nii::1", "no such file"),
        ("a", "cannot be read"),
        ("part.zip::no.png", "has no 'no.png'"),
        ("part.zip::zero.png", "empty"),
        ("broken.zip::a.png", "cannot be opened"),
        ("maps.npz::no", "has no 'no.npy'"),
        ("maps.npz::bad", "pickled"),
        ("pickled.npy::0", "cannot be opened"),
        ("rows.npy::2", "row from 0 to 1"),
        ("rows.npy::-1", "row from 0 to 1"),
        ("rows.npy::²", "row from 0 to 1"),
        ("slices.h5::no", "no data set 'no'"),
        ("slices.h5::group", "no data set"),
        ("a/b.png::1", "no container"),
    ],
)
def test_what_is_not_there_is_named(root: Path, reference: str, reason: str) -> None:
    write(root / "broken.zip", b"PK\3\4 nothing")
    np.save(root / "pickled.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(ImageError, match=reason) as caught:
        read(root, reference)
    assert caught.value.name == reference


def test_raw_bytes_are_shared_by_what_is_the_same_image_alone(root: Path) -> None:
    np.savez(root / "two.npz", a=pixels(1), b=pixels(2), again=pixels(1))
    with zipfile.ZipFile(root / "two.zip", "w") as archive:
        archive.write(root / "two.npz", "in/two.npz")
        archive.writestr("c.png", encoded(2, "PNG"))
    with ImageReader(root) as reader:
        for place in ("two.npz", "two.zip::in/two.npz"):
            a, b, again = (reader.raw(f"{place}::{key}") for key in ("a", "b", "again"))
            assert a == again != b
        assert reader.raw("two.zip::c.png") == encoded(2, "PNG")


def test_truncated_member_and_broken_volume(root: Path) -> None:
    data = bytearray((root / "part.zip").read_bytes())
    data[60] ^= 255  # within the first member's data: its checksum no longer holds
    write(root / "part.zip", bytes(data))
    with pytest.raises(ImageError, match="cannot be unpacked"):
        read(root, "part.zip::x/c.png")
    whole = gzip.decompress((root / "brain.nii.gz").read_bytes())
    write(root / "cut.nii", whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="no readable volume"):
        read(root, "cut.nii::4")


@pytest.mark.parametrize(
    ("package", "reference"), [("h5py", "slices.h5::one"), ("nibabel", "brain.hdr::1")]
)
def test_missing_extra_is_named(
    root: Path, package: str, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImageError, match=rf"needs {package}: pip install 'fairtune\[medical\]'"):
        read(root, reference)


def test_threads_read_one_archive_at_once(root: Path) -> None:
    with zipfile.ZipFile(root / "many.zip", "w") as archive:
        for number in range(40):
            archive.writestr(f"{number}.png", encoded(number, "PNG"))
    wrong = []
    with ImageReader(root) as reader:

        def work() -> None:
            for number in range(40):
                if not np.array_equal(reader.read(f"many.zip::{number}.png"), pixels(number)):
                    wrong.append(number)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_handles_are_closed(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for _ in range(3):
        read(root, "part.zip::x/c.png")
        read(root, "slices.h5::one")
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after <= before
