"""One batch ahead: the same batches in the same order, whatever ends them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from fairtune.data import prefetch
from fairtune.data.batches import Augmentation, eval_batches, train_batches
from fairtune.data.prefetch import ahead
from fairtune.data.resampling import sent

CPU = torch.device("cpu")
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, 40, 44, 3), np.uint8)


def train(images: np.ndarray, device: str = "cpu", **options: Any) -> Iterator[Any]:
    return train_batches(
        images, np.arange(70), np.arange(70) % 3, batch_size=8, size=24, mean=HALF, std=HALF,
        device=device, augmentation=Augmentation(), seed=3, **options,
    )  # fmt: skip


def evaluate(images: np.ndarray, device: str = "cpu", **options: Any) -> Iterator[torch.Tensor]:
    return eval_batches(
        images, np.arange(69), batch_size=8, size=24, mean=HALF, std=HALF, device=device, **options
    )


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def until(met: Any) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + 10
    while not met() and time.monotonic() < end:
        time.sleep(0.001)
    assert met()


def test_the_batches_are_the_same_and_global_generators_stay_as_they_are(
    images: np.ndarray,
) -> None:
    torch.manual_seed(0)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    found, wanted = list(ahead(train(images), CPU)), list(train(images))
    assert len(found) == len(wanted) == 9
    for ours, plain in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:2], plain[:2], strict=True))
        assert np.array_equal(ours[2], plain[2])
    with torch.inference_mode():
        whole = torch.cat(list(ahead(evaluate(images), CPU)))
    assert torch.equal(whole, torch.cat(list(evaluate(images))))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert not threads()


def test_one_batch_ahead_and_no_more() -> None:
    made: list[int] = []

    def batches() -> Iterator[torch.Tensor]:
        for i in range(4):
            made.append(i)
            yield torch.tensor(i)

    fed = ahead(batches(), CPU)
    assert not threads()  # it begins with the first batch
    for i in range(4):
        assert int(next(fed)) == i
        until(lambda: len(made) == min(i + 2, 4))  # noqa: B023
        time.sleep(0.01)
        assert len(made) == min(i + 2, 4)
    assert next(fed, None) is None
    assert not threads()


def test_an_error_comes_in_the_place_of_its_batch() -> None:
    def batches() -> Iterator[torch.Tensor]:
        yield from torch.arange(3)
        raise torch.OutOfMemoryError("CUDA out of memory")

    seen = []
    with pytest.raises(torch.OutOfMemoryError):
        for x in ahead(batches(), CPU):
            seen.append(int(x))
    assert seen == [0, 1, 2]
    assert not threads()


def test_no_batches_at_all() -> None:
    assert list(ahead(iter(()), CPU)) == []
    assert not threads()


@pytest.mark.parametrize("way", ["close", "forget", "error"])
def test_an_epoch_that_is_cut_leaves_no_thread(way: str) -> None:
    ended = threading.Event()

    def batches() -> Iterator[torch.Tensor]:
        try:
            while True:
                yield torch.zeros(1)
        finally:
            ended.set()

    fed = ahead(batches(), CPU)
    next(fed)
    assert len(threads()) == 1
    if way == "close":
        fed.close()
    elif way == "error":
        with pytest.raises(KeyboardInterrupt):
            fed.throw(KeyboardInterrupt)
    del fed
    assert not threads()
    assert ended.is_set()  # and what made the batches is let go


def test_a_cpu_and_images_on_the_device_need_no_thread(images: np.ndarray) -> None:
    for batches in (train(images), evaluate(images)):
        next(batches)
        assert not threads()


def test_memory_is_pinned_for_a_gpu_alone(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        raise AssertionError("without CUDA torch cannot pin memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    assert len(list(train(images))) == 9
    assert next(evaluate(images, "meta")).device.type == "meta"  # any other accelerator
    with pytest.raises(AssertionError, match="cannot pin"):
        sent(torch.zeros(1), torch.device("cuda"))


def test_streams_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """In which order CUDA is told what, as far as that can be seen without a GPU."""
    said: list[str] = []

    class Stream:
        name = "side"

        def __init__(self, device: object = None) -> None: ...

        def wait_stream(self, other: Stream) -> None:
            said.append(f"{self.name} waits for {other.name}")

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking

        def record(self, stream: Stream) -> None:
            said.append(f"mark in {stream.name}")

        def synchronize(self) -> None:
            said.append("thread waits for mark")

    class Current(Stream):
        name = "current"

    @contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        said.append(f"in {stream.name}:")
        yield

    cuda = prefetch.torch.cuda
    monkeypatch.setattr(cuda, "Stream", Stream)
    monkeypatch.setattr(cuda, "Event", Event)
    monkeypatch.setattr(cuda, "stream", entered)
    monkeypatch.setattr(cuda, "current_stream", lambda device: Current())
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda x, s: said.append(f"{int(x)} is used in {s.name}")
    )

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor, np.ndarray]]:
        for i in (1, 2):
            said.append(f"make {i}")
            yield torch.tensor(i), torch.tensor(10 * i), np.zeros(1)

    for x, _, _ in ahead(batches(), torch.device("cuda")):
        until(lambda: said[-1] == ("make 2" if x == 1 else "in side:"))  # noqa: B023
        said.append(f"step {int(x)}")
    makes = ["thread waits for mark", "in side:"]
    assert said == [
        "mark in current",
        *makes, "make 1",
        "mark in current", "current waits for side", "1 is used in current", "10 is used in current",
        *makes, "make 2",
        "step 1",
        "mark in current", "current waits for side", "2 is used in current", "20 is used in current",
        *makes,
        "step 2",
    ]  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_batches_are_those_made_in_turn(images: np.ndarray) -> None:
    """With work queued on every batch, which would read another batch if memory came back too early."""

    def sums(batches: Iterator[Any]) -> list[torch.Tensor]:
        large, found = torch.randn(4096, 4096, device="cuda"), []
        for batch in batches:
            x = batch[0] if isinstance(batch, tuple) else batch
            assert x.device.type == "cuda"
            large = (large @ large).clamp(-1, 1)  # the GPU is far behind the program
            found.append(x.clone())
            del batch, x
        return [x.cpu() for x in found]

    for make in (train, evaluate):
        wanted = sums(make(images, "cuda", prefetch=False))
        for _ in range(3):
            pairs = zip(sums(make(images, "cuda")), wanted, strict=True)
            assert all(torch.equal(ours, plain) for ours, plain in pairs)
    assert not threads()
