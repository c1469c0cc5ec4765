"""Judge predictions: metrics per group, objectives, thresholds. Knows NumPy and pandas only."""

from fairtune.fairness.evaluation import evaluate
from fairtune.fairness.grouping import with_intersections
from fairtune.fairness.naming import slug
from fairtune.fairness.objectives import (
    OBJECTIVES,
    Objective,
    UndefinedObjectiveError,
    check_groups,
    get_objective,
)
from fairtune.fairness.report import FairnessReport, Undefined, fairness_generalization_gap
from fairtune.fairness.thresholds import THRESHOLD_RULES, fit_threshold

__all__ = [
    "OBJECTIVES",
    "THRESHOLD_RULES",
    "FairnessReport",
    "Objective",
    "Undefined",
    "UndefinedObjectiveError",
    "check_groups",
    "evaluate",
    "fairness_generalization_gap",
    "fit_threshold",
    "get_objective",
    "slug",
    "with_intersections",
]
