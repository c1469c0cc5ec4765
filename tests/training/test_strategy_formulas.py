"""Each strategy against figures worked out another way: by hand, by a loop, by another library."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from fairtune.errors import InputError
from fairtune.peft import set_train_mode
from fairtune.training import class_weights, make_strategy
from fairtune.training.groups import group_index
from fairtune.training.strategies import Batch, Task, fairprune
from fairtune.training.strategies.adversarial import mean_over_cells, reverse
from fairtune.training.strategies.dfr import refit
from fairtune.training.strategies.end import penalties
from fairtune.training.strategies.fscl import fair_contrast
from fairtune.training.strategies.swad import Valley
from fairtune.training.tensors import TrainedTensors, estimate_statistics, holding
from training.test_loop import CONV, CPU, model_of

PLAIN = nn.CrossEntropyLoss()


class Linear(nn.Module):
    """A model that is its classifier: features in, logits out."""

    def __init__(self, width: int = 4, n_classes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(width, n_classes)

    def get_classifier(self) -> nn.Linear:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def task_of(model: nn.Module, labels: list[int], groups: list[int] | None, **more: object) -> Task:
    defaults = {
        "model": model,
        "labels": np.array(labels),
        "n_classes": 2,
        "groups": None if groups is None else np.array(groups),
        "n_groups": 0 if groups is None else max(groups) + 1,
        "epochs": 2,
        "steps": 3,
        "learning_rate": 0.1,
        "lowest_learning_rate": 0.001,
        "seed": 0,
        "device": CPU,
        "validation_loss": lambda: 0.0,
        "draw": lambda seed: iter(()),
        "views": lambda: iter(()),
    }
    return Task(**defaults | more)


def test_groups_are_the_cross_of_the_attributes_that_occurs() -> None:
    table = pd.DataFrame(
        {
            "colour": pd.Categorical(["red", "blue", "red", "blue"], ["red", "green", "blue"]),
            "size": ["s", "l", "l", "l"],
        }
    )
    index, names = group_index(table)
    assert names == ("red*l", "red*s", "blue*l")
    assert index.tolist() == [1, 2, 0, 2]
    crossed = table.assign(both=table["colour"].astype(str) + table["size"])
    assert group_index(crossed)[0].max() == 2


def test_class_weights_balance_what_a_sampler_leaves() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    even = np.where(labels == 1, 9.0, 1.0)
    assert class_weights(labels, 2, "balanced", None, even).tolist() == pytest.approx([1, 1])
    half = np.where(labels == 1, 3.0, 1.0)  # sums of 90 and 30
    assert class_weights(labels, 2, "balanced", None, half).tolist() == pytest.approx([2 / 3, 2])


def test_resampling_draws_cells_equally_often() -> None:
    labels, groups = [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 1]
    task = task_of(Linear(), labels, groups)
    by_group = make_strategy("group_resampling").start(task).row_weights(1)
    assert by_group[np.array(groups) == 0].sum() == pytest.approx(by_group[[3, 5]].sum())
    by_cell = make_strategy("group_resampling", {"cells": "group*class"}).start(task).row_weights(1)
    assert by_cell[:3].sum() == pytest.approx(by_cell[3])
    by_class = make_strategy("class_resampling").start(task).row_weights(1)
    assert by_class[:4].sum() == pytest.approx(by_class[4:].sum())


def test_reweighting_is_the_mean_of_the_group_means() -> None:
    labels, groups = [0, 1, 0, 1], [0, 0, 0, 1]
    task = task_of(Linear(), labels, groups)
    tactic = make_strategy("group_reweighting").start(task)
    logits = torch.tensor([[1.0, 0], [0, 1], [2, 0], [1, 0]])
    y, g = torch.tensor(labels), torch.tensor(groups)
    each = nn.functional.cross_entropy(logits, y, reduction="none")
    wanted = (each[:3].mean() + each[3]) / 2
    assert float(tactic.loss(Batch(logits, y, g), PLAIN)) == pytest.approx(float(wanted))


def test_group_dro_moves_its_weights_by_the_papers_rule() -> None:
    options = {"cells": "group", "step_size": 0.5, "adjustment": 2.0}
    task = task_of(Linear(), [0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 2])
    tactic = make_strategy("group_dro", options).start(task)
    logits = torch.tensor([[3.0, 0], [3, 0], [0, 1]], requires_grad=True)
    y, g = torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1])  # the batch has no row of group 2
    each = nn.functional.cross_entropy(logits, y, reduction="none").detach()
    means = torch.stack([each[:2].mean(), each[2]])
    q = torch.full((3,), 1 / 3)
    q[:2] *= torch.exp(0.5 * (means + torch.tensor([2 / 2, 2 / 1])))
    q /= q.sum()
    for _ in range(2):  # a loss computed again, after memory ran out, changes nothing
        loss = tactic.loss(Batch(logits, y, g), PLAIN)
        assert loss.item() == pytest.approx(float(q[:2] @ means), rel=1e-6)
        assert tactic.q.tolist() == pytest.approx([1 / 3] * 3)
    tactic.after_step()
    assert tactic.q.tolist() == pytest.approx(q.tolist())


def sharp(name: str, options: dict, rate: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return the weights (2,) after the gradients of f = w0⁴ + 2·w1² + w0·w1, and that gradient."""
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor([1.0, -0.5]))
    tactic = make_strategy(name, options).start(task_of(model, [0], None))
    tactic.before_step(torch.optim.SGD([model.w], lr=rate))

    def compute() -> float:
        loss = model.w[0] ** 4 + 2 * model.w[1] ** 2 + model.w[0] * model.w[1]
        loss.backward()
        return loss.item()

    assert tactic.gradients(compute, [model.w]) == pytest.approx(1.0)
    return model.w.detach(), model.w.grad


