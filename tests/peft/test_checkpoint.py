"""Base weights + delta = the trained model, bit for bit; anything else is refused."""

from __future__ import annotations

import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fairtune.errors import InputError
from fairtune.peft import (
    BaseModel,
    apply_mask,
    delta_state,
    get_space,
    head_names,
    load_delta,
    save_delta,
    set_train_mode,
    weights_hash,
)
from fairtune.peft.checkpoint import tensors_hash

CASES = [
    ("test_vit", "auto_peft1", "attention"),
    ("test_vit", "linear_readout", "linear_readout"),
    ("test_vit", "fullft", "fullft"),
    ("test_efficientnet", "stages_norm_conv", "norms"),
    ("test_efficientnet", "stages_norm_conv", "none"),
    ("test_efficientnet", "bitfit", "bitfit"),
]


def _base(architecture: str, seed: int = 0) -> BaseModel:
    options = {"img_size": 64} if "vit" in architecture else {}
    return BaseModel(architecture, num_classes=2, options=options, seed=seed)


def _train(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        set_train_mode(model)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 0, 1])
        )
        loss.backward()
        optimizer.step()
    model.eval()


@pytest.fixture
def trained(tmp_path):
    """An EfficientNet whose norms were trained, with its delta on disk."""
    base = _base("test_efficientnet")
    model = base.fresh(1)
    space = get_space("stages_norm_conv")
    apply_mask(model, space.mask(model, space.known_masks(model)["norms"]))
    _train(model)
    path = tmp_path / "delta.safetensors"
    save_delta(path, model, {"note": "a trial"})
    return base, model, path


@pytest.mark.parametrize(("architecture", "space", "which"), CASES)
def test_base_plus_delta_is_the_trained_model(architecture, space, which, tmp_path):
    base = _base(architecture)
    model = base.fresh(1)
    rule = get_space(space)
    apply_mask(model, rule.mask(model, rule.known_masks(model)[which]))
    _train(model)
    path = tmp_path / "delta.safetensors"
    save_delta(path, model, {"note": "a trial"})

    again = base.fresh(2)
    assert load_delta(path, again) == {"note": "a trial"}
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].equal(value), name
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert again(images).equal(model(images))


def test_a_delta_holds_what_training_changed_and_no_more(trained):
    base, model, path = trained
    start, end = base.fresh(1).state_dict(), model.state_dict()
    changed = {name for name in end if not end[name].equal(start[name])}
    assert set(delta_state(model)) == set(load_file(path)) == changed
    assert any("running_mean" in name for name in changed)


def test_a_delta_is_small():
    base = _base("test_vit")
    model = base.fresh(1)
    apply_mask(model, get_space("linear_readout").mask(model))
    assert set(delta_state(model)) == set(head_names(model))


def test_delta_state_is_a_copy(trained):
    _, model, _ = trained
    delta = delta_state(model)
    before = {name: value.clone() for name, value in delta.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(delta[name].equal(before[name]) for name in delta)


def test_channels_last_and_half_precision_survive(tmp_path):
    base = _base("test_efficientnet")
    model = base.fresh(1).to(torch.bfloat16).to(memory_format=torch.channels_last)
    path = tmp_path / "delta.safetensors"
    save_delta(path, model)
    again = base.fresh(2).to(torch.bfloat16)
    load_delta(path, again)
    assert all(again.state_dict()[k].equal(v) for k, v in model.state_dict().items())
    with pytest.raises(InputError, match=r"bfloat16.*float32"):
        load_delta(path, base.fresh(3))


def _refused(path, model, message):
    before = tensors_hash(model.state_dict())
    with pytest.raises(InputError, match=message) as caught:
        load_delta(path, model)
    assert "\n" not in str(caught.value)
    assert tensors_hash(model.state_dict()) == before


def test_other_base_weights_are_refused(trained):
    _refused(trained[2], _base("test_efficientnet", seed=9).fresh(1), "other base weights")


def test_another_architecture_is_refused(trained):
    _refused(trained[2], _base("test_resnet").fresh(1), "'test_efficientnet'.*'test_resnet'")


def test_another_number_of_classes_is_refused(trained):
    model = BaseModel("test_efficientnet", num_classes=5).fresh(0)
    _refused(trained[2], model, r"classifier.* is \(2.*in the model \(5")


def test_a_missing_cut_or_foreign_file_is_refused(trained, tmp_path):
    base, model, path = trained
    _refused(tmp_path / "nowhere.safetensors", model, "no weights file")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-64])
    _refused(cut, base.fresh(1), "cut")
    (tmp_path / "text.safetensors").write_text("hello, I am no checkpoint at all")
    _refused(tmp_path / "text.safetensors", base.fresh(1), "cannot read")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    _refused(tmp_path / "foreign.safetensors", base.fresh(1), "not a delta checkpoint")


def test_one_flipped_bit_is_noticed(trained, tmp_path):
    base, _, path = trained
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    flipped = tmp_path / "flipped.safetensors"
    flipped.write_bytes(content)
    _refused(flipped, base.fresh(1), "damaged")


def test_saving_is_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    _, model, path = trained
    before = path.read_bytes()

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_delta(path, model)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_server_of_another_user_can_read_it(trained):
    assert stat.S_IMODE(trained[2].stat().st_mode) == 0o644


def test_saving_into_no_folder_or_over_own_keys_is_refused(trained, tmp_path):
    _, model, path = trained
    with pytest.raises(InputError, match="no folder"):
        save_delta(tmp_path / "no" / "delta.safetensors", model)
    with pytest.raises(ValueError, match=r"fairtune\.format"):
        save_delta(path, model, {"fairtune.format": "x"})


def test_the_hash_of_weights_is_the_same_everywhere_and_ignores_the_head():
    base = _base("test_efficientnet")
    one, other = base.fresh(1), base.fresh(2)
    assert weights_hash(one) == weights_hash(other.to(memory_format=torch.channels_last))
    buffers = dict(other.named_buffers())
    next(iter(buffers.values())).add_(1)
    assert weights_hash(one) != weights_hash(other)


def test_the_hash_reads_names_shapes_kinds_and_values():
    zero = torch.zeros(4)
    assert tensors_hash({"a": zero, "b": zero}) == tensors_hash({"b": zero, "a": zero})
    different = [
        {"a": zero},
        {"b": zero},
        {"a": zero.reshape(2, 2)},
        {"a": zero.to(torch.int32)},
        {"a": -zero},
        {"a": torch.tensor(0.0)},
        {"a": torch.tensor(0)},
        {"a": torch.zeros(0)},
        {"a": torch.tensor(True)},
    ]
    assert len({tensors_hash(tensors) for tensors in different}) == len(different)
