"""What one attribute's groups say together: the worst group, gaps, differences and ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fairtune.fairness.metrics import GroupMetrics

# For each: is a larger value the worse one? Decides which attribute makes the headline.
DISPARITIES = {
    "worst_group_auroc": False,
    "auroc_gap": True,
    "es_auroc": False,
    "worst_group_accuracy": False,
    "accuracy_gap": True,
    "worst_group_log_loss": True,
    "demographic_parity_difference": True,
    "demographic_parity_ratio": False,
    "equalized_odds_difference": True,
    "equalized_odds_ratio": False,
    "equal_opportunity_difference": True,
}
TOO_FEW_GROUPS = "fewer than two groups where it is defined"
PAIRWISE = tuple(name for name in DISPARITIES if not name.startswith(("worst_group", "es_")))
NO_GROUP = "no group where it is defined"

Values = NDArray[np.float64]


def disparities(groups: Sequence[GroupMetrics], overall: GroupMetrics) -> dict[str, float]:
    """Compare the groups of one attribute, over those where the metric is defined.

    A gap or difference is largest minus smallest, a ratio smallest over largest; of a single group
    they are NaN. A rate that is 0 in every group has no ratio and is left out. Equalized odds is
    the larger of the differences in true and in false positive rate (fairlearn's `worst_case`),
    taken over the groups that have rows of both kinds: a group without negatives would otherwise
    count as one with no false positive. With more than two classes each rate is one-vs-rest and the
    worst class counts.

    `es_auroc` is the equity-scaled AUROC, overall / (1 + sum over groups |overall - group|), of
    Luo et al., "FairCLIP: Harnessing Fairness in Vision-Language Learning", CVPR 2024.
    """
    auroc = _column(groups, "auroc")
    accuracy = _column(groups, "accuracy")
    selection, tpr, fpr = (_rates(groups, name) for name in ("selection_rate", "tpr", "fpr"))
    both = ~(np.isnan(tpr) | np.isnan(fpr))
    odds = (np.where(both, tpr, np.nan), np.where(both, fpr, np.nan))
    return {
        "worst_group_auroc": _min(auroc),
        "auroc_gap": _difference(auroc),
        "es_auroc": _equity_scaled(overall.values["auroc"], auroc),
        "worst_group_accuracy": _min(accuracy),
        "accuracy_gap": _difference(accuracy),
        "worst_group_log_loss": _max(_column(groups, "log_loss")),
        "demographic_parity_difference": _max(_each(_difference, selection)),
        "demographic_parity_ratio": _min(_each(_ratio, selection)),
        "equalized_odds_difference": _max([_max(_each(_difference, rate)) for rate in odds]),
        "equalized_odds_ratio": _min([_min(_each(_ratio, rate)) for rate in odds]),
        "equal_opportunity_difference": _max(_each(_difference, tpr)),
    }


def disparity_reasons(
    groups: Sequence[GroupMetrics], found: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    """Yield (metric, reason) for every comparison in `found` that is NaN or leaves a rate out."""
    for metric, value in found.items():
        if np.isnan(value):
            yield metric, TOO_FEW_GROUPS if metric in PAIRWISE else NO_GROUP
    uses = {"demographic_parity_ratio": ("selection_rate",), "equalized_odds_ratio": ("tpr", "fpr")}
    for metric, names in uses.items():
        for name in names:
            rates = _rates(groups, name)
            for k in range(rates.shape[1]):
                defined = _defined(rates[:, k])
                if defined.size > 1 and defined.max() == 0:
                    which = f" of class {k}" if rates.shape[1] > 1 else ""
                    yield metric, f"the {name}{which} is 0 in every group and has no ratio"


def worst(metric: str, values: Sequence[float]) -> float:
    """Return the worst of a disparity's values over several attributes; NaN if none is defined."""
    return _max(values) if DISPARITIES[metric] else _min(values)


def _column(groups: Sequence[GroupMetrics], name: str) -> Values:
    return np.array([group.values[name] for group in groups], dtype=np.float64)  # (G,)


def _rates(groups: Sequence[GroupMetrics], name: str) -> Values:
    return np.array([group.rates[name] for group in groups], dtype=np.float64)  # (G, K)


def _each(compare: Callable[[Values], float], rates: Values) -> list[float]:
    return [compare(rates[:, k]) for k in range(rates.shape[1])]


def _defined(values: Sequence[float] | Values) -> Values:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def _min(values: Sequence[float] | Values) -> float:
    return float(_defined(values).min(initial=np.inf)) if _defined(values).size else float("nan")


def _max(values: Sequence[float] | Values) -> float:
    return float(_defined(values).max(initial=-np.inf)) if _defined(values).size else float("nan")


def _difference(values: Values) -> float:
    defined = _defined(values)
    return float(np.ptp(defined)) if defined.size > 1 else float("nan")


def _ratio(values: Values) -> float:
    defined = _defined(values)
    if defined.size < 2 or defined.max() == 0:
        return float("nan")
    return float(defined.min() / defined.max())


def _equity_scaled(overall: float, groups: Values) -> float:
    defined = _defined(groups)
    if not defined.size:
        return float("nan")
    return float(overall / (1 + np.abs(overall - defined).sum()))
