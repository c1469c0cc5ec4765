"""What a search improves: one figure of the validation report, and in which direction.

The rule for figures that are not defined: an objective over groups needs its metric in *every*
group of every attribute. A group without rows, or without rows of a class that the metric needs,
makes the objective undefined, and it says so before any training (`check_groups`) or when it is
read (`Objective.value`). It is never computed over the remaining groups in silence: the search
would then be free to neglect the one that is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fairtune.errors import InputError
from fairtune.fairness.disparities import DISPARITIES, PAIRWISE
from fairtune.fairness.grouping import groupings
from fairtune.fairness.metrics import undefined_reason
from fairtune.fairness.report import FairnessReport, Undefined
from fairtune.fairness.validation import check_labels
from fairtune.registry import Registry

ADVICE = (
    "merge small groups into larger ones, remove levels without rows, drop the attribute, or "
    "choose an objective that does not need this, such as accuracy"
)
_SHOWN = 5  # an attribute that was never binned would fill the screen


class UndefinedObjectiveError(InputError):
    """The objective has no value on this split: the message names the groups and their counts."""


@dataclass(frozen=True)
class Objective:
    """One figure of a report, with its direction.

    Attributes
    ----------
    name
        What it is called in a configuration; also its key in `FairnessReport.to_dict`.
    direction
        Whether a larger value (`maximize`) or a smaller one (`minimize`) is better.
    needs
        The metrics that must be defined: in every group, or on the whole split for an objective
        that does not compare groups.
    aliases
        Other accepted names.
    """

    name: str
    direction: Literal["maximize", "minimize"]
    needs: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @property
    def over_groups(self) -> bool:
        """Whether it compares groups, or looks at the whole split."""
        return self.name in DISPARITIES

    def value(self, report: FairnessReport) -> float:
        """Read the figure; raises `UndefinedObjectiveError` by the rule above."""
        blocking = [entry for entry in report.undefined if self._blocks(entry)]
        value = report.headline[self.name]
        if blocking or math.isnan(value):
            raise _refusal(self, blocking)
        return value

    def loss(self, value: float) -> float:
        """Turn a value into what hyperopt minimises. No other place flips the sign."""
        return -value if self.direction == "maximize" else value

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`; NaN is worse than any number."""
        if math.isnan(a) or math.isnan(b):
            return math.isnan(b) and not math.isnan(a)
        return self.loss(a) < self.loss(b)

    def _blocks(self, entry: Undefined) -> bool:
        if not self.over_groups:
            return entry.attribute is None and entry.metric in self.needs
        in_group = entry.group is not None and entry.metric in self.needs
        return in_group or (entry.group is None and entry.metric == self.name)


OBJECTIVES: Registry[Objective] = Registry("objective")


def _define(
    name: str, direction: Literal["maximize", "minimize"], needs: Iterable[str], *aliases: str
) -> None:
    OBJECTIVES.register(name, *aliases)(Objective(name, direction, tuple(needs), aliases))


_define("worst_group_auroc", "maximize", ["auroc"], "min_auc")
_define("worst_group_accuracy", "maximize", ["accuracy"], "min_acc")
_define("worst_group_log_loss", "minimize", ["log_loss"], "max_loss")
_define("auroc_gap", "minimize", ["auroc"], "auc_diff")
_define("accuracy_gap", "minimize", ["accuracy"], "acc_diff")
_define("auroc", "maximize", ["auroc"], "overall_auc")
_define("accuracy", "maximize", ["accuracy"], "overall_acc")
_define("balanced_accuracy", "maximize", ["balanced_accuracy"])
_define("log_loss", "minimize", ["log_loss"], "overall_loss")
_define("es_auroc", "maximize", ["auroc"])
_define("equalized_odds_difference", "minimize", ["tpr", "fpr"])
_define("equal_opportunity_difference", "minimize", ["tpr"])
_define("demographic_parity_difference", "minimize", ["selection_rate"])


def get_objective(name: str) -> Objective:
    """Return the objective of this name or alias; raises `InputError` listing the known ones."""
    return OBJECTIVES[name]


def check_groups(
    y_true: ArrayLike,
    groups: pd.DataFrame,
    objective: Objective,
    *,
    n_classes: int | None = None,
    split: str = "validation split",
) -> None:
    """Refuse, before any training, a split on which the objective cannot be defined.

    Parameters
    ----------
    y_true, groups
        (N,) class numbers and N rows of sensitive attributes, as for `evaluate`.
    n_classes
        Number of classes of the task; by default the largest label + 1, at least two.
    split
        What the message calls the rows.

    Raises
    ------
    UndefinedObjectiveError
        Names the groups, their counts, and what to change.
    InputError
        Impossible labels or groups.
    """
    labels = check_labels(y_true)
    n_classes = n_classes or max(2, int(labels.max()) + 1)
    parsed = groupings(groups, labels.size)
    if objective.over_groups and not parsed:
        raise UndefinedObjectiveError(
            f"objective {objective.name!r} compares groups, but there is no sensitive attribute"
        )
    places: list[tuple[str | None, str | None, np.ndarray]] = [(None, None, labels)]
    if objective.over_groups:
        places = [
            (grouping.attribute, name, labels[grouping.codes == code])
            for grouping in parsed
            for code, name in enumerate(grouping.names)
        ]
    blocking = [
        entry
        for attribute, group, rows in places
        for entry in _missing(objective, attribute, group, rows, n_classes)
    ]
    if objective.name in PAIRWISE:
        blocking += [
            Undefined(objective.name, grouping.attribute, None, "only one group", labels.size, None)
            for grouping in parsed
            if len(grouping.names) < 2
        ]
    if blocking:
        raise _refusal(objective, blocking, split)


def _missing(
    objective: Objective,
    attribute: str | None,
    group: str | None,
    labels: np.ndarray,
    n_classes: int,
) -> list[Undefined]:
    counts = tuple(int(n) for n in np.bincount(labels, minlength=n_classes))
    positive = counts[1] if n_classes == 2 else None
    reasons = {metric: undefined_reason(metric, counts) for metric in objective.needs}
    return [
        Undefined(metric, attribute, group, reason, sum(counts), positive)
        for metric, reason in reasons.items()
        if reason
    ]


def _refusal(
    objective: Objective, blocking: list[Undefined], split: str = "split"
) -> UndefinedObjectiveError:
    reasons: dict[str, None] = {}  # two metrics that lack the same class are one reason
    for entry in blocking:
        reasons[_describe(entry)] = None
    shown = list(reasons)[:_SHOWN]
    more = f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return UndefinedObjectiveError(
        f"objective {objective.name!r} is undefined on the {split}: "
        f"{'; '.join(shown) or 'it has no value'}{more}. What to do: {ADVICE}"
    )


def _describe(entry: Undefined) -> str:
    where = "all rows" if entry.attribute is None else f"attribute {entry.attribute!r}"
    if entry.group is not None:
        where = f"group {entry.group!r} of {entry.attribute!r}"
    positive = "" if entry.n_positive is None else f", {entry.n_positive} positive"
    return f"{where} ({entry.n} rows{positive}): {entry.reason}"
