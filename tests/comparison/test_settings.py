"""What a file of a comparison may say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from comparison.conftest import comparison_of
from search.samples import tiny_config

from fairtune.cli.comparing import with_folds
from fairtune.comparison.methods import TUNED, UNTUNED, known_methods, method
from fairtune.comparison.settings import Task, load_comparison
from fairtune.errors import InputError
from fairtune.training import STRATEGIES, make_strategy


@pytest.mark.parametrize(
    ("methods", "more", "message"),
    [
        ("[full, serched]", "", "unknown method 'serched'; did you mean 'searched'?"),
        ("[full, full]", "", "a name comes twice"),
        ("[full, linear]", "", "candidate: no method 'searched' in full, linear"),
        ("[full, searched]", "references: [norms]", "references: no method 'norms'"),
        ("[full, searched]", "references: [searched]", "references: 'searched' is the candidate"),
        ("[full, random]", "candidate: full", "method random: no method 'searched'"),
        ("[full, {name: x, space: nope}]", "", "unknown space 'nope'"),
        ("[full, {name: x, strategy: nope}]", "", "unknown strategy 'nope'"),
        ("[full, {name: x, space: fullft, size_of: full}]", "", "exclude each other"),
        ("[full, {like: best_fixed, name: x, trials: 3}]", "", "best_of trains nothing"),
        ("[full, searched, {name: x, size_of: full, match: parts}]", "", "full has no parts"),
        (
            "[full, searched, random, {like: random, name: x}]",
            "",
            "'random' and 'x' are one method",
        ),
        ("[full, searched, random, {name: x, size_of: random}]", "", "random has no mask of its"),
        ("[full, searched, best_fixed, {name: x, size_of: best_fixed}]", "", "best_fixed has no"),
        ("[full, {name: x, match: parts}]", "", "match goes with size_of"),
        ("[full, {like: random, name: x, match: bits}]", "", "'values' or 'parts'"),
        ("[full, {like: full, name: x, candidates: 2}]", "", "candidates are masks of a search"),
        ("[full, searched+swag]", "", "part of method 'searched+swag': 'swag'; did you mean 'swa'"),
        ("[full, swad+sam]", "", "method 'swad+sam' has two strategies, swad and sam"),
        ("[full, full+unweighted+class_weighting]", "", "unweighted exclude each other"),
        ("[full, best_fixed+swad]", "", "takes no strategy and no recipe"),
        ("[full, {name: x, train: {strategy: sam}}]", "", "strategy stands beside train"),
        ("[full, searched, {name: x, train: {epoch: 3}}]", "", "unknown key 'train.epoch'"),
        (
            "[full, searched, class_weighting]",
            "",
            "'full' and 'class_weighting' are one method on task 'spots': its configuration has "
            "train.class_weights=balanced already",
        ),
        ("[full, searched, {name: x, space: fullft}]", "", "'full' and 'x' are one method on task"),
        ("[full, searched]", "seed: 3", "seed"),
        ("full", "", "`tasks` and `methods`, two lists"),
        ("[3, full]", "", "a method is a name or a mapping, not 3"),
        ("[full, [a]]", "", "a method is a name or a mapping, not ['a']"),
    ],
)
def test_wrong_settings_are_one_line(
    methods: str, more: str, message: str, tiny_file: Callable[..., Path]
) -> None:
    with pytest.raises(InputError) as told:
        load_comparison(tiny_file(methods, more))
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("[train.epochs=5]", "task 't': overrides are a mapping, such as {train.epochs: 5}"),
        ("{seed.x: 1}", "task 't': overrides: seed is a value, not a section"),
        ("{3: 1}", "task 't': unknown key '3'"),
        ("{data.options: 2020-13-45}", "is not YAML: month must be in 1..12"),
    ],
)
def test_wrong_overrides_are_one_line(overrides: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "name: own\nmethods: [full, searched]\nseeds: [1]\n"
        f"tasks: [{{name: t, config: tiny.yaml, overrides: {overrides}}}]"
    )
    (tmp_path / "tiny.yaml").write_text(tiny_config().to_yaml())
    with pytest.raises(InputError) as told:
        load_comparison(tmp_path / "own.yaml")
    assert message in str(told.value)
    (tmp_path / "own.yaml").write_bytes(b"name: \xff")
    with pytest.raises(InputError, match="cannot read"):
        load_comparison(tmp_path / "own.yaml")


def test_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    """After the configuration and what the comparison changes in it."""
    (tmp_path / "own.yaml").write_text(
        "name: own\nmethods: [full, searched]\nseeds: [1]\n"
        "tasks: [{name: t, config: tiny.yaml, overrides: {train.epochs: 4, data.folds: 3, data.fold: 0}}]"
    )
    (tmp_path / "tiny.yaml").write_text(tiny_config().to_yaml())
    (task,) = load_comparison(tmp_path / "own.yaml").tasks
    assert (task.config["train"]["epochs"], task.tested_folds) == (4, (0,))
    given = (*with_folds(5), "train.epochs=7")
    (task,) = load_comparison(tmp_path / "own.yaml", given).tasks
    assert (task.config["train"]["epochs"], task.tested_folds) == (7, (0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("redrawn", "key"),
    [(False, "data.options.seed"), (False, "data.fold_seed"), (True, "data.fold_seed")],
)
def test_seeds_that_share_people_are_refused(redrawn: bool, key: str) -> None:
    """The seed of one's own images divides them; that of a generated data set makes its people."""
    (task,) = comparison_of(["full", "searched"], redrawn=redrawn).tasks
    assert task.seed_keys == (("data.options.seed",) if redrawn else ())
    name = "synthetic" if redrawn else "folder"
    told = f"seed_keys: {key} of data set '{name}' draws no new people: seeds would share them"
    with pytest.raises(ValueError, match=told):
        Task(name="t", config=task.config, seed_keys=(*task.seed_keys, key))


