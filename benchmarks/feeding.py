"""Feeding a model: batches from decoded images against a DataLoader over the JPEG files.

    python -m benchmarks.feeding ../shared/data/ham10000

Both give the same: random resized crop, horizontal flip, normalised float32 batches, shuffled.
The rivals are measured in turn, several rounds in one run, because a shared machine's speed drifts;
the table has the median round, and the ratio's smallest and largest round. The other ways of making
the crops stand below, each on the same crops.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import kornia.augmentation
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.v2 import functional as functional_v2
from tqdm import tqdm

from fairtune.data.batches import Augmentation, train_batches
from fairtune.data.resampling import Resampler

BATCH = 64
HALF = (0.5, 0.5, 0.5)


class Jpegs(Dataset):
    """The usual way: a file is opened, decoded and transformed for each sample."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(HALF, HALF),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.files[index]).convert("RGB")), 0


def unpack(source: Path, folder: Path, n: int) -> list[Path]:
    """Extract `n` JPEG files from the zips below `source`."""
    for archive in sorted(source.rglob("*.zip")):
        with zipfile.ZipFile(archive) as members:
            for name in members.namelist():
                if name.lower().endswith(".jpg") and len(list(folder.iterdir())) < n:
                    (folder / Path(name).name).write_bytes(members.read(name))
    return sorted(folder.iterdir())


def decode(files: list[Path], size: int, path: Path) -> np.ndarray:
    """Decode and resize the files once, into a map."""
    shape = (len(files), size, size, 3)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for i, file in enumerate(tqdm(files, desc=f"decoding at {size} px")):
        images[i] = Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    images.flush()
    return np.load(path, mmap_mode="r")


def seconds(batches: Iterable[Tensor]) -> float:
    """Time one pass, touching a number of each batch as a model would."""
    start = time.perf_counter()
    for x in batches:
        x[-1, -1, -1, -1].item()
    return time.perf_counter() - start


def anonymous_memory() -> float:
    """Resident memory of this process that is no file's, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def feed(images: np.ndarray, size: int, seed: int, peak: list[float]) -> Iterable[Tensor]:
    rows = np.arange(len(images))
    batches = train_batches(
        images, rows, np.zeros(len(rows)), batch_size=BATCH, size=size, mean=HALF, std=HALF,
        device="cpu", augmentation=Augmentation(), seed=seed,
    )  # fmt: skip
    for x, _, _ in batches:
        peak.append(anonymous_memory())
        yield x


def against_loader(files: list[Path], folder: Path, size: int, rounds: int) -> str:
    """Return the table's row of one image size."""
    images = decode(files, size, folder / f"{size}.npy")
    loader = DataLoader(Jpegs(files, size), batch_size=BATCH, shuffle=True, num_workers=2)
    before, peak, ours, theirs = anonymous_memory(), [0.0], [], []
    for i in tqdm(range(rounds), desc=f"feeding at {size} px"):
        theirs.append(len(files) / seconds(x for x, _ in loader))
        ours.append(len(files) / seconds(feed(images, size, i, peak)))
    ratio = np.array(ours) / np.array(theirs)
    return (
        f"| {size} px | {np.median(theirs):,.0f} | {np.median(ours):,.0f} "
        f"| {np.median(ratio):.1f} ({ratio.min():.1f} to {ratio.max():.1f}) "
        f"| {max(peak) - before:.0f} |"
    )


def ways(images: np.ndarray, size: int) -> dict[str, Callable[[], Tensor]]:
    """Return the ways of cropping one batch, on the CPU, that were considered."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(images))[:BATCH]
    boxes, flips = Augmentation().draw(BATCH, size, size, rng)
    resample = Resampler(torch.from_numpy(images[:]), size, HALF, HALF, torch.device("cpu"))
    flip = torch.from_numpy(flips)
    crop = kornia.augmentation.RandomResizedCrop(
        (size, size), cropping_mode="resample", align_corners=False
    )

    def torchvision() -> Tensor:
        out = []
        for row, (top, left, h, w), f in zip(rows, boxes.tolist(), flips, strict=True):
            x = torch.from_numpy(images[row]).permute(2, 0, 1)
            x = functional_v2.resized_crop(x, top, left, h, w, [size, size])
            x = functional_v2.horizontal_flip(x) if f else x
            x = functional_v2.to_dtype(x, torch.float32, scale=True)
            out.append(functional_v2.normalize(x, HALF, HALF))
        return torch.stack(out)

    def kornia_batch() -> Tensor:
        x = torch.from_numpy(images[rows]).permute(0, 3, 1, 2).float().div_(255)
        x = crop(x)
        return torch.where(flip[:, None, None, None], x.flip(3), x).sub_(0.5).div_(0.5)

    def grid_sample() -> Tensor:
        x = torch.from_numpy(images[rows]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        top, left, h, w = torch.from_numpy(boxes).float().unbind(1)
        w_signed = torch.where(flip, -w, w)
        theta = torch.zeros(BATCH, 2, 3)
        theta[:, 0, 0], theta[:, 0, 2] = w_signed / size, (2 * left + w) / size - 1
        theta[:, 1, 1], theta[:, 1, 2] = h / size, (2 * top + h) / size - 1
        grid = torch.nn.functional.affine_grid(theta, [BATCH, 3, size, size], align_corners=False)
        return torch.nn.functional.grid_sample(x, grid, align_corners=False, padding_mode="border")

    return {
        "one by one in 8 bits (ours, CPU)": lambda: resample._one_by_one(rows, boxes, flips),
        "two matrix products (ours, accelerator)": lambda: resample._at_once(rows, boxes, flips),
        "torchvision v2, one by one": torchvision,
        "grid_sample, no antialiasing": grid_sample,
        "kornia RandomResizedCrop": kornia_batch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with zips of JPEG files")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 224])
    options = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "jpeg").mkdir()
        files = unpack(options.source, folder / "jpeg", options.images)
        print(f"{len(files)} images, batches of {BATCH}, {options.rounds} rounds\n")
        print("| size | DataLoader (2 workers), images/s | fairtune | ratio | MB beyond the map |")
        print("| --- | --- | --- | --- | --- |")
        rows = [against_loader(files, folder, size, options.rounds) for size in options.sizes]
        print("\n".join(rows), "\n")
        print(
            "| way of cropping, CPU time per image | "
            + " | ".join(f"{s} px" for s in options.sizes)
        )
        print("| --- |" + " --- |" * len(options.sizes))
        columns = [ways(np.load(folder / f"{s}.npy", mmap_mode="r"), s) for s in options.sizes]
        for name in columns[0]:
            print(f"| {name} | " + " | ".join(f"{cost(c[name]):.0f} µs" for c in columns) + " |")


def cost(way: Callable[[], Tensor], repeats: int = 9) -> float:
    """Median CPU time of all threads per image, in microseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        way()
        times.append(time.process_time() - start)
    return float(np.median(times)) / BATCH * 1e6


if __name__ == "__main__":
    main()
