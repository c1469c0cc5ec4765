"""The contract that every strategy keeps, whatever the mask and the architecture."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fairtune.errors import InputError
from fairtune.peft import delta_state
from fairtune.tracking.runs import is_store_failure
from fairtune.training import (
    STRATEGIES,
    Augment,
    FineTuneResult,
    ImageSpec,
    Recipe,
    Split,
    fine_tune,
    make_strategy,
    predict,
)
from fairtune.training.pause import load_state, save_state
from training.conftest import SIZE, make_split
from training.test_loop import CONV, CPU, VIT, model_of

MASKS = {
    "vit": (
        VIT,
        [
            "linear_readout",
            "tune_layernorm",
            "fullft",
            "bitfit",
            "tune_attention",
            "train_from_scratch",
        ],
    ),
    "efficientnet": (CONV, ["linear_readout", "tune_layernorm", "fullft", "bitfit"]),
}
MASKED = [
    pytest.param(architecture, mask, id=f"{family}-{mask}")
    for family, (architecture, masks) in MASKS.items()
    for mask in masks
]
NAMES = sorted(STRATEGIES)
BLIND = [name for name in NAMES if not STRATEGIES[name].uses_groups]
SEEING = [name for name in NAMES if STRATEGIES[name].uses_groups]
# Options under which a short run on the toy task does what a long one does on a real task.
OPTIONS: dict[str, dict] = {"ema": {"decay": 0.9}}
SPEC = ImageSpec(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def small_train() -> Split:
    return make_split("train", 48, 0)


@pytest.fixture(scope="module")
def small_val() -> Split:
    return make_split("val", 24, 1)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        epochs=1,
        batch_size=16,
        learning_rate=3e-3,
        augment=Augment(crop_scale=(0.5, 1.0)),
        precision="fp32",
    )


def with_strategy(recipe: Recipe, name: str, **changes: object) -> Recipe:
    options = OPTIONS.get(name, {}) | changes.pop("options", {})
    values = recipe.model_dump() | {"strategy": name, "strategy_options": options} | changes
    return Recipe.model_validate(values)


def run(
    model: nn.Module, train: Split, val: Split, recipe: Recipe, seed: int = 0, **more: Any
) -> FineTuneResult:
    return fine_tune(model, train, val, SPEC, recipe, seed=seed, device=CPU, **more)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("architecture", "mask"), MASKED)
def test_only_what_the_mask_lets_train_changes(
    name: str,
    architecture: tuple[str, dict],
    mask: str,
    small_train: Split,
    small_val: Split,
    recipe: Recipe,
) -> None:
    model = model_of(*architecture, mask)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    names = [key for key, _ in model.named_parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    trains = set(delta_state(model))
    result = run(model, small_train, small_val, with_strategy(recipe, name, weight_decay=0.5))
    after = model.state_dict()
    assert list(after) == list(before)
    assert [key for key, _ in model.named_parameters()] == names
    assert [p.requires_grad for p in model.parameters()] == flags
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert moved, "nothing trained"
    assert moved <= trains, f"frozen and moved: {sorted(moved - trains)[:3]}"
    assert np.isfinite(result.probabilities).all()
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls_and_the_model_learns(
    name: str, train: Split, val: Split, recipe: Recipe
) -> None:
    result = run(model_of(), train, val, with_strategy(recipe, name, epochs=6))
    assert result.epochs[-1].loss < result.epochs[0].loss
    assert result.report.headline["auroc"] > 0.75


@pytest.mark.parametrize(
    ("name", "architecture"),
    [*((name, "vit") for name in NAMES), ("erm", "efficientnet"), ("swad", "efficientnet")],
)
def test_a_fine_tune_that_paused_goes_on_to_the_same_bits(
    name: str,
    architecture: str,
    small_train: Split,
    small_val: Split,
    recipe: Recipe,
    tmp_path: Path,
) -> None:
    changed = with_strategy(recipe, name, epochs=4)
    (family, options), paused = MASKS[architecture][0], tmp_path / "paused" / "trial.pt"

    def go(*pauses: int, done: int = 0) -> tuple[dict[str, torch.Tensor], list[float], list[int]]:
        model = model_of(family, {**options, "drop_rate": 0.2}, "fullft")
        goes_on = {"on_epoch": lambda epoch: epoch.number not in pauses, "pauses_at": pauses}
        result = run(model, small_train, small_val, changed, paused=paused, done=done, **goes_on)
        return delta_state(model), result.probabilities.tolist(), [e.number for e in result.epochs]

    whole, scores, _ = go()
    assert not paused.exists()
    assert go(1, 3)[2] == [1]
    assert go(1, 3, done=1)[2] == [2, 3]
    state, again, epochs = go(1, 3, done=3)
    assert epochs == [4]
    assert again == scores
    assert same(whole, state)


@pytest.mark.parametrize("what", ["another device's", "cut off", "empty", "none"])
def test_a_state_that_cannot_be_used_costs_epochs_alone(
    what: str, small_train: Split, small_val: Split, recipe: Recipe, tmp_path: Path
) -> None:
    paused = tmp_path / "trial.pt"

    def go(pauses: int, done: int = 0) -> FineTuneResult:
        return run(
            model_of(),
            small_train,
            small_val,
            recipe.changed({"epochs": 3}),
            on_epoch=lambda epoch: epoch.number != pauses,
            paused=paused,
            pauses_at=(1,),
            done=done,
        )

    go(1)
    if what == "another device's":
        torch.save({**torch.load(paused, weights_only=True), "device": "cuda"}, paused)
    elif what == "none":
        paused.unlink()
    else:
        paused.write_bytes(paused.read_bytes()[: 0 if what == "empty" else 1000])
    again = go(3, done=1)
    assert [epoch.number for epoch in again.epochs] == [1, 2, 3]
    assert np.array_equal(again.probabilities, go(0).probabilities)


def test_a_full_disk_is_said_to_be_one_and_leaves_nothing(tmp_path: Path) -> None:
    path, (soft, hard) = tmp_path / "trial.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    save_state(path, {"epoch": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises((OSError, RuntimeError)) as full:
            save_state(path, {"epoch": 2, "model": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_store_failure(full.value)
    assert load_state(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [False, True], ids=["to the end", "stopped"])
def test_the_last_report_is_of_the_model_that_comes_back(
    name: str, stop: bool, small_train: Split, small_val: Split, recipe: Recipe
) -> None:
    model = model_of()
    changed = with_strategy(recipe, name, epochs=2)
    result = run(model, small_train, small_val, changed, on_epoch=lambda _: not stop)
    assert len(result.epochs) == (1 if stop else 2)
    again = predict(model, small_val, SPEC, precision="fp32")
    assert np.array_equal(result.probabilities, again)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_bits(
    name: str, small_train: Split, small_val: Split, recipe: Recipe
) -> None:
    runs = []
    for seed in (3, 3, 4):
        model = model_of()
        torch.manual_seed(np.random.randint(1000))  # noise from outside must not matter
        result = run(model, small_train, small_val, with_strategy(recipe, name, epochs=2), seed)
        runs.append((result.probabilities, {k: v.clone() for k, v in model.state_dict().items()}))
    assert np.array_equal(runs[0][0], runs[1][0])
    assert same(runs[0][1], runs[1][1])
    assert not np.array_equal(runs[0][0], runs[2][0])


@pytest.mark.parametrize("name", NAMES)
def test_wrong_groups_change_a_strategy_only_if_it_declares_them(
    name: str, small_train: Split, small_val: Split, recipe: Recipe
) -> None:
    rng = np.random.default_rng(7)

    def misled(split: Split) -> Split:
        wrong = rng.permutation(split.groups["site"].to_numpy())
        return dataclasses.replace(split, groups=pd.DataFrame({"site": wrong}))

    states = []
    for train, val in ((small_train, small_val), (misled(small_train), misled(small_val))):
        model = model_of()
        run(model, train, val, with_strategy(recipe, name, epochs=2))
        states.append(model.state_dict())
    assert same(*states) == (name in BLIND)


@pytest.mark.parametrize("name", BLIND)
def test_a_blind_strategy_trains_where_groups_are_missing(
    name: str, small_train: Split, small_val: Split, recipe: Recipe
) -> None:
    nothing = pd.DataFrame({"site": [None] * len(small_train)})
    split = dataclasses.replace(small_train, groups=nothing)
    model = model_of()
    before = {key: value.clone() for key, value in delta_state(model).items()}
    result = run(model, split, small_val, with_strategy(recipe, name))
    assert np.isfinite([epoch.loss for epoch in result.epochs]).all()
    moved = [
        key for key, value in delta_state(model).items() if not torch.equal(value, before[key])
    ]
    assert moved


@pytest.mark.parametrize("name", SEEING)
def test_a_seeing_strategy_names_the_row_without_a_group(
    name: str, small_train: Split, small_val: Split, recipe: Recipe
) -> None:
    sites = small_train.groups["site"].astype(object).to_numpy().copy()
    sites[5] = None
    split = dataclasses.replace(small_train, groups=pd.DataFrame({"site": sites}))
    with pytest.raises(InputError, match=r"'site' has no value in 1 of 48 rows .*row 5"):
        run(model_of(), split, small_val, with_strategy(recipe, name))


@pytest.mark.parametrize("name", NAMES)
def test_three_classes_and_several_attributes(
    name: str, small_train: Split, small_val: Split, recipe: Recipe
) -> None:
    from fairtune.peft import apply_mask, build_model, get_space

    rng = np.random.default_rng(0)

    def widened(split: Split) -> Split:
        groups = split.groups.assign(age=rng.permutation(np.arange(len(split)) % 3))
        labels = rng.permutation(np.arange(len(split)) % 3)
        return dataclasses.replace(split, labels=labels, groups=groups, classes=("a", "b", "c"))

    model = build_model(VIT[0], num_classes=3, options=VIT[1], seed=0)
    apply_mask(model, get_space("tune_layernorm").mask(model, ()))
    result = run(model, widened(small_train), widened(small_val), with_strategy(recipe, name))
    assert result.probabilities.shape == (24, 3)
    assert np.isfinite(result.probabilities).all()


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_give_the_gradients_of_the_whole_batch(
    name: str, small_train: Split, small_val: Split, recipe: Recipe
) -> None:
    states = []
    for micro in (None, 6):
        model = model_of()
        changed = with_strategy(recipe, name, micro_batch_size=micro, optimizer="sgd")
        run(model, small_train, small_val, changed)
        states.append(model.state_dict())
    for key, value in states[0].items():
        assert torch.allclose(value, states[1][key], atol=1e-4), key


@pytest.mark.parametrize("name", NAMES)
def test_the_rest_of_the_recipe_still_holds(
    name: str, small_train: Split, small_val: Split, recipe: Recipe
) -> None:
    changed = with_strategy(
        recipe,
        name,
        layer_decay=0.7,
        precision="bf16",
        clip_gradient=0.1,
        label_smoothing=0.1,
        class_weights=(1.0, 2.0),
    )
    model = model_of(space="tune_attention")
    result = run(model, small_train, small_val, changed)
    assert np.isfinite(result.probabilities).all()


def test_plain_training_is_the_plainest_loop(
    small_train: Split, small_val: Split, recipe: Recipe
) -> None:
    """Bit for bit: what `erm` does is what twelve lines of PyTorch do."""
    from timm.optim import create_optimizer_v2

    from fairtune.data.batches import Augmentation, train_batches
    from fairtune.seeding import seed as named_seed
    from fairtune.training import class_weights
    from fairtune.training.optimization import make_schedule

    recipe = with_strategy(recipe, "erm")
    ours, theirs = model_of(), model_of()
    run(ours, small_train, small_val, recipe, seed=5)

    optimizer = create_optimizer_v2(theirs, opt="adamw", lr=3e-3, weight_decay=0.01, fused=True)
    loss_of = nn.CrossEntropyLoss(class_weights(small_train.labels, 2, "balanced"))
    schedule = make_schedule(optimizer, recipe, 3)
    theirs.train()
    batches = train_batches(
        small_train.images,
        small_train.rows,
        small_train.labels,
        batch_size=16,
        size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        device=CPU,
        augmentation=Augmentation(crop_scale=(0.5, 1.0)),
        seed=named_seed(5, "epoch", 1),
    )
    for update, (x, y, _) in enumerate(batches):
        schedule.step_update(update)
        loss_of(theirs(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same(ours.state_dict(), theirs.state_dict())


def test_a_strategy_is_made_by_name_and_options() -> None:
    assert make_strategy("group_dro", {"step_size": 0.5}).step_size == 0.5
    with pytest.raises(InputError, match=r"unknown strategy 'group_dor'; did you mean 'group_dro'"):
        make_strategy("group_dor")
    with pytest.raises(
        InputError,
        match=r"'stepsize'; did you mean 'step_size'\? \(known: adjustment, cells, step",
    ):
        make_strategy("group_dro", {"stepsize": 1})
    with pytest.raises(InputError, match="strategy 'erm' has no options, but 'rho' is given"):
        make_strategy("erm", {"rho": 1})
    with pytest.raises(InputError, match=r"'group_dro': step_size: .*greater than 0, not -1"):
        make_strategy("group_dro", {"step_size": -1})


def test_a_recipe_refuses_what_no_strategy_knows() -> None:
    with pytest.raises(ValueError, match="unknown option of strategy 'group_dro': 'rho'"):
        Recipe(strategy="group_dro", strategy_options={"rho": 1})
    with pytest.raises(ValueError, match="unknown option of strategy 'dfr': 'cells'"):
        Recipe(strategy="dfr", strategy_options={"cells": "group"})  # would balance no classes
    with pytest.raises(ValueError, match="unknown strategy 'nothing'"):
        Recipe(strategy="nothing")


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_is_described(name: str) -> None:
    kind = STRATEGIES[name]
    assert "References\n" in kind.__doc__
    assert make_strategy(name).model_config["frozen"]
    for option, field in kind.model_fields.items():
        assert field.description, f"{name}.{option}"