def slope(w: np.ndarray) -> np.ndarray:
    return np.array([4 * w[0] ** 3 + w[1], 4 * w[1] + w[0]])


def test_sam_takes_the_gradient_uphill() -> None:
    w = np.array([1.0, -0.5])
    weights, gradient = sharp("sam", {"rho": 0.3})
    wanted = slope(w + 0.3 * slope(w) / np.linalg.norm(slope(w)))
    assert torch.equal(weights, torch.tensor([1.0, -0.5]))
    assert gradient.tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


def test_gsam_takes_off_what_is_at_right_angles() -> None:
    w = np.array([1.0, -0.5])
    here = slope(w)
    near = slope(w + 0.3 * here / np.linalg.norm(here))
    across = here - (here @ near) / (near @ near) * near
    _, gradient = sharp("gsam", {"rho": 0.3, "rho_min": 0.3, "alpha": 0.7})
    assert gradient.tolist() == pytest.approx((near - 0.7 * across).tolist(), rel=1e-4)
    _, plain = sharp("gsam", {"rho": 0.3, "rho_min": 0.3, "alpha": 0.0})
    assert torch.equal(plain, sharp("sam", {"rho": 0.3})[1])


def test_the_radius_of_gsam_goes_with_the_learning_rate() -> None:
    options = {"rho": 0.3, "rho_min": 0.1, "alpha": 0.0}
    lowest = sharp("gsam", options, rate=0.001)[1]
    assert lowest.tolist() == pytest.approx(sharp("sam", {"rho": 0.1})[1].tolist())
    with pytest.raises(InputError, match="rho_min=0.4 is over rho=0.3"):
        make_strategy("gsam", {"rho": 0.3, "rho_min": 0.4})


def walk(tactic: object, model: Linear, steps: int) -> list[Tensor]:
    """Move the weights `steps` times, and return where they were after each."""
    places = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.head.weight.fill_(float(step))
        tactic.after_step()
        places.append(model.head.weight.detach().clone())
    return places


def test_ema_is_the_recursion() -> None:
    model = Linear()
    average = model.head.weight.detach().clone()
    tactic = make_strategy("ema", {"decay": 0.8, "warmup": False}).start(task_of(model, [0], None))
    for place in walk(tactic, model, 5):
        average = 0.8 * average + 0.2 * place
    assert torch.allclose(tactic.kept(1)["head.weight"], average)
    assert torch.equal(model.head.weight, torch.full((2, 4), 5.0))


def test_ema_with_warm_up_begins_at_the_first_step() -> None:
    model = Linear()
    tactic = make_strategy("ema").start(task_of(model, [0], None))
    walk(tactic, model, 1)
    assert torch.equal(tactic.kept(1)["head.weight"], model.head.weight)


