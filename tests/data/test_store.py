"""The store: built once, whole or not at all, and never wrong about what it holds."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairtune.data import Manifest, Store, open_store
from fairtune.data.images import load_image
from fairtune.errors import InputError

from .official import encoded, pixels, write

HERE = Path(__file__).parents[2]


def pictures(root: Path, n: int = 40) -> Manifest:
    for number in range(n):
        write(root / f"{number}.png", encoded(number, "PNG"))
    table = pd.DataFrame(
        {
            "image": [f"{number}.png" for number in range(n)],
            "label": np.arange(n) % 2,
            "patient": [f"p{number}" for number in range(n)],
            "split": "train",
            "kind": pd.Categorical(["a", "b"] * (n // 2)),
        }
    )
    return Manifest("toy", table, ("kind",), ("no", "yes"), root)


@pytest.fixture
def toy(tmp_path: Path) -> Manifest:
    return pictures(tmp_path / "root")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def built(toy: Manifest, cache: Path, **options: Any) -> Store:
    return open_store(toy, options.pop("size", 16), cache=cache, progress=False, **options)


def left_in(cache: Path) -> list[str]:
    stores = cache / "stores"
    return (
        sorted(p.name for p in stores.iterdir() if p.suffix != ".lock") if stores.is_dir() else []
    )


def test_rows_are_the_decoded_images(toy: Manifest, cache: Path) -> None:
    store = built(toy, cache)
    assert store.size == 16
    assert store.images.shape == (40, 16, 16, 3)
    assert store.manifest is toy
    for row in (0, 17, 39):
        assert np.array_equal(store.images[row], load_image(encoded(row, "PNG"), 16))
    with pytest.raises(ValueError, match="read-only"):
        store.images[0] = 0


def test_second_opening_decodes_nothing(toy: Manifest, cache: Path) -> None:
    first = built(toy, cache)
    written = (first.path / "images.u8").stat().st_mtime_ns
    again = built(toy, cache)
    assert again.path == first.path
    assert (again.path / "images.u8").stat().st_mtime_ns == written
    assert left_in(cache) == [first.path.name]


def test_labels_splits_and_attributes_share_a_store(toy: Manifest, cache: Path) -> None:
    other = toy.with_split(np.array(["val"] * 40)).select([])
    assert built(other, cache).path == built(toy, cache).path


def test_other_sizes_and_other_images_have_their_own(toy: Manifest, cache: Path) -> None:
    paths = {built(toy, cache).path, built(toy, cache, size=24).path}
    write(toy.root / "3.png", encoded(99, "PNG"))
    changed = built(toy, cache)
    assert changed.path not in paths
    assert np.array_equal(changed.images[3], load_image(encoded(99, "PNG"), 16))


def test_changed_array_of_equal_size_is_noticed(tmp_path: Path, cache: Path) -> None:
    table = pictures(tmp_path / "root", 2).table.assign(image=["rows.npy::0", "rows.npy::1"])
    toy = Manifest("toy", table, ("kind",), ("no", "yes"), tmp_path)
    np.save(tmp_path / "rows.npy", np.stack([pixels(1), pixels(2)]))
    first = built(toy, cache)
    np.save(tmp_path / "rows.npy", np.stack([pixels(3), pixels(2)]))
    os.utime(tmp_path / "rows.npy", ns=(1, 1))
    assert not np.array_equal(built(toy, cache).images[0], first.images[0])


@pytest.mark.parametrize("suffix", ["hdr", "img"])
def test_changed_voxels_beside_an_unchanged_header_are_noticed(
    tmp_path: Path, cache: Path, suffix: str
) -> None:
    nibabel = pytest.importorskip("nibabel")
    references = [f"brain.{suffix}::{number}" for number in (0, 1)]
    table = pictures(tmp_path / "root", 2).table.assign(image=references)
    toy = Manifest("toy", table, ("kind",), ("no", "yes"), tmp_path)
    volume = pixels(1, (16, 16, 2)).astype(np.int16)
    nibabel.AnalyzeImage(volume, np.eye(4)).to_filename(tmp_path / "brain.hdr")
    stats = {end: (tmp_path / f"brain.{end}").stat() for end in ("hdr", "img")}
    first = built(toy, cache)
    assert built(toy, cache).path == first.path
    volume[0, 0] += 1000
    nibabel.AnalyzeImage(volume, np.eye(4)).to_filename(tmp_path / "brain.hdr")
    os.utime(tmp_path / "brain.hdr", ns=(stats["hdr"].st_atime_ns, stats["hdr"].st_mtime_ns))
    os.utime(tmp_path / "brain.img", ns=(1, 1))
    assert (tmp_path / "brain.hdr").stat().st_size == stats["hdr"].st_size
    assert not np.array_equal(built(toy, cache).images, first.images)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(toy: Manifest, tmp_path: Path, workers: int) -> None:
    one = built(toy, tmp_path / "one").images
    assert np.array_equal(built(toy, tmp_path / "more", workers=workers).images, one)


def test_truncated_store_is_built_again(toy: Manifest, cache: Path) -> None:
    store = built(toy, cache)
    whole = np.array(store.images)
    with (store.path / "images.u8").open("r+b") as file:
        file.truncate(1000)
    assert np.array_equal(built(toy, cache).images, whole)
    (store.path / "store.json").write_text("{")
    assert np.array_equal(built(toy, cache).images, whole)
    assert left_in(cache) == [store.path.name]


def test_bad_images_are_named(toy: Manifest, cache: Path) -> None:
    write(toy.root / "7.png", b"")
    write(toy.root / "9.png", encoded(9, "PNG")[:300])
    with pytest.raises(InputError, match=r"7\.png: the file is empty \(and 1 more\).*skip"):
        built(toy, cache)


def test_bad_images_are_skipped_and_listed(toy: Manifest, cache: Path) -> None:
    write(toy.root / "7.png", b"")
    (toy.root / "9.png").unlink()
    store = built(toy, cache, on_bad_image="skip")
    assert len(store.manifest) == len(store.images) == 38
    assert store.manifest.provenance["skipped"] == [
        {"image": "7.png", "reason": "the file is empty"},
        {"image": "9.png", "reason": "no such file"},
    ]
    for row, name in enumerate(store.manifest.table["image"]):
        number = int(name.split(".")[0])
        assert np.array_equal(store.images[row], load_image(encoded(number, "PNG"), 16))
    again = built(toy, cache, on_bad_image="skip")
    assert again.manifest.table.equals(store.manifest.table)
    with pytest.raises(InputError, match=r"7\.png"):
        built(toy, cache)


def test_skipping_goes_on_from_what_failing_decoded(toy: Manifest, cache: Path) -> None:
    write(toy.root / "39.png", b"")
    with pytest.raises(InputError):
        built(toy, cache)
    partial = next((cache / "stores").glob("*.partial"))
    assert np.frombuffer((partial / "done.u8").read_bytes(), np.uint8).sum() == 39
    assert len(built(toy, cache, on_bad_image="skip").images) == 39
    assert len(left_in(cache)) == 1


def test_no_image_left_is_an_error(tmp_path: Path, cache: Path) -> None:
    toy = pictures(tmp_path / "root", 4)
    for number in range(4):
        write(tmp_path / "root" / f"{number}.png", b"x")
    with pytest.raises(InputError, match="no image is left"):
        built(toy, cache, on_bad_image="skip")


def test_bomb_of_30000_pixels_a_side_is_refused(toy: Manifest, cache: Path) -> None:
    from .test_images import bomb

    write(toy.root / "5.png", bomb(30_000, 30_000))
    with pytest.raises(InputError, match=r"5\.png: .*pixels, the limit is"):
        built(toy, cache)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 5000}, {"on_bad_image": "ignore"}])
def test_nonsense_options_are_refused(toy: Manifest, cache: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        built(toy, cache, **wrong)


def test_cache_that_cannot_be_written_is_one_line(toy: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        InputError, match=r"cannot write decoded images to .*FAIRTUNE_CACHE"
    ) as caught:
        built(toy, tmp_path / "file")
    assert "\n" not in str(caught.value)


def in_a_process(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=HERE,
        check=False,
        **options,
    )


OPEN = """
    import sys, pathlib
    from fairtune.data import Manifest, open_store
    toy = Manifest.load(sys.argv[1])
    {before}
    try:
        store = open_store(toy, int(sys.argv[3]), cache=sys.argv[2], progress=False)
    except Exception as error:
        sys.exit(f"{{type(error).__name__}}: {{error}}")
    print(store.images.sum())
