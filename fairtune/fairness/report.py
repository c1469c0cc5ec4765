"""The report of one split: metrics overall, per group and between groups, and what is undefined."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NoReturn

import pandas as pd

from fairtune.errors import InputError
from fairtune.fairness.disparities import DISPARITIES, disparities, disparity_reasons, worst
from fairtune.fairness.metrics import RATES, SCALARS, GroupMetrics, undefined_reason
from fairtune.fairness.naming import slug

FORMAT = 1


@dataclass(frozen=True)
class Undefined:
    """A metric that has no value, or leaves a group out, and why.

    Attributes
    ----------
    metric
        The metric's name as in `FairnessReport.to_dict`.
    attribute, group
        Where; both None for the whole split, `group` None for a comparison between groups.
    reason
        Why, in words.
    n, n_positive
        The counts behind it; `n_positive` is None for more than two classes.
    """

    metric: str
    attribute: str | None
    group: str | None
    reason: str
    n: int
    n_positive: int | None


@dataclass(frozen=True)
class FairnessReport:
    """All metrics of one split.

    Attributes
    ----------
    overall
        The whole split.
    groups
        By attribute, then by group, in the order of the data; groups without rows included.
    threshold
        The probability of class 1 from which a row counts as positive; None for argmax.
    """

    overall: GroupMetrics
    groups: Mapping[str, Mapping[str, GroupMetrics]]
    threshold: float | None

    @cached_property
    def by_attribute(self) -> dict[str, dict[str, float]]:
        """What each attribute's groups say together: gaps, differences, ratios, worst group."""
        return {
            attribute: disparities(list(groups.values()), self.overall)
            for attribute, groups in self.groups.items()
        }

    @cached_property
    def headline(self) -> dict[str, float]:
        """The metrics of the whole split, and each comparison's worst value over all attributes."""
        found = self.by_attribute.values()
        return self.overall.flat() | {
            metric: worst(metric, [values[metric] for values in found]) for metric in DISPARITIES
        }

    @cached_property
    def undefined(self) -> tuple[Undefined, ...]:
        """Every metric that has no value, and every group that a comparison had to leave out."""
        return tuple(self._undefined())

    def _undefined(self) -> Iterator[Undefined]:
        for attribute, group, cell in self._cells():
            for metric in (*SCALARS, *RATES):
                reason = undefined_reason(metric, cell.n_by_class)
                if reason:
                    yield Undefined(metric, attribute, group, reason, cell.n, cell.n_positive)
        counts = (self.overall.n, self.overall.n_positive)
        for attribute, found in self.by_attribute.items():
            for metric, reason in disparity_reasons(list(self.groups[attribute].values()), found):
                yield Undefined(metric, attribute, None, reason, *counts)
        if not self.groups:
            for metric in DISPARITIES:
                yield Undefined(metric, None, None, "no sensitive attribute", *counts)

    def _cells(self) -> Iterator[tuple[str | None, str | None, GroupMetrics]]:
        yield None, None, self.overall
        for attribute, groups in self.groups.items():
            for group, cell in groups.items():
                yield attribute, group, cell

    def to_dict(self) -> dict[str, float]:
        """Return all figures under flat names that MLflow accepts, NaN where undefined.

        ``auroc``, ``worst_group_auroc`` ... for the split; ``auroc_gap_by_attribute/sex`` for an
        attribute; ``auroc_by_group/sex.female``, ``n_by_group/sex.female`` for a group. Positives
        are counted under ``n_positive``; with more than two classes the rows of class 2, say, under
        ``n_class_2``, and rates per class stand in `table` alone.
        """
        flat = self.headline | _counts(self.overall)
        for attribute, found in self.by_attribute.items():
            flat |= {f"{key}_by_attribute/{slug(attribute)}": v for key, v in found.items()}
        for attribute, groups in self.groups.items():
            for group, cell in groups.items():
                where = f"{slug(attribute)}.{slug(group)}"
                figures = _counts(cell) | cell.flat()
                flat |= {f"{key}_by_group/{where}": value for key, value in figures.items()}
        return flat

    def table(self) -> pd.DataFrame:
        """Return a row per group, the whole split first (attribute and group ``overall``)."""
        rows = []
        for attribute, group, cell in self._cells():
            row: dict[str, Any] = {"attribute": attribute or "overall", "group": group or "overall"}
            row |= {key: int(count) for key, count in _counts(cell).items()}
            row |= cell.flat()
            if len(cell.n_by_class) > 2:
                row |= {
                    f"{name}_class_{k}": rate
                    for name, rates in cell.rates.items()
                    for k, rate in enumerate(rates)
                }
            rows.append(row)
        return pd.DataFrame(rows)

    def to_json(self) -> str:
        """Return strict JSON (NaN as null), derived figures included for other readers."""
        document = {
            "format": FORMAT,
            "threshold": self.threshold,
            "overall": asdict(self.overall),
            "groups": {
                attribute: {group: asdict(cell) for group, cell in groups.items()}
                for attribute, groups in self.groups.items()
            },
            "headline": self.headline,
            "by_attribute": self.by_attribute,
            "undefined": [asdict(entry) for entry in self.undefined],
        }
        return json.dumps(_nan_to_none(document), allow_nan=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> FairnessReport:
        """Read a report; raises `InputError` when `text` is not one that `to_json` wrote."""
        try:
            document = json.loads(text, parse_constant=_refuse_constant)
            if document["format"] != FORMAT:
                raise InputError(f"report of format {document['format']!r}, expected {FORMAT}")
            return cls(
                _read_cell(document["overall"]),
                {
                    attribute: {group: _read_cell(cell) for group, cell in groups.items()}
                    for attribute, groups in document["groups"].items()
                },
                document["threshold"],
            )
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not a fairness report in JSON: {error!r}") from error


def fairness_generalization_gap(
    train: FairnessReport, other: FairnessReport, *, metric: str = "auroc_gap"
) -> float:
    """Return how much wider the groups are apart on unseen images: gap on `other` - gap on `train`.

    Source: Dutt et al., "FairTune: Optimizing Parameter Efficient Fine Tuning for Fairness in
    Medical Image Analysis", ICLR 2024. With several attributes each report's gap is its headline,
    the widest over all of them. NaN where either gap is.
    """
    return other.headline[metric] - train.headline[metric]


def _counts(cell: GroupMetrics) -> dict[str, float]:
    if len(cell.n_by_class) == 2:
        return {"n": float(cell.n), "n_positive": float(cell.n_by_class[1])}
    by_class = {f"n_class_{k}": float(count) for k, count in enumerate(cell.n_by_class)}
    return {"n": float(cell.n)} | by_class


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _read_cell(cell: Mapping[str, Any]) -> GroupMetrics:
    def number(value: float | None) -> float:
        return float("nan") if value is None else float(value)

    return GroupMetrics(
        tuple(int(count) for count in cell["n_by_class"]),
        {name: number(cell["values"][name]) for name in SCALARS},
        {name: tuple(number(rate) for rate in cell["rates"][name]) for name in RATES},
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not strict JSON")