def test_swa_averages_the_later_epochs() -> None:
    model = Linear()
    tactic = make_strategy("swa", {"start_at": 0.5}).start(task_of(model, [0], None, epochs=4))
    walk(tactic, model, 6)
    assert tactic.kept(2) is None
    optimizer = torch.optim.SGD([{"params": model.parameters(), "lr_scale": 0.5}], lr=1.0)
    tactic.before_step(optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 * 0.5)
    walk(tactic, model, 6)  # now after steps 9 and 12, where the weights are 3 and 6
    assert torch.allclose(tactic.kept(4)["head.weight"], torch.full((2, 4), 4.5))


def test_statistics_of_averages_are_torchs_own() -> None:
    model = model_of(*CONV, "fullft")
    batches = list(torch.randn(3, 4, 3, 32, 32))
    theirs = copy.deepcopy(model)
    for module in theirs.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.optim.swa_utils.update_bn(batches, theirs)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def again() -> Iterator[Tensor]:
        yield from batches

    found = estimate_statistics(model, again)
    state = theirs.state_dict()
    assert {name for name in state if "running" in name} <= set(found)
    assert all(torch.allclose(value, state[name], atol=1e-6) for name, value in found.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert estimate_statistics(model_of(*CONV, "linear_readout"), again) == {}


def test_a_model_holds_other_values_only_for_a_while() -> None:
    model = model_of(*CONV, "tune_layernorm")
    set_train_mode(model)
    view = TrainedTensors(model)
    own = view.named(view.state_dict())
    assert set(own) < set(model.state_dict())
    with holding(model, {name: torch.zeros_like(value) for name, value in own.items()}):
        assert not any(value.any() for value in view.state_dict().values())
    now = view.named(view.state_dict())
    assert all(torch.equal(value, now[name]) for name, value in own.items())


def algorithm_1(losses: list[float], converge: int, tolerate: int, r: float) -> list[int]:
    """Say which segments SWAD averages, as its paper's algorithm 1 does."""
    begin, end, level = None, len(losses) - 1, None
    for i in range(len(losses)):
        if level is None:
            window = losses[i - converge + 1 : i + 1]
            if i >= converge - 1 and window[0] == min(window):
                begin, level = i - converge + 1, r * sum(window) / converge
        elif i >= tolerate - 1 and min(losses[i - tolerate + 1 : i + 1]) > level:
            end = i - tolerate
            break
    return [len(losses) - 1] if begin is None else list(range(begin, end + 1))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=25),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([1.0, 1.2, 1.5]),
)
def test_the_valley_is_the_papers(
    losses: list[int], converge: int, tolerate: int, r: float
) -> None:
    valley = Valley(converge, tolerate, r)
    for i, loss in enumerate(losses):
        valley.add({"w": torch.tensor(2.0**i, dtype=torch.float64)}, float(loss))
        assert len(valley._recent) <= max(converge, tolerate)
    inside = algorithm_1([float(loss) for loss in losses], converge, tolerate, r)
    assert float(valley.mean()["w"]) == pytest.approx(sum(2.0**i for i in inside) / len(inside))


def test_the_kept_classifier_gives_the_mean_of_the_groups_outputs() -> None:
    model = Linear()
    tactic = make_strategy("domain_independent").start(task_of(model, [0, 1], [0, 1]))
    heads = list(tactic.auxiliary)
    with torch.no_grad():
        heads[1].weight.add_(1.0)
    x = torch.randn(5, 4)
    y, g = torch.tensor([0, 1, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 1])
    own = torch.cat([heads[0](x[:2]), heads[1](x[2:])])
    loss = tactic.loss(Batch(model(x), y, g, x), PLAIN)
    assert loss.item() == pytest.approx(PLAIN(own, y).item())
    with holding(model, tactic.kept(1)):
        assert torch.allclose(model(x), (heads[0](x) + heads[1](x)) / 2, atol=1e-6)


def test_reversal_turns_the_gradient_round() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (reverse(x, 0.5) ** 2).sum().backward()
    assert x.grad.tolist() == [-1.0, -2.0]


def features_gradient(name: str, options: dict) -> tuple[Tensor, list[Tensor]]:
    """Return the gradient at the features, and at the strategy's own network."""
    torch.manual_seed(1)
    x, y = torch.randn(8, 4, requires_grad=True), torch.tensor([0, 1] * 4)
    g = torch.tensor([0, 0, 1, 1] * 2)
    tactic = make_strategy(name, options).start(task_of(Linear(), y.tolist(), g.tolist()))
    tactic.after_step()  # so that a ramp is off the ground
    logits = torch.zeros(8, 2, requires_grad=True)
    tactic.loss(Batch(logits, y, g, x), PLAIN).backward()
    return x.grad, [p.grad for p in tactic.auxiliary.parameters()]


