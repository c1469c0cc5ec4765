"""A frozen tensor or statistic never moves; a trained one does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fairtune.errors import InputError
from fairtune.peft import apply_mask, build_model, get_space, set_train_mode, trained_share

SIZE = 64


def _step(model: nn.Module) -> None:
    """Take one step of AdamW with weight decay over *all* parameters, as a careless user would."""
    set_train_mode(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    loss = nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 0, 1]))
    loss.backward()
    optimizer.step()


def _build(architecture: str) -> nn.Module:
    options = {"img_size": SIZE} if "vit" in architecture else {}
    return build_model(architecture, num_classes=2, seed=0, options=options)


@pytest.mark.parametrize(
    ("architecture", "space", "which"),
    [
        ("test_vit", "auto_peft1", "all"),
        ("test_vit", "auto_peft1", "none"),
        ("test_vit", "auto_peft1", "norms"),
        ("test_vit", "auto_peft2", "attention"),
        ("test_vit", "fullft", "fullft"),
        ("test_vit", "bitfit", "bitfit"),
        ("test_vit", "tune_attention", "tune_attention"),
        ("test_vit", "components", "alternate"),
        ("test_efficientnet", "stages_norm_conv", "all"),
        ("test_efficientnet", "stages_norm_conv", "none"),
        ("test_efficientnet", "stages_norm_conv", "norms"),
        ("test_efficientnet", "stages_norm_conv", "alternate"),
        ("test_efficientnet", "bitfit", "bitfit"),
        ("test_efficientnet", "parameters", "alternate"),
        ("test_resnet", "stages_norm_conv", "alternate"),
        ("test_convnext", "stages_norm_conv", "norms"),
    ],
)
def test_one_step_moves_the_trained_and_nothing_else(architecture, space, which):
    model = _build(architecture)
    rule = get_space(space)
    known = rule.known_masks(model)
    bits = known[which] if which in known else [i % 2 for i in range(rule.n_bits(model))]
    names = apply_mask(model, rule.mask(model, bits))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _step(model)
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    parameters = {name for name, _ in model.named_parameters()}
    assert moved & parameters == set(names)
    # Statistics move in exactly the layers that have a trained parameter.
    owners = {name.rsplit(".", 1)[0] for name in names}
    expected = {name for name in before if name not in parameters}
    expected = {name for name in expected if name.rsplit(".", 1)[0] in owners}
    assert moved - parameters == expected


def test_real_efficientnet_keeps_its_frozen_statistics():
    model = build_model(
        "tf_efficientnet_lite0", num_classes=2, weights="efficientnet_lite0", seed=0
    )
    rule = get_space("stages_norm_conv")
    apply_mask(model, rule.mask(model, [0, 1, 1, 0] + [0, 0] * 4 + [1, 0]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _step(model)
    after = model.state_dict()
    assert after["bn1.running_mean"].equal(before["bn1.running_mean"])
    counter = "blocks.3.0.bn1.num_batches_tracked"
    assert after[counter].equal(before[counter])
    assert not after["blocks.1.0.bn2.running_var"].equal(before["blocks.1.0.bn2.running_var"])
    assert not after["bn2.running_mean"].equal(before["bn2.running_mean"])
    assert not after["conv_stem.weight"].equal(before["conv_stem.weight"])


def test_apply_returns_sorted_names_and_sets_exactly_these():
    model = _build("test_vit")
    mask = get_space("tune_attention").mask(model)
    names = apply_mask(model, mask)
    assert names == sorted(names) == list(mask.parameters)
    assert sorted(n for n, p in model.named_parameters() if p.requires_grad) == names
    assert trained_share(model) == (mask.trained, mask.total)
    # A second mask undoes the first.
    apply_mask(model, get_space("linear_readout").mask(model))
    assert trained_share(model)[0] == sum(p.numel() for p in model.head.parameters())


def test_dropout_stays_on_while_frozen_norms_are_off():
    model = build_model("test_efficientnet", num_classes=2, seed=0, options={"drop_rate": 0.5})
    apply_mask(model, get_space("linear_readout").mask(model))
    set_train_mode(model)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert all(m.training for m in model.modules() if isinstance(m, nn.Conv2d | nn.Dropout))
    images = torch.randn(2, 3, SIZE, SIZE)
    assert not model(images).equal(model(images))


def test_a_norm_without_parameters_follows_the_whole_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False))
    set_train_mode(model)
    assert model[1].training
    model[0].bias.requires_grad_(False)
    set_train_mode(model)
    assert not model[1].training


def test_a_mask_of_another_model_is_refused_and_changes_nothing(skeleton):
    mask = get_space("linear_readout").mask(skeleton("vit_small_patch16_224"))
    model = _build("test_vit")
    with pytest.raises(InputError, match=r"'vit_small_patch16_224'.*'test_vit'"):
        apply_mask(model, mask)
    assert all(p.requires_grad for p in model.parameters())


def test_a_mask_of_a_deeper_model_of_that_name_is_refused(skeleton):
    mask = get_space("fullft").mask(skeleton("vit_tiny_patch16_224"))
    model = skeleton("vit_tiny_patch16_224", depth=2)
    with pytest.raises(InputError, match="other options"):
        apply_mask(model, mask)
