"""The claim about one method: higher worst-group AUROC and a smaller gap, at no lower AUROC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from fairtune.comparison.settings import Comparison
from fairtune.comparison.statistics import holm
from fairtune.comparison.tables import markdown

LEVEL = 0.05
CLAIMED = {"worst_group_auroc": 1, "auroc_gap": -1}
"""Metric and the sign that its difference is claimed to have."""


@dataclass(frozen=True, eq=False)
class Claims:
    """The verdict on every task: a row per hypothesis, and all of it as Markdown."""

    table: pd.DataFrame
    text: str


def judge_claim(differences: pd.DataFrame, comparison: Comparison) -> Claims:
    """Judge the claim about ``comparison.candidate`` against every reference.

    A hypothesis holds when its difference has the claimed sign and p < 0.05 after Holm's correction
    over all hypotheses of its task: over seeds, and where the seeds share their test patients over
    patients too. Overall AUROC is no lower when the lower end of its interval is above -margin.
    Verdicts: supported (all hold, and none is missing), contradicted (one is significant the other
    way round), else not decided. The text names the references of which a figure is missing.
    """
    rows, lines = [], []
    about = (
        differences[differences["method"] == comparison.candidate]
        if len(differences)
        else differences
    )
    for task, found in about.groupby("task", sort=False) if len(about) else ():
        redrawn = any(t.name == task and t.seed_keys for t in comparison.tasks)
        claimed = found[found["metric"].isin(CLAIMED)].copy()
        claimed["p"] = holm(claimed["p_value"].tolist())
        claimed["patient_p"] = holm(claimed["patient_p_value"].tolist())
        claimed["decides"] = [_decides(row, redrawn) for _, row in claimed.iterrows()]
        overall = found[found["metric"] == "auroc"].copy()
        low = (
            overall["low"] if redrawn else overall[["low", "patient_low"]].min(axis=1, skipna=False)
        )
        overall["decides"] = (low > -comparison.margin).astype(int)
        both = pd.concat([claimed, overall])
        others = [name for name in comparison.references if name != comparison.candidate]
        missing = _missing(both, others)
        verdict = _verdict(claimed["decides"].tolist(), overall["decides"].tolist(), missing)
        both["verdict"] = verdict
        rows.append(both)
        lines += [
            f"**{task}: the claim about `{comparison.candidate}` is {verdict}.**{_say(missing)}",
            markdown(_shown(both)),
        ]
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame({"verdict": []})
    return Claims(table, "\n\n".join(lines))


def _decides(row: pd.Series, redrawn: bool) -> int:
    """Return 1 where the hypothesis holds, -1 where the opposite is significant, else 0."""
    sign = CLAIMED[row["metric"]]
    significant = row["p"] < LEVEL and (redrawn or row["patient_p"] < LEVEL)
    if not significant:  # NaN is not significant
        return 0
    return 1 if math.copysign(1, row["mean"]) == sign else -1


def _missing(rows: pd.DataFrame, references: Sequence[str]) -> list[str]:
    """Return the references without a row for each claimed metric and for overall AUROC."""
    there = set(zip(rows["reference"], rows["metric"], strict=True))
    return [r for r in references if not there.issuperset((r, m) for m in (*CLAIMED, "auroc"))]


def _say(missing: list[str]) -> str:
    named = ", ".join(f"`{name}`" for name in missing)
    return f" Figures are missing of the comparison with {named}." if missing else ""


def _verdict(claimed: list[int], overall: list[int], missing: list[str]) -> str:
    if -1 in claimed:
        return "contradicted"
    return "supported" if not missing and all(claimed) and all(overall) else "not decided"


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "test figure": row["metric"],
                "against": row["reference"],
                "difference": _text(row["mean"], "+.4f"),
                "n": row["n"],
                "patients": row["patient_n_patients"],
                "95 % over seeds": _interval(row["low"], row["high"]),
                "95 % over patients": _interval(row["patient_low"], row["patient_high"]),
                "p, seeds (Holm)": _p(row["p"]),
                "p, patients (Holm)": _p(row["patient_p"]),
                "Hedges' g": _text(row["hedges_g"], "+.2f"),
                "95 % of the effect": _interval(row["effect_low"], row["effect_high"], "+.2f"),
            }
            for _, row in rows.iterrows()
        ]
    )


def _text(value: float, form: str) -> str:
    """Write a number; a dash where it is not defined."""
    return "-" if math.isnan(value) else format(value, form)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else _text(value, ".3f")


def _interval(low: float, high: float, form: str = "+.4f") -> str:
    return "-" if math.isnan(low) else f"[{low:{form}}, {high:{form}}]"