"""


@pytest.mark.skipif(os.name != "posix", reason="limits and users as POSIX has them")
def test_no_write_permission_is_one_line(toy: Manifest, tmp_path: Path) -> None:
    toy.save(tmp_path / "saved")
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o555)
    code = OPEN.format(before="import os; os.getuid() or os.setuid(65534)")
    for path in [tmp_path, *tmp_path.parents]:
        if path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o055)
    found = in_a_process(code, tmp_path / "saved", cache, 16)
    assert found.stderr.startswith("InputError: cannot write decoded images"), found.stderr
    assert "Permission denied" in found.stderr
    assert list(cache.iterdir()) == []


def test_full_disk_leaves_nothing(toy: Manifest, tmp_path: Path, cache: Path) -> None:
    toy.save(tmp_path / "saved")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    found = in_a_process(OPEN.format(before=""), tmp_path / "saved", cache, 96, preexec_fn=limit)
    assert found.stderr.startswith("InputError: cannot write decoded images"), found.stderr
    assert "free 1 MB" in found.stderr
    assert left_in(cache) == []


def test_disk_that_fills_up_while_building_leaves_nothing(
    toy: Manifest, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.pwrite, []

    def full(*arguments: Any) -> int:
        calls.append(1)
        if len(calls) > 30:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match="No space left on device"):
        built(toy, cache)
    assert left_in(cache) == []
    monkeypatch.undo()
    assert len(built(toy, cache).images) == 40


def test_killed_build_goes_on_where_it_was(tmp_path: Path, cache: Path) -> None:
    toy = pictures(tmp_path / "root", 1200)
    toy.save(tmp_path / "saved")
    code = [
        sys.executable,
        "-c",
        textwrap.dedent(OPEN.format(before="")),
        str(tmp_path / "saved"),
        str(cache),
        "256",
    ]
    victim = subprocess.Popen(code, cwd=HERE, stdout=subprocess.DEVNULL)
    done = 0
    for _ in range(3000):
        flags = list((cache / "stores").glob("*.partial/done.u8"))
        done = int(np.frombuffer(flags[0].read_bytes(), np.uint8).sum()) if flags else 0
        if done > 50 or victim.poll() is not None:
            break
        time.sleep(0.005)
    victim.kill()
    victim.wait()
    flags = list((cache / "stores").glob("*.partial/done.u8"))
    assert flags, "the build was over before it could be killed"
    before = np.frombuffer(flags[0].read_bytes(), np.uint8).astype(bool)
    assert 0 < before.sum() < 1200
    # A row that was done is not decoded again: its file may even be overwritten unnoticed.
    gone = int(np.flatnonzero(before)[0])
    path = tmp_path / "root" / f"{gone}.png"
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    store = built(toy, cache, size=256)
    assert np.array_equal(store.images[gone], load_image(encoded(gone, "PNG"), 256))
    last = int(np.flatnonzero(~before)[-1])
    assert np.array_equal(store.images[last], load_image(encoded(last, "PNG"), 256))


def _open_counting(saved: Path, cache: Path, out: Any) -> None:
    from fairtune.data import store_build

    seen: list[int] = []
    real = store_build.resize
    store_build.resize = lambda image, size: (seen.append(1), real(image, size))[1]  # type: ignore[assignment]
    store = open_store(Manifest.load(saved), 64, cache=cache, progress=False)
    out.put((len(seen), int(store.images.sum())))


def test_processes_that_ask_at_once_build_once(tmp_path: Path, cache: Path) -> None:
    toy = pictures(tmp_path / "root", 200)
    toy.save(tmp_path / "saved")
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    arguments = (tmp_path / "saved", cache, out)
    processes = [context.Process(target=_open_counting, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [out.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(decoded for decoded, _ in found) == [0, 200]
    assert len({total for _, total in found}) == 1
    assert len(left_in(cache)) == 1


def test_store_of_another_format_is_not_read(toy: Manifest, cache: Path) -> None:
    store = built(toy, cache)
    facts = json.loads((store.path / "store.json").read_text())
    (store.path / "store.json").write_text(json.dumps(facts | {"format": -1}))
    again = built(toy, cache)
    assert json.loads((again.path / "store.json").read_text())["format"] == facts["format"]