@pytest.mark.parametrize("name", ["dann", "laftr", "cfair", "lnl"])
def test_features_climb_what_the_adversary_descends(name: str) -> None:
    """With its weight the reversed part grows in the features, not in the adversary."""
    entropy = {"entropy_weight": 0.0} if name == "lnl" else {}
    once, own = features_gradient(name, {"weight": 1.0} | entropy)
    twice, again = features_gradient(name, {"weight": 2.0} | entropy)
    none, _ = features_gradient(name, {"weight": 0.0} | entropy)
    assert once.abs().sum() > 0
    assert torch.allclose(twice, 2 * once, atol=1e-7)
    assert not none.any()
    assert all(torch.allclose(a, b) for a, b in zip(own, again, strict=True))


def test_the_entropy_of_lnl_trains_the_features_alone() -> None:
    with_entropy, own = features_gradient("lnl", {"weight": 0.0, "entropy_weight": 1.0})
    without, plain = features_gradient("lnl", {"weight": 0.0, "entropy_weight": 0.0})
    assert with_entropy.abs().sum() > 0
    assert not without.any()
    assert all(torch.equal(a, b) for a, b in zip(own, plain, strict=True))


def test_the_mean_over_cells_ignores_their_sizes() -> None:
    values, cells = torch.tensor([1.0, 1.0, 1.0, 5.0]), torch.tensor([4, 4, 4, 9])
    assert float(mean_over_cells(values, cells)) == pytest.approx(3.0)


