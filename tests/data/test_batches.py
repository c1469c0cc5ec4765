"""Batches: what is in them, in which order, and that crops are torchvision's crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from fairtune.data.batches import (
    Augmentation,
    balanced_weights,
    eval_batches,
    train_batches,
)
from fairtune.data.resampling import Resampler

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
PLAIN = Augmentation(crop_scale=(1, 1), crop_ratio=(1, 1), horizontal_flip=0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth pictures with edges, 40 of them, 30 by 44 pixels, all different."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (40, 3, 5, 7)).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse, (30, 44), mode="bicubic").clamp(0, 255)
    fine[:, :, 10:20, 12:15] = 255
    return fine.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()


def train(images, rows, labels=None, **options):
    settings = {
        "batch_size": 8,
        "size": 24,
        "mean": MEAN,
        "std": STD,
        "device": "cpu",
        "augmentation": Augmentation(),
        "seed": 3,
    }
    labels = np.zeros(len(rows), dtype=np.int64) if labels is None else labels
    return train_batches(images, rows, labels, **(settings | options))


def evaluate(images, rows, **options):
    settings = {"batch_size": 8, "size": 24, "mean": MEAN, "std": STD, "device": "cpu"}
    return eval_batches(images, rows, **(settings | options))


def levels(x: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: intensities of 0 to 255."""
    return (x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255


@pytest.mark.parametrize("way", ["_one_by_one", "_at_once"])
@pytest.mark.parametrize("size", [9, 24, 60, 128])
def test_crops_are_those_of_torchvision(images, way, size):
    boxes, flips = Augmentation().draw(len(images), 30, 44, np.random.default_rng(1))
    resample = Resampler(torch.from_numpy(images), size, MEAN, STD, torch.device("cpu"))
    x = getattr(resample, way)(np.arange(len(images)), boxes, flips).permute(0, 3, 1, 2)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        picture = torch.from_numpy(images[i]).permute(2, 0, 1)
        want = reference.resized_crop(picture, top, left, height, width, [size, size])
        want = want.flip(2) if flips[i] else want
        # Both round to whole levels at most twice.
        assert (levels(x[i]) - want).abs().max() < 1.51


def test_crops_follow_the_law_of_torchvision():
    boxes, flips = Augmentation().draw(20_000, 96, 96, np.random.default_rng(0))
    top, left, h, w = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= 96).all()
    assert (left + w <= 96).all()
    torch.manual_seed(0)
    from torchvision.transforms import RandomResizedCrop

    picture = torch.empty(3, 96, 96)
    drawn = np.array(
        [RandomResizedCrop.get_params(picture, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    for ours, theirs in zip(boxes.T, drawn.T, strict=True):
        assert np.quantile(ours, [0.1, 0.5, 0.9]) == pytest.approx(
            np.quantile(theirs, [0.1, 0.5, 0.9]), abs=3
        )
    assert flips.mean() == pytest.approx(0.5, abs=0.02)


def test_an_image_too_narrow_for_every_crop_is_cropped_in_the_middle():
    boxes, _ = Augmentation(crop_scale=(0.9, 1)).draw(5, 100, 10, np.random.default_rng(0))
    assert boxes.tolist() == [[43, 0, 13, 10]] * 5


def test_an_epoch_holds_every_row_once_with_its_label_and_image(images):
    rows = np.arange(3, 38)
    labels = rows % 5
    seen = []
    for x, y, index in train(images, rows, labels, augmentation=PLAIN, size=30):
        assert x.shape == (len(index), 3, 30, 30)
        assert x.dtype == torch.float32
        assert y.tolist() == (index % 5).tolist()
        seen += index.tolist()
    assert sorted(seen) == rows.tolist()
    assert seen != rows.tolist()


def test_without_augmentation_a_square_image_comes_back_as_it_is(images):
    square = np.ascontiguousarray(images[:, :, :30])
    for x, _, index in train(square, np.arange(40), augmentation=PLAIN, size=30):
        want = torch.from_numpy(square[index]).permute(0, 3, 1, 2)
        assert torch.allclose(levels(x), want.float(), atol=1e-3)


@pytest.mark.parametrize(("rows", "sizes"), [(17, [8, 8]), (18, [8, 8, 2]), (1, []), (0, [])])
def test_a_last_batch_of_one_is_left_out(images, rows, sizes):
    assert [len(y) for _, y, _ in train(images, np.arange(rows))] == sizes


def test_evaluation_keeps_order_and_every_row(images):
    rows = np.array([5, 3, 39, 3, 0, 7, 8, 9, 1])
    x = torch.cat(list(evaluate(images, rows)))
    assert len(x) == 9
    assert torch.equal(x[1], x[3])
    picture = torch.from_numpy(images[39]).permute(2, 0, 1)
    want = reference.resize(picture, [24, 24], antialias=True)
    assert (levels(x[2]) - want).abs().max() < 1.51


def test_same_seed_same_batches_and_another_seed_others(images):
    def epoch(seed: int) -> torch.Tensor:
        return torch.cat([x.clone() for x, _, _ in train(images, np.arange(40), seed=seed)])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


@pytest.mark.parametrize("size", [24, 128])
def test_inference_mode_and_gradients_both_work(images, size):
    with torch.inference_mode():
        kept = torch.cat(list(evaluate(images, np.arange(10), size=size)))
    x = torch.cat(list(evaluate(images, np.arange(10), size=size)))
    assert torch.equal(kept, x)
    weight = torch.ones(3, requires_grad=True)
    (x * weight[:, None, None]).sum().backward()
    assert weight.grad.isfinite().all()


def test_batches_that_are_kept_are_not_overwritten(images):
    kept = list(train(images, np.arange(40)))
    copies = [x.clone() for x, _, _ in train(images, np.arange(40))]
    assert all(torch.equal(x, copy) for (x, _, _), copy in zip(kept, copies, strict=True))


def test_memory_of_batches_let_go_is_used_again(images):
    resample = Resampler(torch.from_numpy(images), 24, MEAN, STD, torch.device("cpu"))
    one = (np.arange(4), np.tile([0, 0, 30, 44], (4, 1)), np.zeros(4, dtype=bool))
    x = resample(*one)
    address, view = x.data_ptr(), x[1:, 0]
    del x
    y = resample(*one)
    assert y.data_ptr() != address  # the view still holds it
    del view
    assert resample(*one).data_ptr() == address


def test_a_read_only_map_is_read_without_a_warning(images, tmp_path, recwarn):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert torch.equal(next(evaluate(mapped, [2, 4])), next(evaluate(images, [2, 4])))
    assert not recwarn.list


def test_sampling_weights_balance_cells(images):
    labels = np.array([0] * 30 + [1] * 10)
    groups = np.array(["a"] * 25 + ["b"] * 10 + ["a"] * 5)
    weights = balanced_weights(labels, groups)
    assert weights.mean() == pytest.approx(1)
    cells = [weights[(labels == y) & (groups == g)].sum() for y in (0, 1) for g in "ab"]
    assert cells == pytest.approx([10] * 4)
    drawn = np.concatenate(
        [
            index
            for seed in range(200)
            for _, _, index in train(
                images, np.arange(40), labels, seed=seed, size=1, weights=balanced_weights(labels)
            )
        ]
    )
    assert (drawn >= 30).mean() == pytest.approx(0.5, abs=0.02)


def test_a_weight_of_zero_is_never_drawn(images):
    weights = np.r_[np.zeros(20), np.ones(20)]
    drawn = np.concatenate([i for _, _, i in train(images, np.arange(40), weights=weights)])
    assert drawn.min() >= 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 8, 8), np.uint8)}, r"\(N, H, W, 3\) uint8, got"),
        ({"images": np.zeros((4, 8, 8, 3), np.float32)}, "float32"),
        ({"rows": [0, 4]}, "rows 0 to 4, but there are 4 images"),
        ({"rows": [-1, 0]}, "rows -1 to 0"),
        ({"rows": [True, False]}, "integers"),
        ({"labels": [0]}, "2 rows but labels"),
        ({"batch_size": 0}, "positive"),
        ({"weights": [1.0]}, "2 rows but weights"),
        ({"weights": [0.0, 0.0]}, "not all zero"),
        ({"weights": [1.0, float("nan")]}, "finite"),
        ({"weights": [1.0, -1.0]}, "negative"),
    ],
)
def test_refused_when_called_not_when_read(change, message):
    given = {"images": np.zeros((4, 8, 8, 3), np.uint8), "rows": [0, 1], "labels": [0, 0]} | change
    with pytest.raises(ValueError, match=message):
        train(given.pop("images"), given.pop("rows"), given.pop("labels"), **given)


@pytest.mark.parametrize(
    "bad",
    [
        {"crop_scale": (0, 1)},
        {"crop_scale": (0.5, 0.4)},
        {"crop_ratio": (2, 1)},
        {"horizontal_flip": 2},
    ],
)
def test_augmentation_refuses_what_it_cannot_draw(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Augmentation(**bad)


def test_balanced_weights_refuses_unequal_keys():
    with pytest.raises(ValueError, match="unequal"):
        balanced_weights([0, 1], [0])
    with pytest.raises(ValueError, match="at least one"):
        balanced_weights()
