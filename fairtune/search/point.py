"""What one trial tries: mask bits and a learning rate, and the hyperopt space they come from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperopt import hp

LEARNING_RATE = "learning_rate"


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
    """

    bits: tuple[int, ...]
    learning_rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", tuple(int(bit) for bit in self.bits))
        object.__setattr__(self, "learning_rate", two_digits(self.learning_rate))

    @property
    def key(self) -> str:
        """Twelve hex digits that name the point; equal points have equal keys."""
        text = json.dumps([self.bits, self.learning_rate])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def two_digits(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.1e}")


@dataclass(frozen=True)
class SearchSpace:
    """The points a search may propose.

    Attributes
    ----------
    bit_names
        Name of each bit: the label in hyperopt and, behind ``mask.``, the parameter in MLflow.
    low, high
        Bounds of the learning rate.
    values
        The values a bit may take; (0, 1) unless the mask space says otherwise.
    """

    bit_names: tuple[str, ...]
    low: float
    high: float
    values: tuple[int, ...] = field(default=(0, 1))

    def expression(self) -> dict[str, Any]:
        """Return the space in hyperopt's own terms."""
        space: dict[str, Any] = {name: hp.choice(name, self.values) for name in self.bit_names}
        space[LEARNING_RATE] = hp.loguniform(LEARNING_RATE, math.log(self.low), math.log(self.high))
        return space

    def point(self, sample: Mapping[str, Any]) -> Point:
        """Read what hyperopt gives an objective: values, not indices."""
        return Point(tuple(sample[name] for name in self.bit_names), float(sample[LEARNING_RATE]))

    def point_of_vals(self, vals: Mapping[str, Sequence[Any]]) -> Point:
        """Read a hyperopt trial's ``misc["vals"]``: indices of choices, in lists."""
        bits = tuple(self.values[int(vals[name][0])] for name in self.bit_names)
        return Point(bits, float(vals[LEARNING_RATE][0]))

    def vals(self, point: Point) -> dict[str, list[Any]]:
        """Write a point as a hyperopt trial's ``misc["vals"]``."""
        vals: dict[str, list[Any]] = {
            name: [self.values.index(bit)]
            for name, bit in zip(self.bit_names, point.bits, strict=True)
        }
        vals[LEARNING_RATE] = [point.learning_rate]
        return vals