def test_cfair_balances_classes_and_groups_within_them() -> None:
    """Repeating every row of one cell leaves the loss as it is."""
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    y, g = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    losses = []
    for repeat in ([0, 1, 2, 3], [0, 0, 0, 1, 2, 3]):
        model = Linear()
        task = task_of(model, y[repeat].tolist(), g[repeat].tolist())
        tactic = make_strategy("cfair").start(task)
        batch = Batch(torch.zeros(len(repeat), 2), y[repeat], g[repeat], x[repeat])
        losses.append(float(tactic.loss(batch, PLAIN)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_end_by_hand() -> None:
    east, north = [2.0, 0.0], [0.0, 3.0]
    features = torch.tensor([east, east, north, east])
    apart, together = penalties(features, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))
    assert float(apart) == pytest.approx(0.5)  # cosines 1 in group 0, 0 in group 1: two pairs
    assert float(together) == pytest.approx(1 - (0.5 + 1.0) / 2)
    alone = penalties(features[:1], torch.tensor([0]), torch.tensor([0]))
    assert [float(value) for value in alone] == [0.0, 0.0]


@pytest.mark.parametrize("balanced", [False, True])
def test_fair_contrast_is_the_double_loop(balanced: bool) -> None:
    rng = np.random.default_rng(0)
    z = nn.functional.normalize(torch.from_numpy(rng.normal(size=(12, 3))), dim=1)
    y, g = rng.integers(0, 2, 12), rng.integers(0, 3, 12)
    total, weight_sum = 0.0, 0.0
    size = [sum((y == y[j]) & (g == g[j])) for j in range(12)]
    for i in range(12):
        positives = [j for j in range(12) if j != i and y[j] == y[i]]
        negatives = [j for j in range(12) if y[j] != y[i] and g[j] == g[i]]
        if not positives or not negatives:
            continue
        below = sum(np.exp(float(z[i] @ z[n]) / 0.2) for n in negatives)
        shares = np.array([1 / size[p] if balanced else 1.0 for p in positives])
        logs = [np.log(np.exp(float(z[i] @ z[p]) / 0.2) / below) for p in positives]
        weight = 1 / size[i] if balanced else 1.0
        total -= weight * float(shares @ logs) / shares.sum()
        weight_sum += weight
    found = fair_contrast(
        z, torch.from_numpy(y), torch.from_numpy(g), temperature=0.2, balance_groups=balanced
    )
    assert float(found) == pytest.approx(total / weight_sum)


def test_fair_contrast_of_rows_without_a_pair_is_nothing() -> None:
    z = torch.eye(2, requires_grad=True)
    loss = fair_contrast(
        z, torch.tensor([0, 1]), torch.tensor([0, 1]), temperature=0.1, balance_groups=True
    )
    loss.backward()
    assert float(loss) == 0.0
    assert not z.grad.any()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_refitted_classifier_is_logistic_regression(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(90) % n_classes
    features = rng.normal(size=(90, 4)).astype(np.float32)
    features[:, 0] = 5 + 3 * features[:, 0] + 2 * labels
    weight, bias = refit(features, labels, labels, n_classes, strength=0.5, subsets=1, seed=0)
    logits = torch.from_numpy(features @ weight.T + bias)
    standard = (features - features.mean(0)) / features.std(0)
    solver = "liblinear" if n_classes == 2 else "saga"
    theirs = LogisticRegression(C=0.5, l1_ratio=1.0, solver=solver, max_iter=5000).fit(
        standard, labels
    )
    assert np.allclose(logits.softmax(1), theirs.predict_proba(standard), atol=0.02)


def test_a_refitted_classifier_lets_go_of_a_shortcut() -> None:
    """The group tells the class in nine rows of ten; balanced data say that it does not."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    groups = np.where(rng.random(2000) < 0.9, labels, 1 - labels)
    columns = [labels + rng.normal(0, 1.0, 2000), groups + rng.normal(0, 0.3, 2000)]
    features = np.stack(columns, axis=1).astype(np.float32)
    together = 2 * groups + labels
    fair, _ = refit(features, labels, together, 2, strength=1.0, subsets=5, seed=0)
    naive, _ = refit(features, labels, labels, 2, strength=1.0, subsets=5, seed=0)
    reliance = [abs(w[1, 1] / w[1, 0]) for w in (fair, naive)]
    assert reliance[0] < 0.3 < reliance[1]


def test_a_class_without_rows_is_never_chosen() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 3)).astype(np.float32), np.arange(40) % 2
    weight, bias = refit(features, labels, labels, 3, strength=1.0, subsets=2, seed=0)
    logits = torch.from_numpy(features @ weight.T + bias)
    assert float(logits.softmax(1)[:, 2].max()) < 1e-15


def test_features_need_one_linear_classifier() -> None:
    two = Linear()
    two.other = nn.Linear(4, 2)
    two.get_classifier = lambda: (two.head, two.other)
    for name in ("dann", "domain_independent", "fscl", "dfr"):
        with pytest.raises(InputError, match=r"one linear classifier.*Linear, Linear"):
            make_strategy(name).start(task_of(two, [0, 1], [0, 1]))


def test_refitting_needs_two_classes() -> None:
    with pytest.raises(InputError, match="at least two classes"):
        make_strategy("dfr").start(task_of(Linear(), [1, 1], [0, 1]))


def test_pruning_takes_what_serves_the_others_and_not_the_worst_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fairprune, "ROWS", 1)  # exact squares of every row's gradient
    rng = np.random.default_rng(0)
    model = Linear()
    labels, groups = [0, 1, 0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 1, 1, 2, 2]
    x = torch.from_numpy(rng.normal(size=(8, 4))).float()
    task = task_of(model, labels, groups, views=lambda: iter([x[:5], x[5:]]))
    strategy = make_strategy("fairprune", {"share": 0.25, "trade_off": 0.5})
    tactic = strategy.start(task)
    assert tactic.kept(1) is None  # before the last epoch
    before = model.head.weight.detach().clone()

    losses, saliency = np.zeros(3), torch.zeros(3, 2, 4)
    for row, group in enumerate(groups):
        loss = nn.functional.cross_entropy(model(x[[row]]), torch.tensor(labels)[[row]])
        (gradient,) = torch.autograd.grad(loss, [model.head.weight])
        losses[group] += float(loss.detach()) / groups.count(group)
        saliency[group] += gradient**2 * before**2 / 2 / groups.count(group)
    worst = int(losses.argmax())
    others = [group for group in range(3) if group != worst]
    score = saliency[worst] - 0.5 * saliency[others].mean(0)
    (kept,) = tactic.kept(2).values()
    gone = kept == 0
    assert int(gone.sum()) == 2  # a quarter of eight
    assert score[gone].max() <= score[~gone].min()
    assert torch.equal(kept[~gone], before[~gone])
    assert torch.equal(model.head.weight, before)  # the loop puts them in, not the strategy
    assert model.head.weight.grad is None


@pytest.mark.parametrize("scale", [0.05, 1.0], ids=["no mean gradient", "a mean gradient"])
def test_saliency_does_not_depend_on_the_size_of_a_group(scale: float) -> None:
    rng = np.random.default_rng(0)
    model = Linear()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    labels = [int(label) for label in rng.random(2000) < 0.5]
    groups = [int(group) for group in rng.random(2000) < 0.1]  # drawn apart from all else
    x = torch.from_numpy(rng.normal(size=(2000, 4))).float()
    task = task_of(model, labels, groups, views=lambda: iter(torch.split(x, 250)))
    weights = {"head.weight": model.head.weight}
    losses, saliency = fairprune.group_saliency(task, weights)
    assert 0.7 < float(saliency[1].sum() / saliency[0].sum()) < 1.4
    expected = torch.zeros(2, 8, dtype=torch.float64)
    for row, group in enumerate(groups):
        loss = nn.functional.cross_entropy(model(x[[row]]), torch.tensor(labels)[[row]])
        (gradient,) = torch.autograd.grad(loss, [model.head.weight])
        share = gradient.flatten().double() ** 2 / groups.count(group)
        expected[group] += share * model.head.weight.detach().flatten() ** 2 / 2
    # About 120 estimates for the large group: a deviation of sqrt(2 / 120) = 13 % in each weight.
    assert torch.allclose(saliency[0], expected[0], rtol=0.4, atol=0)
    assert torch.allclose(saliency.sum(1), expected.sum(1), rtol=0.3, atol=0)
    again = fairprune.group_saliency(task, weights)
    assert again[0] == losses
    assert torch.equal(again[1], saliency)


@pytest.mark.parametrize("space", ["fullft", "tune_attention"])
def test_only_weights_of_layers_are_pruned(space: str) -> None:
    """Neither the class token nor the position embedding, which have several dimensions as well."""
    model, x = model_of(space=space), torch.randn(8, 3, 32, 32)
    task = task_of(model, [0, 1] * 4, [0, 0, 1, 1] * 2, views=lambda: iter([x]))
    kept = make_strategy("fairprune", {"share": 0.9}).start(task).kept(2)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    own = ("cls_token", "pos_embed")
    assert set(kept) == {
        name for name in trained if name.endswith(".weight") and "norm" not in name
    } - set(own)
    assert all((value == 0).any() for value in kept.values())
    if space == "fullft":
        assert {*own, "patch_embed.proj.weight", "head.weight"} <= set(trained)


def test_one_group_is_not_pruned() -> None:
    tactic = make_strategy("fairprune").start(task_of(Linear(), [0, 1], [0, 0]))
    assert tactic.kept(2) is None


def test_codes_are_folded_into_the_classifier() -> None:
    model = Linear()
    tactic = make_strategy("odr", {"width": 6}).start(task_of(model, [0, 1, 0], [0, 1, 1]))
    features = torch.randn(5, 4)
    expected = tactic._reader(tactic._encoders["target_mean"](features))
    model.load_state_dict(tactic.kept(1))
    assert torch.allclose(model(features), expected, atol=1e-6)


def test_codes_diverge_from_orthogonal_priors_as_gaussians_do() -> None:
    tactic = make_strategy("odr", {"width": 4}).start(task_of(Linear(), [0, 1, 0], [0, 1, 1]))
    assert float(tactic._priors["target"] @ tactic._priors["group"]) == 0
    features = torch.randn(5, 4)
    for name in ("target", "group"):
        mean = tactic._encoders[f"{name}_mean"](features)
        deviation = (tactic._encoders[f"{name}_scale"](features) / 2).exp()
        theirs = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, deviation),
            torch.distributions.Normal(tactic._priors[name], 1.0),
        )
        code, divergence = tactic._code(name, features)
        assert torch.allclose(divergence, theirs.sum(1).mean(), atol=1e-5)
        assert code.shape == (5, 4)


def test_the_entropy_of_odr_trains_the_codes_and_not_their_reader() -> None:
    task = task_of(Linear(), [0, 1, 0], [0, 1, 1])
    features = torch.randn(6, 4)
    batch = Batch(torch.zeros(6, 2), torch.tensor([0, 1] * 3), torch.tensor([0, 1] * 3), features)
    found = []
    for weight in (0.0, 5.0):
        tactic = make_strategy("odr", {"entropy_weight": weight}).start(task)
        tactic.loss(batch, PLAIN).backward()
        reader = torch.cat([p.grad.flatten() for p in tactic._group_reader.parameters()])
        found.append((reader, tactic._encoders["target_mean"].weight.grad))
    assert torch.allclose(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1], found[1][1])
