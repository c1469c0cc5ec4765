"""Building a store: decode in parallel into one file, and survive being interrupted.

Threads, not processes: Pillow frees the interpreter while it decodes and resizes, and threads
start at once. Pixels are written by `pwrite`, not through a memory map, since a full disk under a
map kills the process, while `pwrite` says so.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fairtune.data.images import ImageError, resize
from fairtune.data.manifest import Manifest
from fairtune.data.references import ImageReader
from fairtune.errors import InputError
from fairtune.progress import progress_bar

CHUNK = 8  # images a task: enough to hide its cost, few enough to stop at once
_Done = tuple[int, dict[int, str]]  # how many images were seen, and the bad ones' rows and reasons
MOST_LISTED = 20  # bad images after which a build that would fail anyway stops


def bad_images(manifest: Manifest, reasons: Mapping[int, str]) -> InputError:
    """Build the error for images that cannot be used: how many, the first, and what to do."""
    first = min(reasons)
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return InputError(
        f"{manifest.root}: {manifest.table['image'].iloc[first]}: {reasons[first]}{more}; "
        "repair or remove what is bad, or leave it out with -o data.on_bad_image=skip "
        "(prepare: --on-bad-image skip)"
    )


def build(
    manifest: Manifest,
    size: int,
    partial: Path,
    *,
    workers: int | None,
    on_bad_image: str,
    progress: bool,
) -> dict[int, str]:
    """Decode all images into `partial/images.u8`, beginning with what an earlier build left.

    Returns
    -------
    dict
        Row and reason of each image that was skipped; the file holds the others, in order.

    Raises
    ------
    OSError
        If the file cannot be written; `partial` is removed.
    InputError
        If images are bad and `on_bad_image` is "fail"; what was decoded stays for the next try.
    """
    partial.mkdir(exist_ok=True)
    try:
        with _Target.open(partial, len(manifest), size) as target:
            reasons = _decode(manifest, size, target, workers, on_bad_image, progress)
            if reasons and on_bad_image == "fail":
                raise bad_images(manifest, reasons)
            if len(reasons) == len(manifest):
                raise InputError(f"{bad_images(manifest, reasons)}; no image is left")
            (partial / "done.u8").unlink()  # from here on the rows move: no build may continue this
            target.compact([row for row in range(len(manifest)) if row not in reasons])
            os.fsync(target.pixels)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return reasons


@dataclass
class _Target:
    """The file of pixels and the file of flags, one byte a row: 1 if its pixels are there."""

    pixels: int
    flags: int
    done: np.ndarray
    row_bytes: int

    @classmethod
    def open(cls, partial: Path, count: int, size: int) -> _Target:
        row_bytes = size * size * 3
        flags = partial / "done.u8"
        if not flags.is_file() or flags.stat().st_size != count:
            _check_space(partial, count * row_bytes)
            (partial / "images.u8").unlink(missing_ok=True)
            flags.write_bytes(bytes(count))
        pixels = os.open(partial / "images.u8", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _reserve(pixels, count * row_bytes)
            done = np.frombuffer(flags.read_bytes(), np.uint8).astype(bool)
            return cls(pixels, os.open(flags, os.O_RDWR), done, row_bytes)
        except BaseException:
            os.close(pixels)
            raise

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.pixels)
        os.close(self.flags)

    def put(self, row: int, image: np.ndarray) -> None:
        _write(self.pixels, image.tobytes(), row * self.row_bytes)
        _write(self.flags, b"\1", row)

    def compact(self, rows: list[int]) -> None:
        """Move the good rows together and cut the rest off."""
        for place, row in enumerate(rows):
            if place != row:
                data = os.pread(self.pixels, self.row_bytes, row * self.row_bytes)
                _write(self.pixels, data, place * self.row_bytes)
        os.ftruncate(self.pixels, len(rows) * self.row_bytes)


def _decode(
    manifest: Manifest,
    size: int,
    target: _Target,
    workers: int | None,
    on_bad_image: str,
    progress: bool,
) -> dict[int, str]:
    images = manifest.table["image"].tolist()
    todo = np.flatnonzero(~target.done).tolist()
    reasons: dict[int, str] = {}

    def work(rows: list[int]) -> _Done:
        bad = {}
        for row in rows:
            try:
                target.put(row, resize(reader.read(images[row], least=size), size))
            except ImageError as error:
                bad[row] = error.reason
        return len(rows), bad

    threads = workers or _cores()
    bar = progress_bar(
        total=len(images),
        initial=len(images) - len(todo),
        desc=f"decoding {manifest.name}",
        unit="img",
        delay=2,
        mininterval=0.5,
        disable=not progress,
    )
    chunks = (todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK))
    with ImageReader(manifest.root) as reader, bar, ThreadPoolExecutor(threads) as pool:
        for future in _in_flight(pool, work, chunks, 4 * threads):
            count, bad = future.result()
            bar.update(count)
            reasons |= bad
            if on_bad_image == "fail" and len(reasons) > MOST_LISTED:
                break
    return dict(sorted(reasons.items()))


def _in_flight(
    pool: ThreadPoolExecutor,
    work: Callable[[list[int]], _Done],
    chunks: Iterator[list[int]],
    most: int,
) -> Iterator[Future[_Done]]:
    """Yield finished tasks, never more than `most` begun, so that leaving early is quick."""
    running = {pool.submit(work, chunk) for chunk in islice(chunks, most)}
    try:
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(work, chunk) for chunk in islice(chunks, len(finished))}
            yield from finished
    finally:
        for future in running:
            future.cancel()


def _cores() -> int:
    """Count the cores this process may use, which in a container are fewer than the machine's."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _reserve(file: int, size: int) -> None:
    """Take the disk space now where the file system can, so that a full disk is known at once."""
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:
        cannot = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
        if isinstance(error, OSError) and error.errno not in cannot:
            raise


def _check_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise OSError(errno.ENOSPC, f"no space: {free / 1e6:,.0f} MB are free")
