"""What a file of a comparison may say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from comparison.conftest import comparison_of

from fairtune.comparison.methods import known_methods, method
from fairtune.comparison.settings import load_comparison
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
    assert candidate.space is None  # its bits are searched
    assert min(comparison.seeds) >= 2000  # of seeds that nobody tuned on: docs/evidence.md
