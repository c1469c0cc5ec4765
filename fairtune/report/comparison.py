"""The report of a comparison of methods: a page made of the tables and figures of its run."""

from __future__ import annotations

import base64
import math
import shlex
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from mlflow.entities import Run

from fairtune.errors import InputError
from fairtune.report.answer import words
from fairtune.report.environment import environment
from fairtune.report.story import artifacts
from fairtune.report.style import COLOURS
from fairtune.tracking.runs import RunLog

SETTINGS = "comparison.yaml"


@dataclass(frozen=True)
class Picture:
    """A figure of the comparison, as it lies in the run."""

    title: str
    source: str


def comparison_page(log: RunLog) -> str:
    """Return the page of a comparison.

    Raises
    ------
    InputError
        The comparison has no table yet: none of its methods has finished.
    """
    run = log.data()
    there = artifacts(log)
    if "table.csv" not in there:
        raise InputError(
            f"run {log.run_id} has no result to report yet: its status is {run.info.status}; go on "
            f"with fairtune compare --resume {log.run_id}"
        )
    with tempfile.TemporaryDirectory() as folder:
        rows = _table(log, "table.csv", folder)
        claims, thresholds = (
            _table(log, name, folder) if name in there else pd.DataFrame()
            for name in ("claim.csv", "thresholds.csv")
        )
    tasks = {
        str(task): found.drop(columns="task").fillna("")
        for task, found in rows.groupby("task", sort=False)
    }
    source = run.data.tags.get("fairtune.source")
    command = [
        "fairtune",
        "compare",
        "--config",
        SETTINGS,
        *(["--source", source] if source else []),
    ]
    return (
        environment()
        .get_template("comparison.html")
        .render(
            title=run.info.run_name or log.run_id,
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            run_id=log.run_id,
            answer=_answer(run, rows, claims),
            tasks=tasks,
            figures=_pictures(log),
            thresholds=thresholds.fillna("") if len(thresholds) else None,
            hypotheses=_hypotheses(claims) if len(claims) else None,
            command=shlex.join(command),
            settings=log.read_text(SETTINGS) if SETTINGS in there else "",
            colours=COLOURS,
        )
    )


def _table(log: RunLog, name: str, folder: str) -> pd.DataFrame:
    try:
        return pd.read_csv(log.download(name, folder))
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def _answer(run: Run, rows: pd.DataFrame, claims: pd.DataFrame) -> list[str]:
    """Say for each task how large it was, and what was decided about what was asked."""
    sentences = []
    for task, found in rows.groupby("task", sort=False):
        seeds = sorted(set(found["n"]))
        span = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        count = f"{len(found)} methods were" if len(found) > 1 else "1 method was"
        text = f"On {task}, {count} compared over {span} seeds."
        mine = claims[claims["task"] == task] if len(claims) else claims
        if len(mine):
            text += (
                f" That {mine['method'].iloc[0]} has a higher worst-group AUROC and a smaller gap, at no "
                f"lower AUROC, is {mine['verdict'].iloc[0]}."
            )
        sentences.append(text)
    if run.info.status != "FINISHED":
        sentences.append(
            f"The comparison is not complete: its status is {run.info.status.lower()}."
        )
    return sentences


def _hypotheses(claims: pd.DataFrame) -> pd.DataFrame:
    def figure(value: float, form: str) -> str:
        return "" if math.isnan(value) else format(value, form)

    def interval(row: pd.Series, prefix: str) -> str:
        low, high = (figure(row[f"{prefix}{end}"], "+.3f") for end in ("low", "high"))
        return f"{low} to {high}" if low and high else ""

    return pd.DataFrame(
        [
            {
                "task": row["task"],
                "figure": words(str(row["metric"])),
                "difference of": row["method"],
                "against": row["reference"],
                "mean": figure(row["mean"], "+.3f"),
                "n": row["n"],
                "95% over seeds": interval(row, ""),
                "95% over patients": interval(row, "patient_"),
                "p, seeds": figure(row["p"], ".3f"),
                "p, patients": figure(row["patient_p"], ".3f"),
                # Not in comparisons of before there was one.
                **({"Hedges' g": figure(row["hedges_g"], "+.2f")} if "hedges_g" in row else {}),
            }
            for _, row in claims.iterrows()
        ]
    )


def _pictures(log: RunLog) -> list[Picture]:
    paths = sorted(path for path in artifacts(log, "figures") if path.endswith(".png"))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            data = base64.b64encode(log.download(path, folder).read_bytes()).decode()
            title = Path(path).stem.replace("-", " ").capitalize()
            found.append(Picture(title, f"data:image/png;base64,{data}"))
    return found
