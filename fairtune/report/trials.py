"""The trials of a search as a table, and what can be read from them all together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from mlflow.entities import Run

from fairtune.tracking.runs import RunLog

BIT = "mask."
FINISHED, STOPPED, FAILED, CUT_OFF = "finished", "stopped at a rung", "failed", "cut off"
MAX_CURVES = 200
"""Beyond this many trials their curves are a carpet, and each costs a request."""


@dataclass(frozen=True)
class Trials:
    """The trials of a search.

    Attributes
    ----------
    table
        One row a trial, by number: ``number``, ``run_id``, ``status``, ``value`` (the objective),
        ``auroc``, ``worst_group_auroc``, ``learning_rate``, ``share`` (of parameters trained),
        ``epochs``, ``seconds``, ``reason`` (why it failed).
    bits
        The same rows; a column per mask bit, named without ``mask.``.
    curves
        Of each trial number, the objective after each epoch: (epoch, value) pairs.
    """

    table: pd.DataFrame
    bits: pd.DataFrame
    curves: dict[int, list[tuple[int, float]]]

    @property
    def judged(self) -> pd.Series:
        """Which rows have a value: finished trials, and those stopped at a rung."""
        return self.table["status"].isin([FINISHED, STOPPED]) & self.table["value"].notna()


def read_trials(log: RunLog) -> Trials:
    """Read the trials of a search from its nested runs."""
    runs = log.children("tags.`fairtune.kind` = 'trial'")
    runs = sorted(runs, key=lambda run: int(run.data.tags.get("fairtune.number", -1)))
    # A trial that was cut off is repeated under its number: the last run counts.
    runs = list({run.data.tags.get("fairtune.number"): run for run in runs}.values())
    table = pd.DataFrame([_row(run) for run in runs])
    bits = pd.DataFrame(
        [
            {k.removeprefix(BIT): float(v) for k, v in run.data.params.items() if k.startswith(BIT)}
            for run in runs
        ],
        index=table.index,
    )
    curves = {}
    if len(runs) <= MAX_CURVES:
        for number, run in zip(table.get("number", []), runs, strict=True):
            if run.data.metrics.get("epochs", 0) > 1:
                history = log.client.get_metric_history(run.info.run_id, "objective")
                curves[int(number)] = sorted((point.step, point.value) for point in history)
    return Trials(table, bits[sorted(bits.columns)], curves)


def _row(run: Run) -> dict[str, object]:
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    return {
        "number": int(tags.get("fairtune.number", -1)),
        "run_id": run.info.run_id,
        "status": _status(run),
        "value": metrics.get("objective", math.nan),
        "auroc": metrics.get("val/auroc", math.nan),
        "worst_group_auroc": metrics.get("val/worst_group_auroc", math.nan),
        "learning_rate": float(params.get("learning_rate", "nan")),
        "share": float(params.get("trained_share", "nan")),
        "epochs": metrics.get("epochs", math.nan),
        "seconds": metrics.get("seconds", math.nan),
        "reason": tags.get("fairtune.error", ""),
    }


def _status(run: Run) -> str:
    if "fairtune.error" in run.data.tags:
        return FAILED
    if "fairtune.pruned_at" in run.data.tags:
        return STOPPED
    return FINISHED if run.info.status == "FINISHED" else CUT_OFF


def pareto_front(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Return the positions that no other point beats in both figures, by rising `x`.

    Larger is better in both; of equal points the first stands for all; NaN is never on the front.
    """
    order = sorted(
        (i for i in range(len(x)) if not math.isnan(x[i] + y[i])),
        key=lambda i: (-x[i], -y[i], i),
    )
    front: list[int] = []
    for i in order:
        if not front or y[i] > y[front[-1]]:
            front.append(i)
    return front[::-1]


def bit_effects(bits: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """Compare, for every bit, the trials that had it on with those that had it off.

    Parameters
    ----------
    bits
        (T, B) one row a trial; above 0 is on.
    values
        (T,) their objective.

    Returns
    -------
    DataFrame
        Index: the bits. ``effect`` = mean with the bit on - mean with it off, ``se`` its standard
        error (Welch, without assuming equal variances; NaN with fewer than two trials on a side),
        ``n_on``, ``n_off``. A bit that was never varied has NaN.
    """
    rows = {}
    for name in bits.columns:
        on = values[bits[name] > 0].to_numpy(float)
        off = values[bits[name] == 0].to_numpy(float)
        effect = on.mean() - off.mean() if on.size and off.size else math.nan
        error = math.nan
        if on.size > 1 and off.size > 1:
            error = math.sqrt(np.var(on, ddof=1) / on.size + np.var(off, ddof=1) / off.size)
        rows[name] = {"effect": effect, "se": error, "n_on": on.size, "n_off": off.size}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["effect", "se", "n_on", "n_off"])


def bits_on(bits: pd.DataFrame) -> pd.DataFrame:
    """Count the bits that are on, by what they stand for: ``blocks.03.attn`` counts as ``attn``."""
    parts = pd.Series({name: component_of(name) for name in bits.columns}, dtype=object)
    on = bits > 0
    return pd.DataFrame(
        {part: on[parts.index[parts == part]].sum(axis=1) for part in parts.unique()},
        index=bits.index,
    )


def component_of(bit: str) -> str:
    """Return what a bit stands for in its block: the words after the number."""
    words = bit.split(".")
    numbers = [i for i, word in enumerate(words) if word.isdecimal()]
    after = ".".join(words[numbers[0] + 1 :]) if numbers else bit
    return after or "block"
