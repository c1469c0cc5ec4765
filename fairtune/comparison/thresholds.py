"""Thresholds by group, fitted when training is over: a reference beside every method.

They change decisions and no scores, so every AUROC stays. Nothing is trained and no image is read
again: what is fitted sees the validation predictions that a model's run holds, and is judged on its
test predictions. It looks at the group of everyone whom it judges and draws lots, so it is a bound to
hold methods against, and none of them (see `decide_by_group`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairtune.comparison.folds import FoldPredictions
from fairtune.comparison.results import KEYS, Results
from fairtune.comparison.tables import mean_and_error
from fairtune.errors import InputError
from fairtune.fairness import evaluate
from fairtune.seeding import seed as named_seed
from fairtune.tracking.predictions import groups_of, probabilities_of
from fairtune.training.thresholds import decide_by_group

DECIDED = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "demographic_parity_difference": "demographic parity difference",
    "equalized_odds_difference": "equalized odds difference",
}
"""Figures of decisions, and what tables call them."""
ONE, BY_GROUP = "one_threshold", "by_group"
REASON = f"{BY_GROUP}/reason"


def both_ways(results: Results) -> pd.DataFrame:
    """Judge the decisions of every model on test: with its own threshold, and with one for each group.

    Returns
    -------
    DataFrame
        A row per model: task, method, seed; ``one_threshold/<figure>`` and ``by_group/<figure>`` for
        those of `DECIDED`; ``by_group/reason``, why there are none by group, else empty.
    """
    rows = []
    found: dict[tuple[str, ...], dict[str, object]] = {}  # a chosen method shares another's runs
    for task, name, seed in results.models[KEYS].itertuples(index=False):
        key = (str(task), str(name), int(seed))
        runs = results.runs[key]
        if runs not in found:
            found[runs] = judge(results.folds(key), int(seed))
        rows.append({**dict(zip(KEYS, key, strict=True)), **found[runs]})
    return pd.DataFrame(rows)


def judge(folds: Sequence[FoldPredictions], seed: int) -> dict[str, object]:
    """Judge one model's decisions on all its test parts together, both ways; see `both_ways`.

    Each fold's thresholds are fitted on its own validation part, and lots are drawn by `seed`.
    """
    one = _figures(folds, [_decisions(fold) for fold in folds])
    reason, other = "", dict.fromkeys(DECIDED, math.nan)
    try:
        other = _figures(folds, [_by_group(fold, seed, i) for i, fold in enumerate(folds)])
    except InputError as error:
        reason = str(error)
    return {
        **{f"{ONE}/{name}": value for name, value in one.items()},
        **{f"{BY_GROUP}/{name}": value for name, value in other.items()},
        REASON: reason,
    }


def _decisions(fold: FoldPredictions) -> NDArray[np.int64]:
    scores = probabilities_of(fold.test)
    positive = scores.argmax(axis=1) if fold.threshold is None else scores[:, 1] >= fold.threshold
    return np.asarray(positive, dtype=np.int64)


def _by_group(fold: FoldPredictions, seed: int, number: int) -> NDArray[np.int64]:
    return decide_by_group(
        fold.val["label"].to_numpy(),
        probabilities_of(fold.val),
        groups_of(fold.val),
        probabilities_of(fold.test),
        groups_of(fold.test),
        seed=named_seed(seed, "lots", number),
    )


def _figures(
    folds: Sequence[FoldPredictions], decisions: Sequence[NDArray[np.int64]]
) -> dict[str, float]:
    """Judge the decisions of all folds as those of one model that is sure of them."""
    table = pd.concat([fold.test for fold in folds], ignore_index=True)
    sure = np.eye(probabilities_of(table).shape[1])[np.concatenate(decisions)]
    headline = evaluate(table["label"].to_numpy(), sure, groups_of(table)).headline
    return {name: headline[name] for name in DECIDED}


def threshold_rows(decided: pd.DataFrame) -> pd.DataFrame:
    """Tabulate methods by task: mean ± standard error over the seeds that have both ways, and n."""
    rows = []
    for (task, name), mine in decided.groupby(["task", "method"], sort=False):
        whole = mine[mine[REASON] == ""]
        row: dict[str, object] = {"task": task, "method": name, "n": len(whole)}
        for key, title in DECIDED.items():
            row[title] = mean_and_error(whole[f"{ONE}/{key}"])
            row[f"{title}, by group"] = mean_and_error(whole[f"{BY_GROUP}/{key}"])
        rows.append(row)
    return pd.DataFrame(rows)


def say_thresholds(decided: pd.DataFrame) -> str:
    """Say what the table of `threshold_rows` is, and why models are not in it."""
    reasons = decided.loc[decided[REASON] != "", REASON].value_counts()
    missing = "".join(f" Not of {n} models: {reason}." for reason, n in reasons.items())
    return (
        "Decisions on test by the model's one threshold, and by thresholds that differ by group: a "
        "reference, fitted on validation after training for equalized odds (fairlearn's "
        "ThresholdOptimizer). It looks at the group of everyone who is judged and draws lots; scores, "
        f"and so every AUROC, stay as they are.{missing}"
    )
