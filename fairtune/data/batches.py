"""Batches for a model, from decoded images: random crops and flips made per sample, and seeded.

The images are already decoded, small, and in memory or memory-mapped, so that one process feeds a
model faster than worker processes that decode files: nothing is pickled, queued or copied twice.
`fairtune.data.resampling` makes the crops. Batches are `channels_last` in memory, which is how they
are made and what convolutions read fastest; their shape is the usual (B, 3, size, size).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairtune.data.prefetch import Batch, ahead
from fairtune.data.resampling import Resampler

Images = npt.NDArray[np.uint8] | Tensor

CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Augmentation:
    """How training images vary; the defaults are torchvision's, which the published method uses.

    Parameters
    ----------
    crop_scale
        Bounds of the crop's share of the image's area. Raise the lower one (0.5, say) where the
        label hangs on something small that a crop could miss; (1, 1) with a `crop_ratio` of (1, 1)
        is no crop at all.
    crop_ratio
        Bounds of the crop's width / height.
    horizontal_flip
        Probability of a mirror image. Set 0 where left and right mean something.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must rise within (0, 1], got {self.crop_scale}")
        low, high = self.crop_ratio
        if not 0 < low <= high < math.inf:
            raise ValueError(f"crop_ratio must rise and be positive, got {self.crop_ratio}")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip is a probability, got {self.horizontal_flip}")

    def draw(
        self, n: int, height: int, width: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Draw `n` crops and flips for images of `height` by `width` pixels.

        The law is that of torchvision's `RandomResizedCrop`: area uniform, ratio log-uniform, the
        first of ten draws that fits the image, else the largest central crop of an allowed ratio.

        Returns
        -------
        boxes
            (n, 4) top, left, height, width, in pixels.
        flips
            (n,) whether the crop is mirrored.
        """
        attempts = (n, CROP_ATTEMPTS)
        area = height * width * rng.uniform(*self.crop_scale, attempts)
        narrow, wide = map(math.log, self.crop_ratio)
        ratio = np.exp(rng.uniform(narrow, wide, attempts))
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = (np.arange(n), fits.argmax(axis=1))
        none_fits = ~fits.any(axis=1)
        nearest = float(np.clip(width / height, *self.crop_ratio))
        w = np.where(none_fits, min(width, round(height * nearest)), w[first])
        h = np.where(none_fits, min(height, round(width / nearest)), h[first])
        top = np.where(none_fits, (height - h) // 2, rng.integers(0, height - h + 1))
        left = np.where(none_fits, (width - w) // 2, rng.integers(0, width - w + 1))
        return np.stack([top, left, h, w], axis=1), rng.random(n) < self.horizontal_flip


def balanced_weights(*keys: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Weigh rows so that all combinations of the keys that occur are drawn equally often.

    Parameters
    ----------
    *keys
        One (n,) array each: labels for class-balanced sampling, groups for group-balanced
        sampling, both for each label within each group.

    Returns
    -------
    numpy.ndarray
        (n,) positive weights of mean 1, for `train_batches`.

    Raises
    ------
    ValueError
        With no key, or keys of unequal length.
    """
    if not keys:
        raise ValueError("balanced_weights needs at least one key")
    codes = [np.unique(np.asarray(key).astype(str), return_inverse=True)[1] for key in keys]
    if len({len(code) for code in codes}) > 1:
        raise ValueError(f"keys of unequal length: {[len(code) for code in codes]}")
    _, cell, count = np.unique(np.stack(codes), axis=1, return_inverse=True, return_counts=True)
    weights: npt.NDArray[np.float64] = len(cell) / (len(count) * count[cell.reshape(-1)])
    return weights


def train_batches(
    images: Images,
    rows: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    batch_size: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    augmentation: Augmentation,
    seed: int,
    weights: npt.ArrayLike | None = None,
    prefetch: bool = True,
) -> Generator[tuple[Tensor, Tensor, npt.NDArray[np.int64]], None, None]:
    """Yield the batches of one epoch, shuffled and augmented.

    Parameters
    ----------
    images
        (N, H, W, 3) uint8: the store's memory map, or a tensor, which may be on the device already.
    rows
        (n,) which of the N images are this split.
    labels
        (n,) their classes, in the order of `rows`.
    batch_size
        Images per batch. The last batch is smaller where n is no multiple of it, and is left out
        where it would hold a single image, on which batch normalisation fails.
    size
        Height and width of the batches' images, in pixels.
    mean, std
        Of the three channels, for intensities in [0, 1].
    device
        Where the batches are wanted.
    augmentation
        How the images vary.
    seed
        Of order, crops and flips: the same seed gives the same batches, to the last bit on one
        machine. Give each epoch its own.
    weights
        (n,) how often each row is drawn relative to the others. With weights an epoch is n draws
        with replacement; without, each row comes once.
    prefetch
        Whether a thread makes the next batch while a GPU works on this one; heeded where that has
        something to hide, which is a GPU whose images are in host memory. The batches are the same.

    Yields
    ------
    x
        (B, 3, size, size) float32, normalised, on `device`.
    y
        (B,) int64, on `device`.
    index
        (B,) int64: the batch's entries of `rows`, in host memory.

    Raises
    ------
    ValueError
        For images that are not (N, H, W, 3) uint8, arrays of unequal length, rows outside the
        images, and weights that are negative, not finite or all zero.
    """
    source, rows = _checked(images, rows, size=size, batch_size=batch_size)
    labels = np.asarray(labels, dtype=np.int64)
    if labels.shape != rows.shape:
        raise ValueError(f"{len(rows)} rows but labels of shape {labels.shape}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows)) if weights is None else _weighted(weights, len(rows), rng)
    boxes, flips = augmentation.draw(len(rows), source.shape[1], source.shape[2], rng)
    resample = Resampler(source, size, mean, std, torch.device(device))
    batches = _epoch(resample, rows[order], labels[order], boxes, flips, batch_size)
    return _fed(batches, resample, prefetch)


def _epoch(
    resample: Resampler,
    rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int64],
    flips: npt.NDArray[np.bool_],
    batch_size: int,
) -> Generator[tuple[Tensor, Tensor, npt.NDArray[np.int64]], None, None]:
    """Yield the batches of `train_batches`, whose checks are made when it is called, not here."""
    y = torch.from_numpy(labels).to(resample.device)
    for start in range(0, len(rows), batch_size):
        batch = slice(start, start + batch_size)
        if len(rows[batch]) > 1:
            yield resample(rows[batch], boxes[batch], flips[batch]), y[batch], rows[batch]


def eval_batches(
    images: Images,
    rows: npt.ArrayLike,
    *,
    batch_size: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    prefetch: bool = True,
) -> Generator[Tensor, None, None]:
    """Yield whole images in the order of `rows`; see `train_batches` for the parameters.

    Yields
    ------
    x
        (B, 3, size, size) float32, normalised, on `device`; every row is in exactly one batch.
    """
    source, rows = _checked(images, rows, size=size, batch_size=batch_size)
    boxes = np.broadcast_to([0, 0, source.shape[1], source.shape[2]], (len(rows), 4))
    flips = np.zeros(len(rows), dtype=bool)
    resample = Resampler(source, size, mean, std, torch.device(device))
    batches = (slice(i, i + batch_size) for i in range(0, len(rows), batch_size))
    return _fed((resample(rows[b], boxes[b], flips[b]) for b in batches), resample, prefetch)


def _fed(
    batches: Generator[Batch, None, None], resample: Resampler, prefetch: bool
) -> Generator[Batch, None, None]:
    """Return the batches, one ahead where a GPU would wait for the host to make them."""
    from_host = resample.device.type == "cuda" and resample.images.device.type == "cpu"
    return ahead(batches, resample.device) if prefetch and from_host else batches


def _checked(
    images: Images, rows: npt.ArrayLike, *, size: int, batch_size: int
) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Return the images as a tensor that shares their memory, and the rows as an array."""
    if isinstance(images, np.ndarray) and images.dtype == np.uint8:
        with warnings.catch_warnings():  # the store is read-only, and nothing here writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            images = torch.from_numpy(images)
    if not (
        isinstance(images, Tensor)
        and images.dtype == torch.uint8
        and images.ndim == 4
        and images.shape[3] == 3
    ):
        raise ValueError(f"images must be (N, H, W, 3) uint8, got {images.shape} {images.dtype}")
    if size < 1 or batch_size < 1:
        raise ValueError(f"size and batch_size must be positive, got {size} and {batch_size}")
    rows = np.asarray(rows)
    if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
        raise ValueError(f"rows must be (n,) integers, got {rows.shape} {rows.dtype}")
    rows = rows.astype(np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(images):
        raise ValueError(f"rows {rows.min()} to {rows.max()}, but there are {len(images)} images")
    return images, rows


def _weighted(weights: npt.ArrayLike, n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw `n` positions with replacement, in proportion to their weights."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (n,):
        raise ValueError(f"{n} rows but weights of shape {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError("weights must be finite, not negative, and not all zero")
    return rng.choice(n, size=n, p=weights / weights.sum())
