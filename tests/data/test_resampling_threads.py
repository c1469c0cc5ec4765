"""The threads that take whole images: how many, how long, and what they leave as it was."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from fairtune.data import resampling
from fairtune.data.resampling import SMALL, Resampler, single_threads

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("resampling")]


def all_end() -> bool:
    gc.collect()
    threads = workers()
    for thread in threads:
        thread.join(10)
    return not any(thread.is_alive() for thread in threads)


def test_they_split_no_operation_and_others_do() -> None:
    with single_threads(3) as threads:
        both = threading.Barrier(3)

        def ask() -> int:
            both.wait(10)  # so that each is asked once
            return torch.get_num_threads()

        assert [asked.result() for asked in [threads.submit(ask) for _ in range(3)]] == [1, 1, 1]
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 2


def test_the_pixels_are_those_of_one_thread_and_the_threads_are_let_go() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 40, 50, 3), np.uint8))
    boxes = np.tile([3, 5, 30, 41], (9, 1))
    flips = np.arange(9) % 2 == 0
    found = []
    for n in (1, 2):
        torch.set_num_threads(n)
        resample = Resampler(images[1:], SMALL + 1, HALF, HALF, torch.device("cpu"))
        assert len(workers()) == (0 if n == 1 else 2)
        found.append(resample(np.arange(8), boxes[:8], flips[:8]))
    assert torch.equal(*found)
    del resample
    assert all_end()


def test_an_accelerator_needs_none() -> None:
    images = torch.zeros((1, 40, 50, 3), dtype=torch.uint8)
    resample = Resampler(images, SMALL + 1, HALF, HALF, torch.device("meta"))
    assert not workers()
    assert resample.size == SMALL + 1  # it is alive, and so would its threads be


def test_a_start_that_is_interrupted_leaves_no_thread_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            if workers():
                raise KeyboardInterrupt
            return super().submit(*args, **kwargs)

    monkeypatch.setattr(resampling, "ThreadPoolExecutor", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        single_threads(2)
    assert all_end()
    assert torch.get_num_threads() == 2
