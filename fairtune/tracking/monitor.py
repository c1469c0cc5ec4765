"""After deployment: the same report on what the champion answered, against what was registered.

Outcomes come late. How often each group is called positive needs none, and is taken from all rows;
everything else from the rows that have one. A limit counts as broken when the kinder bound of a
figure, not the figure alone, lies beyond it: a small month must not raise an alarm by chance. The
bound is the kinder one of the interval's end and that of the basic bootstrap (Davison and Hinkley,
"Bootstrap Methods and their Application", 1997, section 5.2), which takes back what the percentiles of
a smallest or largest of few noisy groups overstate. What cannot be judged is listed so.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient

from fairtune.errors import GateRefusedError, InputError
from fairtune.fairness import Interval, bootstrap_report, evaluate
from fairtune.tracking.aliases import CHAMPION, alias_version
from fairtune.tracking.evidence import model_version
from fairtune.tracking.predictions import PROBABILITY, groups_of, probabilities_of
from fairtune.tracking.runs import RunLog, open_run

SPLIT = "monitor"
WITHOUT_OUTCOMES = (
    "n",
    "selection_rate",
    "demographic_parity_difference",
    "demographic_parity_ratio",
)
"""What can be measured before any outcome is known."""
ANSWERED = ("threshold", "model_version", "error")
"""Columns of the server's answers that say nothing about a person."""
KEPT, BROKEN, UNJUDGED = "kept", "broken", "not judged"
HIGHER_IS_BETTER = {
    "auroc": True,
    "worst_group_auroc": True,
    "equalized_odds_difference": False,
    "demographic_parity_difference": False,
}


@dataclass(frozen=True)
class Watch:
    """One watched figure: as registered, as it is now, and whether its limit is kept."""

    metric: str
    registered: float
    now: float
    low: float
    high: float
    bound: float
    limit: float
    state: str


@dataclass(frozen=True)
class MonitorReport:
    """What a batch of logged predictions shows; `n_judged` rows have an outcome."""

    name: str
    version: str
    run_id: str
    n: int
    n_judged: int
    watches: tuple[Watch, ...]

    @property
    def broken(self) -> list[str]:
        """Return the metrics whose limit is broken."""
        return [watch.metric for watch in self.watches if watch.state == BROKEN]

    @property
    def text(self) -> str:
        """Return a headline, a table and where there is more, for people."""
        head = (
            f"{self.name} version {self.version}: {self.n} predictions, {self.n_judged} with an "
            f"outcome; {'broken: ' + ', '.join(self.broken) if self.broken else 'no limit broken'}"
        )
        table = pd.DataFrame([asdict(watch) for watch in self.watches])
        more = f"report: fairtune report {self.run_id}"
        return "\n".join((head, table.round(4).to_string(index=False), more))


