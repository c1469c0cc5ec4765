"""Every fast path comes to what the plain one comes to."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch._dynamo.utils import counters

from fairtune.data import batches
from fairtune.data.prefetch import ahead
from fairtune.errors import InputError
from fairtune.peft import apply_mask, build_model, get_space, set_train_mode
from fairtune.training import (
    FineTuneResult,
    ImageSpec,
    Recipe,
    Split,
    fine_tune,
    memory,
    predict,
)
from fairtune.training.attention import PlainAttention, use_plain_attention
from fairtune.training.compilation import LONG, compile_blocks
from fairtune.training.depthwise import (
    DepthwiseConv2d,
    DepthwiseConv2dSame,
    use_fast_depthwise,
)
from fairtune.training.hardware import deterministic
from fairtune.training.memory import SHARE, fits, is_out_of_memory, on_device, peak, reset_peak
from fairtune.training.optimization import make_optimizer
from fairtune.training.predict import Judge
from fairtune.training.profile import STEPS, WARM_UP, profiled
from fairtune.training.step import part_sizes

CPU = torch.device("cpu")
OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}


def vit(space: str = "fullft", bits: tuple[int, ...] = ()) -> nn.Module:
    model = build_model("vit_tiny_patch16_224", num_classes=2, options=OPTIONS, seed=0)
    apply_mask(model, get_space(space).mask(model, bits))
    return model


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model(x).float().square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=atol) for k in a)


@pytest.mark.parametrize("bits", [(1, 1, 1, 1, 1, 1), (0, 0, 1, 1, 0, 0), (0, 1, 0, 0, 0, 0)])
def test_plain_attention_has_the_gradients_of_timms(bits: tuple[int, ...]) -> None:
    model = vit("auto_peft1", bits)
    fast = copy.deepcopy(model)
    use_plain_attention(fast)
    assert all(type(block.attn) is PlainAttention for block in fast.blocks)
    assert list(fast.state_dict()) == list(model.state_dict())
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(fast(x), model(x), atol=1e-6)
    assert same(gradients(fast, x), gradients(model, x), atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(fast(x), model(x), atol=1e-6)


def test_plain_attention_leaves_masks_and_dropout_to_timm() -> None:
    model = vit()
    fast = copy.deepcopy(model)
    use_plain_attention(fast)
    x = torch.randn(2, 5, 48)
    causal = [m.blocks[0].attn(x, is_causal=True) for m in (model, fast)]
    assert torch.allclose(*causal, atol=1e-6)
    attention = fast.blocks[0].attn.train()
    attention.attn_drop.p = 0.9
    assert not torch.allclose(attention(x), model.blocks[0].attn(x), atol=1e-3)


@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [
        (3, 2, (13, 10)),
        (3, (2, 1), (13, 10)),
        (5, 1, (13, 10)),
        (5, 2, (13, 10)),
        (7, 1, (13, 10)),
        (7, (2, 1), (13, 10)),
        (3, 1, (2, 2)),
        (3, 1, (1, 4)),
        (5, 1, (2, 2)),
    ],
)
@pytest.mark.parametrize("same_padding", [False, True])
def test_depthwise_has_the_gradients_of_torchs(
    kernel: int, stride: int | tuple[int, int], size: tuple[int, int], same_padding: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    kind = Conv2dSame if same_padding else nn.Conv2d
    padding = 0 if same_padding else kernel // 2
    model = nn.Sequential(kind(6, 6, kernel, stride, padding, groups=6))
    fast = copy.deepcopy(model)
    use_fast_depthwise(fast)
    assert type(fast[0]) in (DepthwiseConv2d, DepthwiseConv2dSame)
    assert list(fast.state_dict()) == list(model.state_dict())
    found = []
    for one in (model, fast):
        x = torch.randn(2, 6, *size, generator=generator.manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = one(x)
        slow = kernel > 3 or stride != 1 or not same_padding
        assert ("_Depthwise" in str(out.grad_fn)) == (one is fast and slow)
        out.float().square().sum().backward()
        found.append([out.float(), x.grad, one[0].weight.grad, one[0].bias.grad])
    for plain, ours in zip(*found, strict=True):
        assert ours.shape == plain.shape
        assert (ours - plain).abs().max() <= 0.02 * plain.abs().max()
    fast[0].weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        fast(x).float().sum().backward()
    assert torch.equal(fast[0].weight.grad, found[1][2])  # frozen: nothing is added
    assert torch.allclose(fast(x), model(x), atol=1e-6)  # in fp32 it is torch's own


def test_other_convolutions_stay_torchs() -> None:
    model = nn.Sequential(
        nn.Conv2d(6, 6, 3, groups=3),
        nn.Conv2d(6, 12, 3, groups=6),
        nn.Conv2d(6, 6, 3, groups=6, dilation=2),
        nn.Conv2d(6, 6, 3, groups=6, padding="same"),
        nn.Conv2d(6, 6, 1, groups=6),
        nn.Conv2d(6, 6, 3),
    )
    use_fast_depthwise(model)
    assert all(type(conv) is nn.Conv2d for conv in model)


@pytest.mark.parametrize(
    ("kind", "size", "ours"),
    [
        (nn.Conv2d, (3, 3), False),
        (nn.Conv2d, (8, 2), False),
        (nn.Conv2d, (2, 8), True),
        (Conv2dSame, (2, 2), False),  # it pads before it convolves
    ],
)
def test_a_weight_no_taller_than_its_map_has_torchs_gradients(
    kind: type[nn.Conv2d], size: tuple[int, int], ours: bool
) -> None:
    model = nn.Sequential(kind(6, 6, 3, padding=0 if kind is Conv2dSame else 1, groups=6))
    use_fast_depthwise(model)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(2, 6, *size))
    assert ("_Depthwise" in str(out.grad_fn)) == ours


def test_bf16_under_a_mask_follows_fp32(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    losses, scores = [], []
    for precision in ("fp32", "bf16"):
        model = vit("auto_peft1", (1, 0, 1, 0, 1, 0))
        before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        changed = recipe.model_copy(update={"precision": precision})
        result = fine_tune(model, train, val, spec, changed, seed=0, device=CPU)
        losses.append([epoch.loss for epoch in result.epochs])
        scores.append(result.probabilities)
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    assert np.allclose(losses[0], losses[1], atol=0.02)
    assert np.allclose(scores[0], scores[1], atol=0.05)


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "tf_efficientnet_lite0"])
def test_no_graph_and_no_state_before_what_trains(architecture: str) -> None:
    vits = architecture.startswith("vit")
    model = build_model(architecture, num_classes=2, options=OPTIONS if vits else {}, seed=0)
    last = [p for name, p in model.named_parameters() if name.startswith("blocks.1.")]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in last:
        parameter.requires_grad_(True)
    set_train_mode(model)
    stem = model.patch_embed if vits else model.conv_stem
    seen: list[bool] = []
    for module in (stem, model.blocks[0], model.blocks[1]):
        module.register_forward_hook(lambda m, i, out: seen.append(out.requires_grad))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert seen == [False, False, True]
    optimizer = make_optimizer(model, Recipe(), None)
    optimizer.step()
    assert {id(p) for p in optimizer.state} == {id(p) for p in last}


def test_a_frozen_body_is_run_once_over_validation(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    model = vit("linear_readout")
    seen: list[int] = []
    model.blocks[0].register_forward_hook(
        lambda m, i, out: None if m.training else seen.append(len(out))
    )
    result = fine_tune(
        model, train, val, spec, recipe.model_copy(update={"epochs": 3}), seed=0, device=CPU
    )
    assert sum(seen) == len(val)
    assert np.allclose(result.probabilities, predict(model, val, spec), atol=1e-6)


def test_features_are_kept_only_where_the_classifier_alone_trains(
    val: Split, spec: ImageSpec
) -> None:
    def judge(model: nn.Module) -> Judge:
        return Judge(model, val, spec, batch_size=16, device=CPU, precision="fp32")

    assert judge(vit("linear_readout")).keeps_features
    model = vit("tune_layernorm")
    judged = judge(model)
    assert not judged.keeps_features
    before = judged()
    with torch.no_grad():
        model.norm.bias.add_(torch.randn(48))
    assert not np.allclose(before, judged())


def test_masks_share_compiled_blocks() -> None:
    torch.compiler.reset()
    counters.clear()
    x = torch.randn(2, 3, 32, 32)
    # Four blocks run. The second of the second mask trains as the first of the first does: all of
    # it, and its input needs no gradient.
    for bits in ((1, 1, 1, 1, 1, 1), (0, 0, 0, 1, 1, 1)):
        model, compiled = vit("auto_peft1", bits).train(), vit("auto_peft1", bits).train()
        assert compile_blocks(compiled, "block", CPU, 1, backend="aot_eager")
        assert same(gradients(compiled, x), gradients(model, x), atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 3
    torch.compiler.reset()


def test_compiling_is_refused_or_left_out_where_it_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not compile_blocks(vit(), "auto", CPU, LONG)
    assert not compile_blocks(vit(), "none", CPU, LONG)
    with pytest.raises(InputError, match=r"'resnet18' has no transformer blocks.*compile=none"):
        compile_blocks(build_model("resnet18", num_classes=2), "block", CPU, 1)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match=r"no compiler is there.*compile=none"):
        compile_blocks(vit(), "block", CPU, 1)
    assert not compile_blocks(vit(), "auto", torch.device("cuda"), LONG - 1)


def test_checkpointed_activations_change_nothing(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    scores = []
    for wanted in (False, True):
        changed = recipe.model_copy(update={"checkpoint_activations": wanted, "epochs": 1})
        model = vit("auto_peft1", (0, 0, 0, 1, 1, 0))
        scores.append(fine_tune(model, train, val, spec, changed, seed=0, device=CPU).probabilities)
    assert np.array_equal(*scores)
    changed = recipe.model_copy(update={"checkpoint_activations": True})
    model = build_model("hrnet_w18_small", num_classes=2, seed=0)
    with pytest.raises(InputError, match=r"checkpoint_activations: 'hrnet_w18_small' cannot"):
        fine_tune(model, train, val, spec, changed, seed=0, device=CPU)


def test_the_fused_step_is_the_plain_step() -> None:
    models = [vit(), vit()]
    optimizers = [make_optimizer(model, Recipe(weight_decay=0.1), None) for model in models]
    assert all(optimizer.defaults["fused"] for optimizer in optimizers)
    for group in optimizers[1].param_groups:
        group["fused"] = False
    for seed in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    assert "fused" not in make_optimizer(vit(), Recipe(optimizer="lamb"), None).defaults


def test_deterministic_mode_ends_with_the_fine_tune(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    scores = []
    for wanted in (False, True):
        changed = recipe.model_copy(update={"deterministic": wanted, "epochs": 1})
        scores.append(fine_tune(vit(), train, val, spec, changed, seed=0, device=CPU).probabilities)
    assert np.array_equal(*scores)


@pytest.mark.parametrize(
    ("n", "most", "sizes"),
    [(16, 16, [16]), (16, 5, [5, 5, 6]), (15, 4, [4, 4, 4, 3]), (3, 2, [3]), (1, 4, [1])],
)  # fmt: skip
def test_no_micro_batch_of_one_image(n: int, most: int, sizes: list[int]) -> None:
    assert part_sizes(n, most) == sizes


def test_a_micro_batch_has_two_images_at_least() -> None:
    with pytest.raises(
        ValueError, match=r"micro_batch_size\s+Input should be greater than or equal"
    ):
        Recipe(micro_batch_size=1)


def test_batch_norms_train_in_micro_batches_that_do_not_divide(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe
) -> None:
    model = build_model("tf_efficientnet_lite0", num_classes=2, seed=0)  # one pixel at the end
    changed = recipe.model_copy(update={"micro_batch_size": 5, "epochs": 1})
    result = fine_tune(model, train, val, spec, changed, seed=0, device=CPU)
    assert np.isfinite(result.epochs[0].loss)


def test_images_stay_where_they_do_not_fit(train: Split) -> None:
    assert on_device(train.images, CPU) is train.images
    assert fits(train.images, int(train.images.nbytes / SHARE) + 1)
    assert not fits(train.images, int(train.images.nbytes / SHARE) - 1)


def test_a_fine_tune_fed_one_batch_ahead_is_the_same_and_ends_its_threads(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tuned() -> FineTuneResult:
        return fine_tune(vit(), train, val, spec, recipe, seed=0, device=CPU)

    def interrupted(images: int) -> None:
        raise KeyboardInterrupt

    def feeding() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]

    in_turn = tuned()
    used = []  # as on a GPU whose images are in host memory
    monkeypatch.setattr(
        batches, "_fed", lambda made, resample, prefetch: used.append(prefetch) or ahead(made, CPU)
    )
    result = tuned()
    assert used == [True] * 2 * recipe.epochs
    assert [e.loss for e in result.epochs] == [e.loss for e in in_turn.epochs]
    assert np.array_equal(result.probabilities, in_turn.probabilities)
    with pytest.raises(KeyboardInterrupt) as cut:  # which holds on to the frames of the epoch
        fine_tune(vit(), train, val, spec, recipe, seed=0, device=CPU, on_step=interrupted)
    assert not feeding()
    assert cut.value

    model = vit()
    seen: list[int] = []

    def short(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(inputs[0]))
        if len(inputs[0]) > 16:
            raise torch.OutOfMemoryError("no room")
        assert len(feeding()) == 1  # that of the larger batches has ended

    wanted = predict(model, val, spec, batch_size=16)
    model.register_forward_pre_hook(short)
    assert np.allclose(predict(model, val, spec, batch_size=32), wanted, atol=1e-6)
    assert seen == [32, 16, 16, 16, 16]
    assert not feeding()


def test_images_of_another_store_at_the_same_address_are_not_taken_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_kept", {})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**30))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor.clone())
    gpu = torch.device("cuda", 0)
    for value in range(4):
        path = tmp_path / f"{value}.npy"
        np.save(path, np.full((4, 64, 64, 3), value, dtype=np.uint8))
        images = np.load(path, mmap_mode="r")
        found = on_device(images, gpu)
        assert int(found.max()) == value
        assert on_device(images[:], gpu) is found  # once for all trials
        del images  # a mapping that nothing holds is undone, and its address is free


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUDA error: out of memory", True),
        ("MPS backend out of memory (MPS allocated: 5 GB)", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", True),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False),
    ],
)
def test_every_way_to_say_that_memory_ran_out(text: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) == expected


STEPS_OF_MEMORY = """
import resource, torch
from pathlib import Path
from fairtune.training.memory import keep_freed, release

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        kept = [torch.zeros(10_000_000) for _ in range(5)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def size():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

given_back, does = faults(), keep_freed()
faults()
after = faults()
held = size()
release(torch.device("cpu"))
print(does, given_back, after, held - size())
"""


def steps_of_memory(**environment: str) -> tuple[bool, int, int, int]:
    """Return whether memory is kept, the page faults before and after that, and the bytes given back."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")
    free = {k: v for k, v in os.environ.items() if not k.startswith(memory._ENVIRONMENT)}
    found = subprocess.run(
        [sys.executable, "-c", STEPS_OF_MEMORY],
        env={**free, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    does, *figures = found.stdout.split()
    given_back, after, released = map(int, figures)
    return does == "True", given_back, after, released


def test_freed_memory_is_kept_for_the_next_step_and_given_back_when_asked() -> None:
    does, before, after, released = steps_of_memory()
    assert does
    assert after < before / 20
    assert released > 150_000_000


def test_the_environments_word_on_memory_stands() -> None:
    does, before, after, _ = steps_of_memory(MALLOC_TRIM_THRESHOLD_="131072")
    assert not does
    assert after > before / 2


def test_out_of_memory_is_an_error_of_its_own_kind() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("no room"))


def test_peak_memory_is_that_since_the_last_reset() -> None:
    reset_peak(CPU)
    first = peak(CPU)
    if first is None:
        pytest.skip("peak memory is known on Linux alone")
    np.ones(8_000_000)
    assert peak(CPU) - first > 50_000_000
    reset_peak(CPU)
    assert peak(CPU) - first < 50_000_000


def test_a_profile_names_parts_and_operators(
    train: Split, val: Split, spec: ImageSpec, recipe: Recipe, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json.gz"
    assert len(train) // recipe.batch_size * recipe.epochs > WARM_UP + STEPS
    with profiled(trace) as profile:
        result = fine_tune(vit(), train, val, spec, recipe, seed=0, device=CPU)
    table = profile.table(result)
    assert all(part in table for part in ("waiting for batches", "training steps", "validation"))
    assert "aten::" in table
    assert trace.stat().st_size > 1000
    epoch = result.epochs[0]
    assert 0 < epoch.waiting_seconds < epoch.seconds
    assert epoch.steps == 6
