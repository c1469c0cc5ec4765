from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from search.samples import tiny_config, write_data
from torch import nn
from torch.overrides import TorchFunctionMode

from fairtune.cli import main
from fairtune.errors import InputError
from fairtune.fairness import evaluate
from fairtune.peft import apply_mask, build_model, get_space
from fairtune.training import (
    DivergedError,
    Epoch,
    ImageSpec,
    Recipe,
    Split,
    choose_device,
    class_weights,
    fine_tune,
    loop,
    predict,
)
from fairtune.training.strategies import fairprune
from training.conftest import make_split

CPU = torch.device("cpu")
VIT = (
    "vit_tiny_patch16_224",
    {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2},
)
CONV = ("tf_efficientnet_lite0", {})


def model_of(
    architecture: str = VIT[0], options: dict = VIT[1], space: str = "fullft"
) -> nn.Module:
    model = build_model(architecture, num_classes=2, options=options, seed=0)
    apply_mask(model, get_space(space).mask(model, ()))
    return model


def test_a_model_learns_and_reports_every_epoch(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    seen: list[Epoch] = []
    result = fine_tune(
        model_of(),
        train,
        val,
        spec,
        recipe.model_copy(update={"epochs": 4}),
        seed=0,
        device=CPU,
        on_epoch=lambda epoch: seen.append(epoch) or True,
    )
    assert [epoch.number for epoch in seen] == [1, 2, 3, 4]
    assert result.epochs == seen
    assert result.stopped_at is None
    assert seen[-1].loss < seen[0].loss
    assert result.report.headline["auroc"] > 0.8
    assert result.report.to_dict() == pytest.approx(
        evaluate(val.labels, result.probabilities, val.groups).to_dict(), nan_ok=True
    )


def test_on_epoch_ends_the_fine_tune(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    result = fine_tune(
        model_of(), train, val, spec, recipe, seed=0, device=CPU, on_epoch=lambda epoch: False
    )
    assert len(result.epochs) == result.stopped_at == 1


@pytest.mark.parametrize("n", [2, 31, 32, 33, 34])
def test_the_schedule_has_as_many_steps_as_are_taken(
    n: int, val: Split, spec: ImageSpec, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last batch of one image is left out, and is no step."""
    planned, real = [], loop.make_schedule
    monkeypatch.setattr(
        loop, "make_schedule", lambda *given: planned.append(given[-1]) or real(*given)
    )
    split, recipe = make_split("train", n, 0), recipe.changed({"class_weights": "none"})
    result = fine_tune(model_of(), split, val, spec, recipe, seed=0, device=CPU)
    assert planned == [result.epochs[0].steps]


@pytest.mark.parametrize("architecture", [VIT, CONV], ids=lambda pair: pair[0])
@pytest.mark.parametrize("space", ["linear_readout", "tune_layernorm"])
def test_frozen_tensors_and_buffers_stay_bit_identical(
    architecture: tuple[str, dict],
    space: str,
    train: Split,
    val: Split,
    spec: ImageSpec,
    recipe: Recipe,
) -> None:
    model = model_of(*architecture, space)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    norms = {name.rsplit(".", 1)[0] for name in trains}
    fine_tune(
        model,
        train,
        val,
        spec,
        recipe.model_copy(update={"epochs": 1, "weight_decay": 0.5}),
        seed=0,
        device=CPU,
    )
    after = model.state_dict()
    for name, value in before.items():
        running = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        if name in trains or (running and name.rsplit(".", 1)[0] in norms):
            assert not torch.equal(value, after[name]), f"{name} should have moved"
        else:
            assert torch.equal(value, after[name]), f"{name} is frozen and moved"


def test_the_same_seed_gives_the_same_bits(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    runs = []
    for seed in (3, 3, 4):
        model = model_of()
        torch.manual_seed(np.random.randint(1000))  # noise from outside must not matter
        result = fine_tune(model, train, val, spec, recipe, seed=seed, device=CPU)
        runs.append((result.probabilities, {k: v.clone() for k, v in model.state_dict().items()}))
    assert np.array_equal(runs[0][0], runs[1][0])
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())
    assert not np.array_equal(runs[0][0], runs[2][0])


@pytest.mark.parametrize("weights", ["balanced", "none"])
def test_micro_batches_add_up_to_the_whole_batch(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe, weights: str
) -> None:
    scores = []
    for micro in (None, 5):
        changed = {"micro_batch_size": micro, "class_weights": weights, "precision": "fp32"}
        model = model_of()
        result = fine_tune(
            model, train, val, spec, recipe.model_copy(update=changed), seed=0, device=CPU
        )
        scores.append(result.probabilities)
    assert np.allclose(scores[0], scores[1], atol=2e-3)


class _Greedy(nn.Module):
    """A model that has memory for a few images only, as a GPU would say it."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return self.inner(x)


def test_out_of_memory_halves_the_micro_batch(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    recipe = recipe.model_copy(update={"precision": "fp32"})
    result = fine_tune(_Greedy(model_of(), 5), train, val, spec, recipe, seed=0, device=CPU)
    plain = fine_tune(model_of(), train, val, spec, recipe, seed=0, device=CPU)
    assert result.micro_batch_size == 4
    assert plain.micro_batch_size == 16
    assert np.allclose(result.probabilities, plain.probabilities, atol=2e-3)


@pytest.mark.parametrize("n", [96, 2])
def test_out_of_memory_of_two_images_is_an_error(
    n: int, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    """Also where a batch has no more: one image alone is more than batch norms can train on."""
    asked: list[int] = []
    model = _Greedy(model_of(), 0)
    model.register_forward_pre_hook(lambda module, given: asked.append(len(given[0])))
    split, recipe = make_split("train", n, 0), recipe.changed({"class_weights": "none"})
    with pytest.raises(torch.OutOfMemoryError):
        fine_tune(model, split, val, spec, recipe, seed=0, device=CPU)
    assert asked == ([16, 8, 4, 2] if n == 96 else [2])


def limited(model: nn.Module, most: int, text: str = "MPS backend out of memory") -> list[int]:
    """Give a model memory for a few images while it evaluates; returns the sizes it is asked for."""
    asked: list[int] = []

    def check(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if not torch.is_grad_enabled():
            asked.append(len(given[0]))
            if asked[-1] > most:
                raise RuntimeError(text)

    model.register_forward_pre_hook(check)
    return asked


@pytest.mark.parametrize("space", ["fullft", "linear_readout"])
def test_out_of_memory_halves_the_batch_of_an_evaluation_for_the_rest_of_the_fine_tune(
    space: str,
    train: Split,
    val: Split,
    spec: ImageSpec,
    recipe: Recipe,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = recipe.model_copy(update={"precision": "fp32"})
    plain = fine_tune(model_of(space=space), train, val, spec, recipe, seed=0, device=CPU)
    model = model_of(space=space)
    asked = limited(model, 20)
    result = fine_tune(model, train, val, spec, recipe, seed=0, device=CPU)
    passes = 1 if space == "linear_readout" else recipe.epochs
    assert asked == [64, 32] + [16] * 4 * passes
    assert np.allclose(result.probabilities, plain.probabilities, atol=1e-6)
    told = [record.getMessage() for record in caplog.records if "out of memory" in record.msg]
    assert told == [f"out of memory: evaluating {size} images at once" for size in (32, 16)]


def test_an_evaluation_goes_on_where_memory_ran_out(val: Split, spec: ImageSpec) -> None:
    model = model_of()
    whole = predict(model, val, spec, precision="fp32")
    seen: list[int] = []

    def short(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if sum(seen) == 40 and len(given[0]) > 1:  # memory that runs out in the middle
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(len(given[0]))

    model.register_forward_pre_hook(short)
    parts = predict(model, val, spec, batch_size=20, precision="fp32")
    assert seen == [20, 20] + [1] * 24
    assert np.allclose(whole, parts, atol=1e-6)


@pytest.mark.parametrize(("most", "text"), [(0, "CUDA out of memory"), (20, "not of memory")])
def test_an_evaluation_fails_where_fewer_images_do_not_help(
    val: Split, spec: ImageSpec, most: int, text: str
) -> None:
    model = model_of()
    asked = limited(model, most, text)
    with pytest.raises(RuntimeError, match=text):
        predict(model, val, spec)
    assert asked == ([64, 32, 16, 8, 4, 2, 1] if most == 0 else [64])


class _NoFloat64(TorchFunctionMode):
    """A device without float64: what is not known to be on the CPU cannot be made double."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        given = (func, *args, *(kwargs or {}).values())
        doubles = any(value is torch.Tensor.double or value is torch.float64 for value in given)
        if doubles and not any(args[0] is moved for moved in self.moved):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        found = func(*args, **kwargs or {})
        if func is torch.Tensor.cpu:
            self.moved.append(found)
        return found


@pytest.mark.parametrize("space", ["fullft", "linear_readout"])
def test_a_device_needs_no_float64(
    space: str, train: Split, val: Split, spec: ImageSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=1, precision="fp32", strategy="fairprune")
    of = {kind: fairprune.sums_of(torch.device(kind)) for kind in ("cpu", "cuda", "mps")}
    assert of == {"cpu": torch.float64, "cuda": torch.float64, "mps": torch.float32}
    monkeypatch.setattr(fairprune, "sums_of", lambda device: of["mps"])
    with _NoFloat64():
        result = fine_tune(model_of(space=space), train, val, spec, recipe, seed=0, device=CPU)
    assert result.probabilities.dtype == np.float64


def test_a_diverged_loss_says_what_to_do(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    with pytest.raises(DivergedError, match="lower the learning rate"):
        fine_tune(
            model_of(),
            train,
            val,
            spec,
            recipe.model_copy(update={"learning_rate": 1e30, "optimizer": "sgd"}),
            seed=0,
            device=CPU,
        )


def test_a_diverged_fine_tune_is_one_line(mlflow_store: str, tmp_path: Path) -> None:
    changes = {"train__learning_rate": 1e30, "train__optimizer": "sgd", "search__space": "fullft"}
    (tmp_path / "tiny.yaml").write_text(tiny_config(**changes).to_yaml())
    arguments = ["--config", str(tmp_path / "tiny.yaml"), "--source", str(write_data(tmp_path))]
    result = CliRunner().invoke(main, ["-q", "finetune", *arguments])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("fairtune: the training loss became ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"optimizer": "adamx"}, "adamx"), ({"schedule": "cosinus"}, "cosinus")],
)
def test_an_unknown_part_is_named(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe, changed: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fine_tune(
            model_of(), train, val, spec, recipe.model_copy(update=changed), seed=0, device=CPU
        )


def test_class_weights() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    balanced = class_weights(labels, 2, "balanced")
    assert balanced.tolist() == pytest.approx([100 / 180, 5.0])
    assert class_weights(labels, 2, "none") is None
    given = class_weights(labels, 2, (1.0, 9.0))
    assert float(given[1] / given[0]) == pytest.approx(9.0)
    assert float(given[torch.from_numpy(labels)].mean()) == pytest.approx(1.0)
    with pytest.raises(InputError, match="class 2 has no training image"):
        class_weights(labels, 3, "balanced")
    with pytest.raises(InputError, match="3 values for 2 classes"):
        class_weights(labels, 2, (1.0, 2.0, 3.0))


def test_predictions_are_probabilities_in_order(val: Split, spec: ImageSpec) -> None:
    model = model_of()
    whole = predict(model, val, spec, batch_size=64, precision="fp32")
    parts = predict(model, val, spec, batch_size=7, precision="fp32")
    assert whole.shape == (len(val), 2)
    assert np.allclose(whole.sum(axis=1), 1)
    assert np.allclose(whole, parts, atol=1e-6)


def test_predicting_leaves_the_mode_of_every_module(val: Split, spec: ImageSpec) -> None:
    model = model_of(*CONV)
    model.train()
    model.bn1.eval()
    predict(model, val, spec)
    assert model.training
    assert not model.bn1.training


def test_a_device_that_is_not_there() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(InputError, match=r"device 'cuda:7' cannot be used here.*device=auto"):
        choose_device("cuda:7")
    with pytest.raises(InputError, match="cannot be used here"):
        choose_device("quantum")


def test_judging_less_often_changes_nothing_else(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    states, found = [], []
    for every in (1, 2):
        model = model_of()
        changed = recipe.model_copy(update={"epochs": 5, "judge_every": every})
        result = fine_tune(model, train, val, spec, changed, seed=0, device=CPU)
        found.append([epoch.number for epoch in result.epochs])
        states.append(model.state_dict())
    assert found == [[1, 2, 3, 4, 5], [2, 4, 5]]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
