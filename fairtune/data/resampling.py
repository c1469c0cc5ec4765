"""Cutting boxes out of decoded images, resized, flipped and normalised: the pixels of a batch.

How a batch is resampled depends on where it is wanted, because the two fastest ways differ
(`benchmarks/feeding.py` measures both, and others that were left):

- on a CPU each crop is resized as 8-bit integers straight out of the map, by the vectorised
  resize of PyTorch, and lands, normalised, in a buffer that is used again when the caller has let
  go of it (fresh memory for each batch would cost more than all the arithmetic);
- on an accelerator the whole batch is resampled at once by two batched matrix products, one for
  the rows and one for the columns, whose matrices hold each sample's crop, filter and flip.

Both are bilinear with antialiasing and agree with `torchvision`'s `resized_crop` to the rounding of
8-bit integers.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# A sample's place in the batch (size, size * 3), its row, its box, whether it is mirrored.
Sample = tuple[Tensor, int, list[int], bool]

SMALL = 100  # pixels: such an image is done before a second thread is awake


class Resampler:
    """Cuts boxes out of images, resizes, flips and normalises them, onto a device.

    A sum over pixels and an affine map of the intensities are all it takes, so that
    ``(x / 255 - mean) / std`` is written as ``x * scale + offset``.
    """

    def __init__(
        self,
        images: Tensor,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        self.images, self.size, self.device = images, size, device
        scale, offset = normalisation(mean, std)
        # One row of pixels, (size * 3,): the processor's vectors then run along the row.
        self.scale, self.offset = (t.repeat(size).to(device) for t in (scale, offset))
        self._free: list[npt.NDArray[np.float32]] = []
        self._on_cpu = device.type == "cpu" and images.device.type == "cpu"
        self._n_threads = torch.get_num_threads() if self._on_cpu and size > SMALL else 1
        self._threads = single_threads(self._n_threads) if self._n_threads > 1 else None

    def __call__(
        self,
        rows: npt.NDArray[np.int64],
        boxes: npt.NDArray[np.int64],
        flips: npt.NDArray[np.bool_],
    ) -> Tensor:
        """Return (B, 3, size, size) float32 for B rows, (B, 4) boxes and (B,) flips."""
        out = (self._one_by_one if self._on_cpu else self._at_once)(rows, boxes, flips)
        return out.permute(0, 3, 1, 2)

    def _one_by_one(
        self,
        rows: npt.NDArray[np.int64],
        boxes: npt.NDArray[np.int64],
        flips: npt.NDArray[np.bool_],
    ) -> Tensor:
        """Resample in 8-bit integers, a sample at a time while it is in the cache."""
        memory = self._memory(len(rows))
        batch = torch.from_numpy(memory)
        # Each place is (size, size * 3): the processor's vectors then run along the rows of pixels.
        places = batch.view(len(rows), self.size, self.size * 3).unbind(0)
        samples = list(zip(places, rows.tolist(), boxes.tolist(), flips.tolist(), strict=True))
        if self._threads is None:
            self._fill(samples)
        else:
            shares = [samples[i :: self._n_threads] for i in range(self._n_threads)]
            list(self._threads.map(self._fill, shares))
        return batch

    @torch.inference_mode()
    def _fill(self, samples: Sequence[Sample]) -> None:
        """Write each sample's crop to its place in the batch."""
        size = self.size
        image, line, pixel, _ = self.images.stride()
        origin = self.images.storage_offset()
        for place, row, (top, left, height, width), flip in samples:
            # A view told in numbers: slicing three axes takes as long as a fifth of the resize.
            corner = origin + row * image + top * line + left * pixel
            crop = self.images.as_strided((1, height, width, 3), self.images.stride(), corner)
            resized = resized_pixels(crop, size)
            if flip:
                resized = resized.flip(3)
            pixels = resized.permute(0, 2, 3, 1).reshape(size, size * 3)
            torch.addcmul(self.offset, pixels, self.scale, out=place)

    def _memory(self, n: int) -> npt.NDArray[np.float32]:
        """Return (n, size, size, 3) of memory that no earlier batch's tensor holds.

        A tensor made from an array keeps the array alive for as long as any view of the tensor
        lives, wherever the caller put it; when the loan dies, its memory is free again.
        """
        shape = (n, self.size, self.size, 3)
        fits = [i for i, memory in enumerate(self._free) if memory.shape == shape]
        memory = self._free.pop(fits[0]) if fits else np.empty(shape, dtype=np.float32)
        loan = memory.view()
        weakref.finalize(loan, self._free.append, memory).atexit = False
        return loan

    def _at_once(
        self,
        rows: npt.NDArray[np.int64],
        boxes: npt.NDArray[np.int64],
        flips: npt.NDArray[np.bool_],
    ) -> Tensor:
        """Resample by two batched matrix products, one for rows and one for columns."""
        batch = self.images[sent(torch.from_numpy(rows), self.images.device)]  # (B, H, W, 3)
        batch = sent(batch, self.device).float()
        n, height, width, _ = batch.shape
        corners = torch.from_numpy(boxes.astype(np.float32))
        top, left, h, w = sent(corners, self.device).unbind(1)
        down = filter_matrix(top, h, height, self.size)  # (B, size, H)
        across = filter_matrix(left, w, width, self.size)  # (B, size, W)
        mirrored = sent(torch.from_numpy(flips), self.device)[:, None, None]
        across = torch.where(mirrored, across.flip(1), across)
        half = torch.bmm(down, batch.reshape(n, height, width * 3)).view(n, self.size, width, 3)
        whole = torch.matmul(across[:, None], half)  # (B, 1, size, W) @ (B, size, W, 3)
        flat = whole.view(n, self.size, self.size * 3)
        return torch.addcmul(self.offset, flat, self.scale).view_as(whole)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on a device; to a GPU by pinned memory, so that the program goes on at once."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def single_threads(n: int) -> ThreadPoolExecutor:
    """Start `n` threads in which PyTorch runs each operation in that thread alone.

    Images are so small that splitting one costs more than it gains; threads that take whole images
    gain. The number of threads of an operation is a thread's own setting, but what is set last is
    also what threads that come later begin with: so the caller's is set again.
    """
    ready = threading.Barrier(n + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread that never asked would still take the last setting
        torch.set_num_threads(1)
        with suppress(threading.BrokenBarrierError):
            ready.wait()

    before = torch.get_num_threads()
    threads = ThreadPoolExecutor(n, "resampling", initializer=begin)
    try:
        for _ in range(n):  # each starts a thread, as none is idle before all have begun
            threads.submit(int)
        ready.wait()
    except BaseException:  # a signal, or no more threads: those that wait would wait for ever
        ready.abort()
        raise
    finally:
        torch.set_num_threads(before)
    return threads


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return (3,) `scale` and `offset`: ``(x / 255 - mean) / std`` is ``x * scale + offset``."""
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float32))
    offset = -torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
    return scale, offset


def resized_pixels(images: Tensor, size: int) -> Tensor:
    """Resize (B, H, W, 3) uint8 on a CPU to (B, 3, size, size) uint8, bilinear with antialiasing."""
    resized: Tensor = torch.nn.functional.interpolate(
        images.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=True
    )
    return resized


def filter_matrix(start: Tensor, length: Tensor, extent: int, size: int) -> Tensor:
    """Build the matrices that resize one axis of `extent` pixels, cropped, to `size` pixels.

    The filter is a triangle as wide as two output pixels, or two input pixels where the crop is
    enlarged, cut off at the crop's border and scaled to sum 1: that of Pillow and PyTorch.

    Parameters
    ----------
    start, length
        (B,) float: where each sample's crop begins and how long it is, in input pixels.

    Returns
    -------
    Tensor
        (B, size, extent) float32, rows of sum 1.
    """
    step = (length / size)[:, None, None]
    output = torch.arange(size, device=start.device) + 0.5
    centre = start[:, None, None] + output[None, :, None] * step  # (B, size, 1)
    pixel = torch.arange(extent, device=start.device) + 0.5  # (extent,)
    weights = (1 - (pixel - centre).abs() / step.clamp(min=1)).clamp(min=0)
    begin, end = start[:, None, None], (start + length)[:, None, None]
    weights = weights * ((pixel > begin) & (pixel < end))
    return weights / weights.sum(2, keepdim=True)
