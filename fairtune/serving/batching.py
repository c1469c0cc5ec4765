"""Dynamic micro-batching: requests that arrive while the model is busy share its next call.

There is no waiting window. A lone request runs at once; the batch grows by itself exactly when the
model is the bottleneck, which is when a batch pays. One thread calls the model, so that many
request threads do not fight over the cores with one small model call each.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Scores = NDArray[np.float32]
_Item = tuple[Images, Future[Scores]]


class MicroBatcher:
    """Collect images of several callers into one call of `run`.

    Parameters
    ----------
    run : callable
        (N, S, S, 3) uint8 images to (N, C) scores; called from one thread only.
    max_batch : int
        Most images a call may get.

    Attributes
    ----------
    calls, images : int
        What `run` was given so far; their ratio is the mean batch size.
    """

    def __init__(self, run: Callable[[Images], Scores], max_batch: int) -> None:
        self._run = run
        self.max_batch = max_batch
        self.calls = 0
        self.images = 0
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._start = threading.Lock()
        self._worker: threading.Thread | None = None

    def submit(self, images: Images) -> Future[Scores]:
        """Queue up to `max_batch` images (n, S, S, 3); the future gives their (n, C) scores."""
        if not 1 <= len(images) <= self.max_batch:
            raise ValueError(f"{len(images)} images; a call takes 1 to {self.max_batch}")
        self._ensure_worker()
        future: Future[Scores] = Future()
        self._queue.put((images, future))
        return future

    def __call__(self, images: Images) -> Scores:
        """Score any number of images, in chunks, and wait for the answer."""
        starts = range(0, len(images), self.max_batch)
        futures = [self.submit(images[start : start + self.max_batch]) for start in starts]
        return np.concatenate([future.result() for future in futures])

    def _ensure_worker(self) -> None:
        # Started on first use and not in __init__, so that a server may fork after loading.
        with self._start:
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._loop, name="batcher", daemon=True)
                self._worker.start()

    def _loop(self) -> None:
        held: _Item | None = None
        while True:
            batch = [held or self._queue.get()]
            held = None
            count = len(batch[0][0])
            while count < self.max_batch and held is None:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if count + len(item[0]) > self.max_batch:
                    held = item  # does not fit any more: it opens the next batch
                else:
                    batch.append(item)
                    count += len(item[0])
            # A caller who gave up has cancelled; from here on the others cannot any more.
            wanted = [item for item in batch if item[1].set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted)

    def _answer(self, batch: list[_Item]) -> None:
        self.calls += 1
        self.images += sum(len(images) for images, _ in batch)
        try:
            scores = self._run(np.concatenate([images for images, _ in batch]))
        except BaseException as error:
            # The callers are told; the thread must outlive a failed call (out of memory, say).
            for _, future in batch:
                future.set_exception(error)
            return
        start = 0
        for images, future in batch:
            future.set_result(scores[start : start + len(images)])
            start += len(images)
