from __future__ import annotations

import pytest

from fairtune.errors import InputError
from fairtune.registry import Registry
from fairtune.seeding import seed


def test_seeds_are_stable_distinct_and_in_range() -> None:
    assert seed(0, "trial", 17, "augment") == seed(0, "trial", 17, "augment") == 1571291432
    draws = {seed(base, "trial", n) for base in range(20) for n in range(50)}
    assert len(draws) == 1000
    assert all(0 <= draw < 2**31 for draw in draws)
    assert seed(0, "a", "b") != seed(0, "ab")
    assert seed(0, 1) != seed(0, "1")


def test_a_registry_finds_refuses_and_suggests() -> None:
    things: Registry[int] = Registry("thing")
    things.register("alpha", "first")(1)
    things.register("beta")(2)
    assert things["alpha"] == things["first"] == 1
    assert list(things) == ["alpha", "first", "beta"]
    with pytest.raises(ValueError, match="thing 'alpha' is registered twice"):
        things.register("alpha")(3)
    with pytest.raises(
        InputError, match=r"unknown thing 'alhpa'; did you mean 'alpha'\? \(known: alpha, "
    ):
        things["alhpa"]
    assert "gamma" not in things
