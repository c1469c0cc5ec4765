"""What a whole search has shown: its trials, their Pareto front, which bits mattered, how much was luck.

All of it is read from the trials' validation figures; the test split is not opened for it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from fairtune.fairness import Objective
from fairtune.peft import bits_text
from fairtune.search.figures import draw_importance, draw_pareto, draw_progress
from fairtune.search.point import LEARNING_RATE, SearchSpace, label
from fairtune.search.standings import Standing
from fairtune.search.study import FinishedTrial
from fairtune.tracking.runs import RunLog

ENOUGH = 8
"""Trials below which no importance is estimated."""


def pareto_front(a: ArrayLike, b: ArrayLike) -> NDArray[np.bool_]:
    """Say which points no other point beats: none is as good in both and better in one.

    Parameters
    ----------
    a, b
        (n,) figures, larger is better. A point with a NaN is never on the front.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    defined = ~(np.isnan(a) | np.isnan(b))
    as_good = (a[None] >= a[:, None]) & (b[None] >= b[:, None])  # (i, j): j is as good as i
    better = (a[None] > a[:, None]) | (b[None] > b[:, None])
    front: NDArray[np.bool_] = defined & ~(as_good & better).any(axis=1)
    return front


def trials_table(
    trials: Sequence[FinishedTrial], space: SearchSpace, objective: Objective
) -> pd.DataFrame:
    """Tabulate trials, one row each, in order; `best` is the best objective so far."""
    rows = pd.DataFrame(
        {
            "trial": [t.number for t in trials],
            "bits": [bits_text(t.point.bits) for t in trials],
            LEARNING_RATE: [t.point.learning_rate for t in trials],
            **{name: [dict(t.point.extras)[name] for t in trials] for name, _ in space.extra},
            "objective": [t.value for t in trials],
            "auroc": [t.auroc for t in trials],
            "worst_group_auroc": [t.worst_group_auroc for t in trials],
            "epochs": [t.epochs for t in trials],
            "pruned": [t.pruned for t in trials],
            "run_id": [t.run_id for t in trials],
        }
    )
    losses = np.minimum.accumulate([objective.loss(t.value) for t in trials])
    rows["best"] = [objective.loss(loss) for loss in losses]  # its own inverse
    rows["on_front"] = pareto_front(rows["auroc"], rows["worst_group_auroc"])
    return rows


def importance(
    trials: Sequence[FinishedTrial], space: SearchSpace, *, seed: int, n_repeats: int = 20
) -> pd.DataFrame:
    """Estimate how much each dimension of the search mattered to the objective.

    Permutation importance (Breiman 2001) of a random forest that predicts the objective from the
    point: by how much the R² of its fit falls when one dimension is shuffled. It
    describes these trials; with few of them, or dimensions that moved together, it says little.

    Returns
    -------
    DataFrame
        Columns `dimension, importance, std`, the largest first; no rows with fewer than eight trials
        or where all have one objective.
    """
    columns = [*space.bit_names, LEARNING_RATE, *(name for name, _ in space.extra)]
    values = np.array([t.value for t in trials])
    empty = pd.DataFrame({"dimension": [], "importance": [], "std": []})
    if len(trials) < ENOUGH or np.ptp(values) == 0:
        return empty
    table = np.array([_features(t, space) for t in trials])
    forest = RandomForestRegressor(n_estimators=200, random_state=seed, n_jobs=1)
    forest.fit(table, values)
    result = permutation_importance(forest, table, values, n_repeats=n_repeats, random_state=seed)
    found = pd.DataFrame(
        {
            "dimension": columns,
            "importance": result.importances_mean,
            "std": result.importances_std,
        }
    )
    return found.sort_values("importance", ascending=False, ignore_index=True)


def _features(trial: FinishedTrial, space: SearchSpace) -> list[float]:
    vals = space.vals(trial.point)
    numbers = [float(vals[label(name)][0]) for name in space.bit_names]
    extras = [float(vals[name][0]) for name, _ in space.extra]
    return [*numbers, math.log10(trial.point.learning_rate), *extras]


def standings_table(contenders: Sequence[Standing], objective: Objective) -> pd.DataFrame:
    """Tabulate the finalists, the best lower bound first."""
    rows = [
        {
            "candidate": s.candidate.name,
            "seeds": len(s.runs),
            "mean": s.mean,
            "seed_error": s.seed_error,
            "patient_error": s.patient_error,
            "standard_error": s.standard_error,
            "bound": objective.loss(-s.bound(objective)),  # back in the objective's own direction
            "auroc": s.auroc,
            "first_value": s.candidate.first_value,
            "winners_curse": winners_curse(s, objective),
        }
        for s in sorted(contenders, key=lambda s: -s.bound(objective))
    ]
    return pd.DataFrame(rows)


def winners_curse(standing: Standing, objective: Objective) -> float:
    """Return by how much the first value of a candidate was better than its re-run mean."""
    return objective.loss(standing.mean) - objective.loss(standing.candidate.first_value)


def summarize(
    log: RunLog,
    trials: Sequence[FinishedTrial],
    finals: Sequence[Standing],
    space: SearchSpace,
    objective: Objective,
    seed: int,
) -> None:
    """Write tables and figures of a search to its run, and the winner's curse as a metric.

    The winner's curse is that of the trial that was best in the search, whoever wins in the end.
    """
    table = trials_table(trials, space, objective)
    mattered = importance(trials, space, seed=seed)
    log.text("trials.csv", table.to_csv(index=False))
    log.text("pareto.csv", table[table["on_front"]].to_csv(index=False))
    log.text("standings.csv", standings_table(finals, objective).to_csv(index=False))
    log.text("importance.csv", mattered.to_csv(index=False))
    searched = [s for s in finals if s.candidate.number is not None]
    facts = {"trials": len(trials), "epochs": float(table["epochs"].sum())}
    if searched:
        first = min(searched, key=lambda s: objective.loss(s.candidate.first_value))
        facts["winners_curse"] = winners_curse(first, objective)
    log.log(metrics=facts)
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            draw_pareto(table, Path(folder) / "pareto.png"),
            draw_progress(table, objective.name, Path(folder) / "progress.png"),
        ]
        if len(mattered):
            paths.append(draw_importance(mattered, len(trials), Path(folder) / "importance.png"))
        for path in paths:
            log.file(path, "figures")
