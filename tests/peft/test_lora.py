"""The space of adapters, through the library peft."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from fairtune.errors import InputError
from fairtune.peft import (
    BaseModel,
    Mask,
    apply_mask,
    build_model,
    get_space,
    head_names,
    load_delta,
    merge_adapters,
    save_delta,
    set_train_mode,
    trained_share,
    weights_hash,
)

OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 11, "num_heads": 3}
RANKS = [4, 0, 16, 0, 8, 0] + [0] * 24 + [0, 16, 4]
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def base() -> BaseModel:
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    return BaseModel("vit_tiny_patch16_224", num_classes=2, options=OPTIONS)


@pytest.fixture
def mask(base) -> Mask:
    return get_space("lora").mask(base.model, RANKS)


def _train(model: nn.Module) -> None:
    set_train_mode(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):  # B starts at zero, so that A has a gradient only in the second step
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    model.eval()


def test_bits_are_ranks_per_block(base, mask):
    space = get_space("lora")
    assert space.levels == (0, 4, 8, 16)
    names = space.bit_names(base.model)
    assert names[3:6] == ("blocks.01.attn.qkv", "blocks.01.attn.proj", "blocks.01.mlp")
    assert len(names) == 33
    assert space.known_masks(base.model) == {
        "all": (16,) * 33,
        "none": (0,) * 33,
        "attention": (16, 16, 0) * 11,
    }
    assert mask.text.startswith("4-0-16-0-8-0")
    assert Mask.from_json(mask.to_json()) == mask
    with pytest.raises(InputError, match=r"one of 0, 4, 8, 16"):
        space.mask(base.model, [1] * 33)


def test_only_adapters_of_the_given_ranks_and_the_head_train(base, mask):
    model = base.fresh(0)
    names = apply_mask(model, mask)
    assert sorted(n for n, p in model.named_parameters() if p.requires_grad) == names
    assert trained_share(model) == (mask.trained, mask.total)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    assert shapes.pop("blocks.0.attn.qkv.lora_A.default.weight") == (4, 48)
    assert shapes.pop("blocks.0.attn.qkv.lora_B.default.weight") == (144, 4)
    assert shapes.pop("blocks.0.mlp.fc2.lora_A.default.weight") == (16, 192)
    # Block 1 must not match block 10, whose name begins the same.
    assert shapes.pop("blocks.1.attn.proj.lora_A.default.weight") == (8, 48)
    assert shapes.pop("blocks.10.attn.proj.lora_A.default.weight") == (16, 48)
    assert shapes.pop("blocks.10.mlp.fc1.lora_A.default.weight") == (4, 48)
    rest = set(shapes) - set(head_names(model))
    assert {name.split(".")[1] for name in rest} == {"0", "1", "10"}


def test_adapters_change_nothing_until_they_are_trained(base, mask):
    plain, adapted = base.fresh(0), base.fresh(0)
    apply_mask(adapted, mask)
    with torch.no_grad():
        assert adapted(IMAGES).equal(plain(IMAGES))


def test_training_moves_adapters_and_head_alone(base, mask):
    model = base.fresh(0)
    names = apply_mask(model, mask)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _train(model)
    assert sorted(n for n, v in model.state_dict().items() if not v.equal(before[n])) == names


def test_the_draw_depends_on_the_seed_alone(base, mask):
    def drawn(seed):
        model = base.fresh(0)
        apply_mask(model, mask, seed=seed)
        return model.state_dict()["blocks.0.attn.qkv.lora_A.default.weight"]

    state = torch.random.get_rng_state()
    assert drawn(1).equal(drawn(1))
    assert not drawn(1).equal(drawn(2))
    assert torch.random.get_rng_state().equal(state)


def test_delta_and_merge_give_the_trained_model(base, mask, tmp_path):
    model = base.fresh(1)
    apply_mask(model, mask)
    _train(model)
    save_delta(tmp_path / "delta.safetensors", model)
    again = base.fresh(2)
    apply_mask(again, mask, seed=5)
    load_delta(tmp_path / "delta.safetensors", again)
    with torch.no_grad():
        expected = model(IMAGES)
        assert again(IMAGES).equal(expected)
        merged = merge_adapters(again)
        torch.testing.assert_close(merged(IMAGES), expected, atol=1e-5, rtol=1e-5)
    # A plain timm model again: what serves it knows nothing of adapters.
    plain = build_model("vit_tiny_patch16_224", num_classes=2, options=OPTIONS)
    plain.load_state_dict(merged.state_dict(), strict=True)
    assert weights_hash(merged) != base.hash


def test_what_an_adapter_adds_is_b_times_a_whatever_its_rank(base, mask):
    model = base.fresh(0)
    apply_mask(model, mask)
    _train(model)
    state = model.state_dict()
    merged = merge_adapters(model).state_dict()
    for layer in ("blocks.0.attn.qkv", "blocks.1.attn.proj", "blocks.10.mlp.fc1"):
        a, b = (state[f"{layer}.lora_{half}.default.weight"] for half in "AB")
        added = merged[f"{layer}.weight"] - base.model.state_dict()[f"{layer}.weight"]
        assert added.abs().max() > 1e-4
        torch.testing.assert_close(added, b @ a, atol=1e-6, rtol=1e-4)


def test_rank_zero_everywhere_is_the_linear_probe(base):
    model = base.fresh(0)
    names = apply_mask(model, get_space("lora").mask(model, [0] * 33))
    assert names == sorted(head_names(model))
    assert merge_adapters(model) is model


def test_adapters_twice_are_refused(base, mask):
    model = base.fresh(0)
    apply_mask(model, mask)
    with pytest.raises(InputError, match="adapters already"):
        apply_mask(model, mask)


def test_a_model_of_another_depth_is_refused(base, mask):
    other = build_model("vit_tiny_patch16_224", num_classes=2, options={**OPTIONS, "depth": 2})
    with pytest.raises(InputError, match="33 places for adapters, the model has 6"):
        apply_mask(other, mask)


def test_models_that_adapters_do_not_fit_are_refused(base, skeleton):
    with pytest.raises(InputError, match="'resnet18' is none"):
        get_space("lora").n_bits(skeleton("resnet18"))
    with pytest.raises(InputError, match=r"linear layer blocks\.0\.mlp\.fc1"):
        get_space("lora").n_bits(skeleton("vit_giant_patch14_dinov2", depth=1, mlp_layer=_Odd))


class _Odd(nn.Module):
    def __init__(self, **_: object) -> None:
        super().__init__()
        self.only = nn.Linear(1, 1)


def test_without_the_library_the_message_says_what_to_install(skeleton, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    with pytest.raises(InputError, match="pip install peft"):
        get_space("lora").n_bits(skeleton("test_vit"))
