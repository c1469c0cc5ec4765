"""Judge predictions: metrics per group, objectives, thresholds, intervals."""

from fairtune.fairness.delong import delong_se
from fairtune.fairness.evaluation import evaluate
from fairtune.fairness.grouping import with_intersections
from fairtune.fairness.intervals import (
    BootstrapReport,
    Interval,
    PairedDifference,
    PairedReport,
    bootstrap_report,
    paired_bootstrap,
)
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
    "BootstrapReport",
    "FairnessReport",
    "Interval",
    "Objective",
    "PairedDifference",
    "PairedReport",
    "Undefined",
    "UndefinedObjectiveError",
    "bootstrap_report",
    "check_groups",
    "delong_se",
    "evaluate",
    "fairness_generalization_gap",
    "fit_threshold",
    "get_objective",
    "paired_bootstrap",
    "slug",
    "with_intersections",
]
