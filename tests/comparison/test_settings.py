"""What a file of a comparison may say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from comparison.conftest import comparison_of
from search.samples import tiny_config

from fairtune.cli.comparing import with_folds
from fairtune.comparison.methods import known_methods, method
from fairtune.comparison.settings import Task, load_comparison
from fairtune.errors import InputError
from fairtune.training import STRATEGIES


@pytest.mark.parametrize(
    ("methods", "more", "message"),
    [
        ("[full, serched]", "", "unknown method 'serched'; did you mean 'searched'?"),
        ("[full, full]", "", "a name comes twice"),
        ("[full, linear]", "", "candidate: no method 'searched' in full, linear"),
        ("[full, searched]", "references: [norms]", "references: no method 'norms'"),
        ("[full, random]", "candidate: full", "method random: no method 'searched'"),
        ("[full, {name: x, space: nope}]", "", "unknown space 'nope'"),
        ("[full, {name: x, strategy: nope}]", "", "unknown strategy 'nope'"),
        ("[full, {name: x, space: fullft, size_of: full}]", "", "exclude each other"),
        ("[full, {like: best_fixed, name: x, trials: 3}]", "", "best_of trains nothing"),
        ("[full, {like: full, name: x, candidates: 2}]", "", "candidates are masks of a search"),
        ("[full, searched]", "seed: 3", "seed"),
    ],
)
def test_wrong_settings_are_one_line(
    methods: str, more: str, message: str, tiny_file: Callable[..., Path]
) -> None:
    with pytest.raises(InputError) as told:
        load_comparison(tiny_file(methods, more))
    assert message in str(told.value)
    assert "\n" not in str(told.value)


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


def test_seeds_that_share_people_are_refused() -> None:
    (task,) = comparison_of(["full", "searched"]).tasks
    with pytest.raises(ValueError, match="divides the same people anew"):
        Task(name="t", config=task.config, seed_keys=("data.fold_seed",))


def test_every_strategy_is_a_method_and_every_method_has_a_configuration() -> None:
    known = known_methods()
    assert set(STRATEGIES) - {"erm"} <= set(known)
    comparison = comparison_of([*known, "searched+swad", "norms+sam"])
    for how in comparison.trained:
        config = comparison.unit_config(comparison.tasks[0], how, 7)
        assert config.seed == 7
        assert config.search.trials == 1
        assert config.train.strategy == how.strategy
    assert method("searched+swad").space is None
    assert comparison.trained[-1].name == "random"  # its mask hangs on another's


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
