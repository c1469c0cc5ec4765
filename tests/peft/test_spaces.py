"""Spaces: parity with the published methods, and what every space owes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fairtune.errors import InputError
from fairtune.peft import SPACES, Mask, build_model, components, get_space, head_names
from fairtune.peft.parts import normalization_names

PUBLISHED = [
    "fullft",
    "train_from_scratch",
    "linear_readout",
    "bitfit",
    "tune_layernorm",
    "tune_attention",
    "tune_full_block",
    "tune_attention_blocks_random",
    "tune_layernorm_blocks_random",
    "tune_mlp_blocks_random",
    "tune_attention_layernorm",
    "tune_attention_mlp",
    "tune_layernorm_mlp",
    "tune_attention_layernorm_mlp",
    "tune_attention_params_random",
    "auto_peft1",
    "auto_peft2",
]
# What the bits of one block are, in order: the beginnings of the names that each switches on.
BLOCK_RULE = {
    "tune_full_block": [[""]],
    "tune_attention_blocks_random": [["attn."]],
    "tune_layernorm_blocks_random": [["norm"]],
    "tune_mlp_blocks_random": [["mlp."]],
    "tune_attention_layernorm": [["attn.", "norm"]],
    "tune_attention_mlp": [["attn.", "mlp."]],
    "tune_layernorm_mlp": [["norm", "mlp."]],
    "tune_attention_layernorm_mlp": [["attn.", "norm", "mlp."]],
    "auto_peft1": [["norm"], ["attn."], ["mlp."]],
    "auto_peft2": [["norm1."], ["attn."], ["norm2."], ["mlp."]],
    "tune_attention_params_random": [
        ["attn.qkv.weight"],
        ["attn.qkv.bias"],
        ["attn.proj.weight"],
        ["attn.proj.bias"],
    ],
}
SIZES = [
    ("vit_small_patch16_224", {}),
    ("vit_base_patch32_224", {}),
    ("vit_large_patch16_224", {}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "depth": 5}),
    ("vit_base_patch16_gap_224", {"depth": 3}),
]


def test_golden_masks_are_met_exactly(shared_golden, skeleton):
    entries = json.loads((shared_golden / "fairtune_masks.json").read_text())
    assert {entry["method"] for entry in entries} <= set(PUBLISHED)
    for entry in entries:
        mask = get_space(entry["method"]).mask(skeleton(entry["model"]), entry["mask"] or ())
        assert list(mask.parameters) == entry["trainable"], entry["method"]
        assert mask.trained == entry["trainable_params"], entry["method"]
        assert mask.total == entry["total_params"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_published_methods_are_there(name):
    assert get_space(name).name == name
    assert get_space(name).from_scratch == (name == "train_from_scratch")


@pytest.mark.parametrize(("architecture", "options"), SIZES)
@pytest.mark.parametrize("name", BLOCK_RULE)
def test_block_spaces_follow_the_rule_for_every_size(name, architecture, options, skeleton):
    model = skeleton(architecture, **options)
    rule = BLOCK_RULE[name] * len(model.blocks)
    per_block = len(BLOCK_RULE[name])
    bits = np.random.default_rng(0).integers(0, 2, size=(4, len(rule)))
    for draw in bits:
        wanted = {n for n, _ in model.named_parameters() if n.startswith("head")}
        if name == "tune_attention_params_random":
            wanted.add("pos_embed")
        for index, prefixes in enumerate(rule):
            for prefix in prefixes if draw[index] else ():
                start = f"blocks.{index // per_block}.{prefix}"
                wanted |= {n for n, _ in model.named_parameters() if n.startswith(start)}
        assert list(get_space(name).mask(model, draw).parameters) == sorted(wanted)


@pytest.mark.parametrize(("architecture", "options"), SIZES)
def test_spaces_without_bits_follow_the_rule_for_every_size(architecture, options, skeleton):
    model = skeleton(architecture, **options)
    names = [n for n, _ in model.named_parameters()]

    def trained(space):
        assert get_space(space).n_bits(model) == 0
        return set(get_space(space).mask(model, []).parameters) - set(head_names(model))

    body = set(names) - set(head_names(model))
    assert trained("fullft") == trained("train_from_scratch") == body
    assert trained("linear_readout") == set()
    assert trained("bitfit") == {n for n in body if n.endswith(".bias")}
    assert trained("tune_layernorm") == {n for n in body if "norm" in n}
    assert trained("tune_attention") == {n for n in body if ".attn." in n} | {"pos_embed"}


def test_bit_names_sort_in_order_and_read_well(skeleton):
    model = skeleton("vit_tiny_patch16_224")
    names = get_space("auto_peft1").bit_names(model)
    assert names[9:12] == ("blocks.03.norms", "blocks.03.attn", "blocks.03.mlp")
    blocks = [name.split(".")[1] for name in names]
    assert blocks == sorted(blocks)
    assert get_space("parameters").bit_names(model)[4] == "blocks.00.norm1.weight"
    stages = get_space("stages_norm_conv").bit_names(skeleton("resnet18"))
    assert stages[:2] == ("stages.00.norm", "stages.00.conv")


@pytest.mark.parametrize("architecture", ["test_vit", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("name", ["components", "parameters"])
def test_general_spaces_take_one_bit_each(name, architecture, skeleton):
    model = skeleton(architecture)
    space = get_space(name)
    expected = (
        [c.parameter_names for c in components(model)]
        if name == "components"
        else [(n,) for n, _ in model.named_parameters() if n not in head_names(model)]
    )
    assert space.n_bits(model) == len(expected)
    for index, parameters in enumerate(expected):
        bits = [int(i == index) for i in range(len(expected))]
        trained = set(space.mask(model, bits).parameters)
        assert trained == {*parameters, *head_names(model)}


def test_parameters_takes_a_model_of_no_family(skeleton):
    model = skeleton("densenet121")
    assert get_space("parameters").n_bits(model) == sum(1 for _ in model.parameters()) - 2
    for name in ("fullft", "linear_readout", "bitfit", "tune_layernorm"):
        assert head_names(model)[0] in get_space(name).mask(model).parameters


def test_all_and_norms_of_a_convolutional_net(skeleton):
    model = skeleton("tf_efficientnet_lite0")
    space = get_space("stages_norm_conv")
    known = space.known_masks(model)
    assert list(known) == ["all", "none", "norms"]
    assert known["norms"] == (1, 0) * 7
    assert space.mask(model, known["all"]).share == 1.0
    assert set(space.mask(model, known["norms"]).parameters) == (
        normalization_names(model) | set(head_names(model))
    )
    assert space.mask(model, known["none"]).parameters == tuple(sorted(head_names(model)))


def test_known_masks_of_a_transformer(skeleton):
    model = skeleton("test_vit")
    depth = len(model.blocks)
    assert get_space("auto_peft1").known_masks(model) == {
        "all": (1,) * 3 * depth,
        "none": (0,) * 3 * depth,
        "norms": (1, 0, 0) * depth,
        "attention": (0, 1, 0) * depth,
    }
    assert get_space("auto_peft2").known_masks(model)["norms"] == (1, 0, 1, 0) * depth
    # Where only attention can be had, the mask of ones is that mask already.
    assert list(get_space("tune_attention_blocks_random").known_masks(model)) == ["all", "none"]
    assert list(get_space("tune_full_block").known_masks(model)) == ["all", "none"]
    assert get_space("linear_readout").known_masks(model) == {"linear_readout": ()}


@pytest.mark.parametrize("name", list(SPACES))
def test_known_masks_are_valid_and_differ(name, skeleton):
    if name == "lora":
        pytest.importorskip("peft", reason="the extra `peft` is not installed")
    space = get_space(name)
    architecture = "test_efficientnet" if name == "stages_norm_conv" else "test_vit"
    model = skeleton(architecture)
    masks = [space.mask(model, bits) for bits in space.known_masks(model).values()]
    assert len({mask.fingerprint for mask in masks}) == len(masks) >= 1


@pytest.mark.parametrize("given_bits", [[], [1] * 35, [1] * 37, np.ones(48, dtype=int)])
def test_wrong_length_names_both_lengths(given_bits, skeleton):
    with pytest.raises(ValueError, match=rf"36 bits.*\b{len(given_bits)} were given"):
        get_space("auto_peft1").mask(skeleton("vit_tiny_patch16_224"), given_bits)


@pytest.mark.parametrize("bad", [2, -1, 0.5, float("nan"), "1", None])
def test_a_bit_that_is_none_is_refused_with_its_name_and_both_lengths(bad, skeleton):
    bits = [0] * 36
    bits[10] = bad
    with pytest.raises(ValueError, match=r"bit 10 of 36 \('blocks.03.attn'\).*has 36 bits"):
        get_space("auto_peft1").mask(skeleton("vit_tiny_patch16_224"), bits)


def test_bits_of_a_space_without_bits_are_refused(skeleton):
    with pytest.raises(ValueError, match=r"0 bits.*1 were given"):
        get_space("fullft").mask(skeleton("test_vit"), [1])


def test_unknown_space_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'auto_peft1'"):
        get_space("autopeft1")


@pytest.mark.parametrize("name", [*BLOCK_RULE, "tune_attention"])
def test_block_spaces_refuse_a_convolutional_net(name, skeleton):
    with pytest.raises(InputError, match=f"'{name}'.*'resnet18'.*'stages_norm_conv'"):
        get_space(name).mask(skeleton("resnet18"), [])


def test_stage_space_refuses_a_transformer(skeleton):
    with pytest.raises(InputError, match=r"'stages_norm_conv'.*'test_vit'.*'auto_peft1'"):
        get_space("stages_norm_conv").n_bits(skeleton("test_vit"))


def test_attention_parameters_refuses_attention_without_these_tensors(skeleton):
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.qkv\.bias: take 'parameters'"):
        get_space("tune_attention_params_random").n_bits(skeleton("beit_base_patch16_224"))


SEARCHED = [
    ("auto_peft1", "vit_tiny_patch16_224"),
    ("auto_peft2", "deit3_small_patch16_224"),
    ("tune_attention_params_random", "vit_tiny_patch16_224"),
    ("stages_norm_conv", "tf_efficientnet_lite0"),
    ("components", "convnext_atto"),
    ("parameters", "test_vit"),
]


@settings(deadline=None, max_examples=40)
@given(case=st.sampled_from(SEARCHED), data=st.data())
def test_any_bits_make_a_mask_that_survives_json_and_grows_with_its_bits(case, data, skeleton):
    name, architecture = case
    model, space = skeleton(architecture), get_space(name)
    n = space.n_bits(model)
    bits = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    mask = space.mask(model, bits)
    assert Mask.from_json(mask.to_json()) == mask
    assert set(head_names(model)) <= set(mask.parameters)
    off = [i for i, bit in enumerate(bits) if not bit]
    if off:
        more = list(bits)
        more[data.draw(st.sampled_from(off))] = 1
        larger = space.mask(model, more)
        assert set(mask.parameters) < set(larger.parameters)
        assert mask.trained < larger.trained
        assert mask.fingerprint != larger.fingerprint


def small_vit(depth: int) -> nn.Module:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "depth": depth}
    return build_model("vit_tiny_patch16_224", num_classes=2, options=options)


def test_a_mask_can_stand_for_a_space_of_its_own() -> None:
    model = small_vit(2)
    one = get_space("tune_attention_blocks_random").mask(model, (0, 1))
    fixed = get_space("tune_attention_blocks_random:01")
    assert fixed.n_bits(model) == 0
    assert fixed.mask(model).parameters == one.parameters
    assert (fixed.mask(model).trained, fixed.mask(model).total) == (one.trained, one.total)
    assert (
        get_space("auto_peft1:1").mask(model).parameters
        == get_space("auto_peft1").mask(model, (1,) * 6).parameters
    )
    with pytest.raises(InputError, match="has 2 bits .* but 3 were given"):
        get_space("tune_attention_blocks_random:011").mask(model)
    with pytest.raises(InputError, match="after the colon stand bits like 1011"):
        get_space("auto_peft1:norms")
    with pytest.raises(InputError, match="did you mean 'auto_peft1'"):
        get_space("auto_pef1:1")


def test_adapters_of_one_rank_everywhere() -> None:
    from fairtune.peft import apply_mask

    model = small_vit(2)
    mask = get_space("lora:8").mask(model)
    trained = apply_mask(model, mask, seed=0)
    assert any("lora_A" in name for name in trained)
    assert mask.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_last_blocks_and_what_follows_them() -> None:
    model = small_vit(4)
    names = get_space("last_blocks").mask(model).parameters
    assert {name.split(".")[1] for name in names if name.startswith("blocks.")} == {"2", "3"}
    assert {"norm.weight", "head.weight"} <= set(names)
    assert "pos_embed" not in names