def monitor(
    predictions: str | Path,
    name: str,
    *,
    split: str = "test",
    margin: float = 0.05,
    n_resamples: int = 2000,
    level: float = 0.90,
    seed: int = 0,
    experiment: str = "fairtune-monitor",
) -> MonitorReport:
    """Compare logged predictions with the champion's registered figures, and log that as a run.

    Parameters
    ----------
    predictions : path
        Parquet or CSV in the form of `predictions_table`; `label` may be empty or absent.
    name : str
        Registered model; its champion's version tags hold the figures.
    split : str
        Which registered figures to compare with.
    margin : float
        How much worse than registered a figure may be.
    level : float
        Of the two-sided interval; one end is held against the limit, so that 0.90 makes a
        one-sided test at 95 %.

    Raises
    ------
    GateRefusedError
        A limit is broken; the message holds the table.
    InputError
        No champion, an unreadable file, or a file without the columns.
    """
    client = MlflowClient()
    version = alias_version(client, name, CHAMPION)
    if version is None:
        raise InputError(f"{name!r} has no champion to compare with; promote a version first")
    found = model_version(client, name, version)
    table = _read(Path(predictions))
    threshold = client.get_run(str(found.run_id)).data.metrics.get("threshold")
    judged = table[table["label"].notna()]
    bootstrap = {"n_resamples": n_resamples, "level": level, "seed": seed}
    of_all = _measured(table.assign(label=0), threshold, bootstrap).only(WITHOUT_OUTCOMES)
    measured = (
        of_all if judged.empty else _measured(judged, threshold, bootstrap).with_parity_of(of_all)
    )
    watches = tuple(
        _watch(metric, found.tags.get(f"{split}/{metric}"), measured, margin)
        for metric in HIGHER_IS_BETTER
    )
    with open_run("monitor", f"{name} v{version}", experiment=experiment) as log:
        result = MonitorReport(name, version, log.run_id, len(table), len(judged), watches)
        log.log(
            metrics={
                **{f"{SPLIT}/{name}": value for name, value in measured.figures.items()},
                f"{SPLIT}/n_judged": float(len(judged)),
                f"{SPLIT}/n_logged": float(len(table)),
                **({} if threshold is None else {"threshold": threshold}),
            },
            tags={
                "fairtune.dataset": f"logged predictions of {name} version {version}",
                "fairtune.margin": margin,
                "fairtune.model": f"{name}/{version}",
                "fairtune.predictions": predictions,
                "fairtune.broken": ", ".join(result.broken) or "nothing",
                "fairtune.monitored_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        )
        log.text("monitor.csv", pd.DataFrame([asdict(watch) for watch in watches]).to_csv())
        log.text("groups.csv", measured.groups.to_csv(index=False))
        if not judged.empty:
            _keep(log, judged)
    if result.broken:
        raise GateRefusedError(result.text)
    return result


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    for column in (f"{PROBABILITY}0", f"{PROBABILITY}1"):
        if column not in table.columns:
            raise InputError(
                f"{path}: no column {column!r}; predictions have one for each class, by number (of a "
                "server's answers rename probability_<class>, and let label be the true class)"
            )
    if table.empty:
        raise InputError(f"{path} has no rows")
    table = table.drop(columns=[name for name in ANSWERED if name in table.columns])
    for column in [name for name in table.columns if str(name).startswith(PROBABILITY)]:
        table[column] = _numbers(table[column], path, "a probability")
    label = table["label"] if "label" in table.columns else pd.Series(np.nan, table.index)
    table["label"] = _numbers(label, path, "a class number (empty while the outcome is unknown)")
    if not (table["label"].dropna() % 1 == 0).all():
        raise InputError(f"{path}, column 'label': class numbers are whole: 0, 1, ...")
    if "patient" not in table.columns:
        table["patient"] = np.arange(len(table))
    if groups_of(table).shape[1] == 0:
        raise InputError(f"{path}: no column beside predictions; add one per sensitive attribute")
    return table


def _keep(log: RunLog, judged: pd.DataFrame) -> None:
    """Keep what intervals and curves are made from; images and patients become numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{SPLIT}.parquet"
        judged.assign(
            image=np.arange(len(judged)),
            patient=pd.factorize(judged["patient"])[0],
            label=judged["label"].astype(int),
        ).to_parquet(path)
        log.file(path, "predictions")


def _numbers(column: pd.Series, path: Path, what: str) -> pd.Series:
    """Read a column as numbers, empty cells as NaN; raises `InputError` for anything else."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    wrong = column[numbers.isna() & column.notna()]
    if len(wrong):
        raise InputError(f"{path}, column {column.name!r}: {wrong.iloc[0]!r} is not {what}")
    return numbers


@dataclass(frozen=True)
class _Measured:
    """Figures by name, their intervals, and a row for each group."""

    figures: Mapping[str, float]
    spread: Mapping[str, Interval]
    groups: pd.DataFrame

    def only(self, names: Collection[str]) -> _Measured:
        """Keep these metrics, of groups as well."""
        figures = {k: v for k, v in self.figures.items() if k.partition("_by_")[0] in names}
        spread = {k: v for k, v in self.spread.items() if k.partition("_by_")[0] in names}
        kept = ["attribute", "group", *(name for name in self.groups.columns if name in names)]
        return _Measured(figures, spread, self.groups[kept])

    def with_parity_of(self, other: _Measured) -> _Measured:
        """Take demographic parity from the other, which has more rows."""
        figures = {k: v for k, v in other.figures.items() if k.startswith("demographic_parity")}
        spread = {k: v for k, v in other.spread.items() if k in figures}
        return _Measured({**self.figures, **figures}, {**self.spread, **spread}, self.groups)


def _measured(
    rows: pd.DataFrame, threshold: float | None, bootstrap: Mapping[str, Any]
) -> _Measured:
    given = (rows["label"].astype(int), probabilities_of(rows), groups_of(rows))
    report = evaluate(*given, threshold=threshold)
    spread: Mapping[str, Interval] = {}
    if rows["patient"].nunique() > 1:
        found = bootstrap_report(*given, rows["patient"], threshold=threshold, **bootstrap)
        spread = found.intervals
    return _Measured(report.to_dict(), spread, report.table())


def _watch(
    metric: str,
    registered: str | None,
    measured: _Measured,
    margin: float,
) -> Watch:
    before = float(registered) if registered is not None else math.nan
    higher = HIGHER_IS_BETTER[metric]
    limit = before - margin if higher else before + margin
    found = measured.spread.get(metric)
    low, high = (found.low, found.high) if found else (math.nan, math.nan)
    now = measured.figures.get(metric, math.nan)
    bound = max(2 * now - low, high) if higher else min(2 * now - high, low)
    if math.isnan(bound) or math.isnan(limit):
        state = UNJUDGED
    else:
        state = BROKEN if (bound < limit if higher else bound > limit) else KEPT
    return Watch(metric, before, now, low, high, bound, limit, state)
