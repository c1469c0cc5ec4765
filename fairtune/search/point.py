"""What one trial tries: mask bits and a learning rate, and the hyperopt space they come from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperopt import hp

from fairtune.search.settings import ExtraChoice, ExtraRange

LEARNING_RATE = "learning_rate"
Extras = tuple[tuple[str, float | str], ...]
"""What else is searched: name and value, in the order of the configuration."""


@dataclass(frozen=True)
class Point:
    """One place in the search space.

    Attributes
    ----------
    bits
        One value per bit of the mask's space, in the space's order.
    learning_rate
        Rounded to two significant digits: finer differences are noise, and equal points can be
        recognised.
    extras
        Further hyperparameters, by name; `SearchSpace` rounds those of a range alike.
    """

    bits: tuple[int, ...]
    learning_rate: float
    extras: Extras = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", tuple(int(bit) for bit in self.bits))
        object.__setattr__(self, "learning_rate", two_digits(self.learning_rate))
        object.__setattr__(self, "extras", tuple(self.extras))

    @property
    def key(self) -> str:
        """Twelve hex digits that name the point; equal points have equal keys."""
        text = json.dumps([self.bits, self.learning_rate, *self.extras])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def label(name: str) -> str:
    """Name a bit in hyperopt, whose adaptive TPE takes dots for a nesting of its own."""
    return name.replace(".", "/")


def two_digits(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.1e}")


@dataclass(frozen=True)
class SearchSpace:
    """The points a search may propose.

    Attributes
    ----------
    bit_names
        Name of each bit: behind ``mask.`` the parameter in MLflow, and, see `label`, in hyperopt.
    low, high
        Bounds of the learning rate.
    values
        The values a bit may take; (0, 1) unless the mask space says otherwise.
    extra
        Further dimensions, by name.
    """

    bit_names: tuple[str, ...]
    low: float
    high: float
    values: tuple[int, ...] = field(default=(0, 1))
    extra: tuple[tuple[str, ExtraRange | ExtraChoice], ...] = ()

    def expression(self) -> dict[str, Any]:
        """Return the space in hyperopt's own terms."""
        space: dict[str, Any] = {
            name: hp.choice(label(name), self.values) for name in self.bit_names
        }
        space[LEARNING_RATE] = hp.loguniform(LEARNING_RATE, math.log(self.low), math.log(self.high))
        for name, what in self.extra:
            space[name] = _expression(name, what)
        return space

    def point(self, sample: Mapping[str, Any]) -> Point:
        """Read what hyperopt gives an objective: values, not indices."""
        bits = tuple(sample[name] for name in self.bit_names)
        return Point(bits, float(sample[LEARNING_RATE]), self._extras(sample))

    def point_of_vals(self, vals: Mapping[str, Sequence[Any]]) -> Point:
        """Read a hyperopt trial's ``misc["vals"]``: indices of choices, in lists."""
        bits = tuple(self.values[int(vals[label(name)][0])] for name in self.bit_names)
        drawn = {
            name: what.choices[int(vals[name][0])]
            if isinstance(what, ExtraChoice)
            else vals[name][0]
            for name, what in self.extra
        }
        return Point(bits, float(vals[LEARNING_RATE][0]), self._extras(drawn))

    def vals(self, point: Point) -> dict[str, list[Any]]:
        """Write a point as a hyperopt trial's ``misc["vals"]``."""
        vals: dict[str, list[Any]] = {
            label(name): [self.values.index(bit)]
            for name, bit in zip(self.bit_names, point.bits, strict=True)
        }
        vals[LEARNING_RATE] = [point.learning_rate]
        given = dict(point.extras)
        for name, what in self.extra:
            value = given[name]
            vals[name] = [what.choices.index(value) if isinstance(what, ExtraChoice) else value]
        return vals

    def extras_of(self, values: Mapping[str, Any]) -> Extras:
        """Read the further dimensions from a mapping, each brought into what is searched."""
        return self._extras({name: what.nearest(values[name]) for name, what in self.extra})

    def extras_in(self, params: Mapping[str, str]) -> Extras:
        """Read the further dimensions back from a run's parameters."""
        return self._extras({name: _read(what, params[name]) for name, what in self.extra})

    def _extras(self, values: Mapping[str, Any]) -> Extras:
        """Round what comes from a range; what is on a list stays as it stands there."""
        return tuple(
            (name, two_digits(values[name]) if isinstance(what, ExtraRange) else values[name])
            for name, what in self.extra
        )


def _read(what: ExtraRange | ExtraChoice, text: str) -> float | str:
    if isinstance(what, ExtraRange):
        return float(text)
    # Once numbers of a list were rounded as well; where the two differ, the exact one is meant.
    rounded = {str(two_digits(one)): one for one in what.choices if not isinstance(one, str)}
    return {**rounded, **{str(one): one for one in what.choices}}[text]


def _expression(name: str, what: ExtraRange | ExtraChoice) -> Any:
    if isinstance(what, ExtraChoice):
        return hp.choice(name, what.choices)
    if what.log:
        return hp.loguniform(name, math.log(what.low), math.log(what.high))
    return hp.uniform(name, what.low, what.high)
