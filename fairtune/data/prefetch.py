"""One batch ahead: a thread makes the next batch while a GPU works on this one.

For images that do not fit on the GPU, so that each batch is read, put into pinned memory and sent. All of
that happens in the thread, and on a CUDA stream beside the one that computes: two batches exist at once.
The batches and their order are the iterator's: it runs as it is, never two of its steps at a time.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


def ahead(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Yield the same batches, each made in a thread while the caller has the one before it.

    Parameters
    ----------
    batches
        Tensors, or tuples with tensors among them; never None. An error is raised where its batch
        would have come. They must not come from a global random generator, which the thread would
        share with the caller.
    device
        Where they are made.

    Notes
    -----
    The thread ends with the generator: after the last batch, an error, or `close`.
    """
    side = _SideStream(device) if device.type == "cuda" else None

    def make() -> Batch | None:
        with side.making() if side is not None else nullcontext():
            return next(batches, None)

    with ThreadPoolExecutor(1, "batches") as thread:
        coming = thread.submit(make)
        while (batch := coming.result()) is not None:
            if side is not None:  # now, before the stream has the next batch to wait for as well
                side.hand_over(batch)
            coming = thread.submit(make)
            yield batch


class _SideStream:
    """A CUDA stream that makes batches for the stream that is current where this is called."""

    def __init__(self, device: torch.device) -> None:
        cuda: Any = torch.cuda  # whose streams have no types
        self.device, self.stream = device, cuda.Stream(device)
        self.reached = cuda.Event(blocking=True)  # without spinning on a core
        self.reached.record(torch.cuda.current_stream(device))

    @contextmanager
    def making(self) -> Generator[None, None, None]:
        """Send what is queued within to this stream, when the GPU is done with the batch before last.

        The program may be many steps before the GPU. Were that not waited for, each of them would
        have a batch in the GPU's memory.
        """
        self.reached.synchronize()
        with torch.cuda.stream(self.stream):
            yield

    def hand_over(self, batch: object) -> None:
        """Let the current stream use a batch: not before it is made, and for as long as it takes."""
        used = torch.cuda.current_stream(self.device)
        self.reached.record(used)
        used.wait_stream(self.stream)
        for part in batch if isinstance(batch, tuple) else (batch,):
            if isinstance(part, Tensor):
                # Its memory is this stream's, which would otherwise have it back when the program
                # lets go of the tensor, while the work that reads it may still be queued.
                part.record_stream(used)