def test_every_strategy_is_a_method_and_every_method_has_a_configuration() -> None:
    known = known_methods()
    assert set(STRATEGIES) - {"erm"} <= set(known)
    del known["class_weighting"]  # as `full` is, where the configuration has balanced weights
    comparison = comparison_of([*known, "searched+swad", "norms+sam"])
    for how in comparison.trained:
        config = comparison.unit_config(comparison.tasks[0], how, 7)
        assert config.seed == 7
        assert config.search.trials == 1
        assert config.train.strategy == how.strategy
    assert method("searched+swad").space is None
    assert comparison.trained[-1].name == "random"  # its mask hangs on another's


def test_class_weights_are_a_method_with_any_mask_and_strategy() -> None:
    plain = {"train__class_weights": "none"}
    names = ["full", "class_weighting", "searched", "searched+class_weighting", "sam",
             "norms+sam+class_weighting"]  # fmt: skip
    comparison = comparison_of(names, plain)
    weights = {
        how.name: comparison.unit_config(comparison.tasks[0], how, 7).train.class_weights
        for how in comparison.methods
    }
    assert weights == {name: "balanced" if "class" in name else "none" for name in names}
    both, alone = method("norms+sam+class_weighting"), method("norms+sam")
    assert both.model_copy(update={"name": alone.name, "train": {}}) == alone
    assert method("searched+class_weighting").space is None
    comparison = comparison_of(["full", "unweighted", "searched"])  # balanced, as shipped
    configs = [comparison.unit_config(comparison.tasks[0], m, 7) for m in comparison.methods]
    assert [config.train.class_weights for config in configs] == ["balanced", "none", "balanced"]


def test_every_option_that_a_paper_tunes_is_searched_or_left_out_on_purpose() -> None:
    with_options = {name for name in STRATEGIES if STRATEGIES[name].model_fields}
    assert set(TUNED) | set(UNTUNED) == with_options
    assert not set(TUNED) & set(UNTUNED)
    for name, options in TUNED.items():
        for option, what in options.items():
            for end in (what["low"], what["high"]):
                assert getattr(make_strategy(name, {option: end}), option) == end
            default = getattr(make_strategy(name), option)
            assert what["low"] <= default <= what["high"], f"{name}.{option}"


SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "compare").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_comparison_loads_and_opens_with_its_command(path: Path) -> None:
    comparison = load_comparison(path)
    assert comparison.name == path.stem
    assert (
        f"fairtune compare --config configs/compare/{path.name}" in path.read_text().splitlines()[0]
    )
    (candidate,) = (how for how in comparison.methods if how.name == comparison.candidate)
    assert (candidate.space, candidate.size_of, candidate.best_of) == (None, None, ())  # a search
    assert min(comparison.seeds) >= 2000  # of seeds that nobody tuned on: docs/evidence.md


def test_random_masks_of_as_many_parts_and_values_are_two_methods(
    tiny_file: Callable[[str], Path],
) -> None:
    more = tiny_file("[full, searched, random, {like: random, name: parts, match: parts}]")
    assert [m.name for m in load_comparison(more).methods][2:] == ["random", "parts"]
