"""The components are a partition, over the families of timm."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from fairtune.errors import InputError
from fairtune.peft import Component, components, head_names, rest_names

TRANSFORMERS = [
    "vit_tiny_patch16_224",
    "vit_base_patch16_gap_224",
    "vit_base_patch16_clip_224",
    "vit_medium_patch16_reg4_gap_256",
    "vit_small_patch14_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_small_r26_s32_224",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "test_vit4",
]
CONVOLUTIONAL = [
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "efficientnetv2_rw_t",
    "mobilenetv3_small_050",
    "resnet18",
    "resnet50",
    "resnetv2_50",
    "seresnet33ts",
    "regnetx_002",
    "convnext_atto",
    "convnextv2_atto",
    "nfnet_f0",
    "test_efficientnet_gn",
]
OTHERS = [
    "densenet121",
    "mixer_s32_224",
    "swin_tiny_patch4_window7_224",
    "vgg11",
    "hrnet_w18_small",
]


def _by_name(model: nn.Module) -> dict[str, Component]:
    return {component.name: component for component in components(model)}


@pytest.mark.parametrize("architecture", TRANSFORMERS + CONVOLUTIONAL)
def test_components_head_and_rest_partition_the_parameters(architecture, skeleton):
    model = skeleton(architecture)
    order = [name for name, _ in model.named_parameters()]
    pieces = [c.parameter_names for c in components(model)]
    pieces += [head_names(model), rest_names(model)]
    together = [name for piece in pieces for name in piece]
    assert sorted(together) == sorted(order)
    assert len(together) == len(set(together))
    assert all(piece for piece in pieces[:-1])
    for piece in pieces:
        assert list(piece) == [name for name in order if name in set(piece)]


@pytest.mark.parametrize("architecture", TRANSFORMERS)
def test_every_block_of_a_transformer_has_the_four(architecture, skeleton):
    model = skeleton(architecture)
    found = _by_name(model)
    for i in range(len(model.blocks)):
        for part in ("norm1", "attn", "norm2", "mlp"):
            prefix = f"blocks.{i}.{part}."
            expected = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
            assert list(found[f"blocks.{i}.{part}"].parameter_names) == expected
    assert all(not name.startswith("blocks.") for name in rest_names(model))


def test_layer_scale_is_a_component_of_its_own(skeleton):
    found = _by_name(skeleton("deit3_small_patch16_224"))
    assert found["blocks.3.other"].parameter_names == ("blocks.3.ls1.gamma", "blocks.3.ls2.gamma")
    assert len(found) == 12 * 5
    assert not any(name.endswith("other") for name in _by_name(skeleton("vit_tiny_patch16_224")))


def test_normalised_queries_belong_to_the_attention(skeleton):
    found = _by_name(skeleton("vit_tiny_patch16_224", qk_norm=True))
    assert "blocks.0.attn.q_norm.weight" in found["blocks.0.attn"].parameter_names


@pytest.mark.parametrize("architecture", CONVOLUTIONAL)
def test_stages_take_everything_and_norms_are_norms(architecture, skeleton):
    model = skeleton(architecture)
    assert rest_names(model) == ()
    for component in components(model):
        kind = component.name.rsplit(".", 1)[1]
        for name in component.parameter_names:
            owner = model.get_submodule(name.rsplit(".", 1)[0]) if "." in name else model
            assert ("norm" in type(owner).__name__.lower()) == (kind == "norm"), name


@pytest.mark.parametrize(
    ("architecture", "stages"),
    [
        ("tf_efficientnet_lite0", [f"blocks.{i}." for i in range(7)]),
        ("resnet18", [f"layer{i}." for i in range(1, 5)]),
        ("regnetx_002", [f"s{i}." for i in range(1, 5)]),
        ("convnext_atto", [f"stages.{i}." for i in range(4)]),
    ],
)
def test_what_lies_in_a_stage_belongs_to_it(architecture, stages, skeleton):
    model = skeleton(architecture)
    found = _by_name(model)
    for index, prefix in enumerate(stages):
        inside = {name for name, _ in model.named_parameters() if name.startswith(prefix)}
        parts = (found[f"stages.{index}.{part}"].parameter_names for part in ("norm", "conv"))
        assert inside <= {name for part in parts for name in part}


def test_stem_and_top_of_an_efficientnet_join_the_outer_stages(skeleton):
    found = _by_name(skeleton("tf_efficientnet_lite0"))
    assert list(found) == [f"stages.{i}.{part}" for i in range(7) for part in ("norm", "conv")]
    assert "conv_stem.weight" in found["stages.0.conv"].parameter_names
    assert "bn1.bias" in found["stages.0.norm"].parameter_names
    assert "conv_head.weight" in found["stages.6.conv"].parameter_names
    assert "bn2.weight" in found["stages.6.norm"].parameter_names
    assert "blocks.3.1.bn2.weight" in found["stages.3.norm"].parameter_names


def test_stem_of_a_resnet_and_head_norm_of_a_convnext(skeleton):
    resnet = _by_name(skeleton("resnet18"))
    assert list(resnet) == [f"stages.{i}.{part}" for i in range(4) for part in ("norm", "conv")]
    assert resnet["stages.0.conv"].parameter_names[0] == "conv1.weight"
    convnext = _by_name(skeleton("convnext_atto"))
    assert "head.norm.weight" in convnext["stages.3.norm"].parameter_names


def test_a_net_without_norms_has_no_norm_components(skeleton):
    assert [c.name for c in components(skeleton("nfnet_f0"))] == [
        f"stages.{i}.conv" for i in range(4)
    ]


def test_distilled_model_has_two_heads(skeleton):
    assert head_names(skeleton("deit_tiny_distilled_patch16_224")) == (
        "head.weight",
        "head.bias",
        "head_dist.weight",
        "head_dist.bias",
    )


def test_a_model_without_classifier_has_no_head():
    with torch.device("meta"):
        assert head_names(timm.create_model("test_vit", num_classes=0)) == ()


@pytest.mark.parametrize("architecture", OTHERS)
def test_another_model_is_refused_with_the_supported_families(architecture, skeleton):
    with pytest.raises(InputError, match=f"'{architecture}'.*vit.*efficientnet.*'parameters'"):
        components(skeleton(architecture))


def test_a_model_that_is_not_from_timm_is_refused_by_its_class():
    with pytest.raises(InputError, match="'Linear'"):
        components(nn.Linear(2, 2))
