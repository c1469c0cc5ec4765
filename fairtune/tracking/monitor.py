"""After deployment: the same report on what the champion answered, against what was registered.

Outcomes come late. Rows without one still say how often each group is called positive; with outcomes
the whole report is made. A limit counts as broken when the kinder bound of a figure, not the figure
alone, lies beyond it: a small month must not raise an alarm by chance. The bound is that of the basic
bootstrap (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 5.2), which
takes back what the percentiles of a smallest or largest of few noisy groups overstate. What cannot be
judged is listed so.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow import MlflowClient

from fairtune.errors import GateRefusedError, InputError
from fairtune.fairness import FairnessReport, Interval, bootstrap_report, evaluate
from fairtune.tracking.aliases import CHAMPION, alias_version
from fairtune.tracking.evidence import model_version
from fairtune.tracking.predictions import PROBABILITY, groups_of, probabilities_of
from fairtune.tracking.runs import RunLog, open_run, split_metrics

SPLIT = "monitor"
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
    known = table["label"].notna().to_numpy()
    report = _report(table, known, threshold)
    spread = _spread(table, known, threshold, n_resamples, level, seed)
    watches = tuple(
        _watch(metric, found.tags.get(f"{split}/{metric}"), report, spread, margin)
        for metric in HIGHER_IS_BETTER
    )
    with open_run("monitor", f"{name} v{version}", experiment=experiment) as log:
        result = MonitorReport(name, version, log.run_id, len(table), int(known.sum()), watches)
        log.log(
            metrics={
                **split_metrics(SPLIT, report),
                f"{SPLIT}/n_judged": float(known.sum()),
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
        log.text("groups.csv", report.table().to_csv(index=False))
        if known.any():
            _keep(log, table[known])
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
            raise InputError(f"{path}: no column {column!r} (predictions have one for each class)")
    if table.empty:
        raise InputError(f"{path} has no rows")
    if "label" not in table.columns:
        table["label"] = np.nan
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


def _report(table: pd.DataFrame, known: np.ndarray, threshold: float | None) -> FairnessReport:
    """Report on the rows with outcomes, or on all, with every outcome 0, when there is none.

    Selection rates, and so demographic parity, do not depend on outcomes; all that does is not
    defined with one class, and says so.
    """
    rows = table[known] if known.any() else table.assign(label=0)
    return evaluate(
        rows["label"].astype(int), probabilities_of(rows), groups_of(rows), threshold=threshold
    )


def _spread(
    table: pd.DataFrame,
    known: np.ndarray,
    threshold: float | None,
    n_resamples: int,
    level: float,
    seed: int,
) -> Mapping[str, Interval]:
    rows = table[known] if known.any() else table.assign(label=0)
    if rows["patient"].nunique() < 2:
        return {}
    return bootstrap_report(
        rows["label"].astype(int),
        probabilities_of(rows),
        groups_of(rows),
        rows["patient"],
        threshold=threshold,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    ).intervals


def _watch(
    metric: str,
    registered: str | None,
    report: FairnessReport,
    spread: Mapping[str, Interval],
    margin: float,
) -> Watch:
    before = float(registered) if registered is not None else math.nan
    higher = HIGHER_IS_BETTER[metric]
    limit = before - margin if higher else before + margin
    found = spread.get(metric)
    low, high = (found.low, found.high) if found else (math.nan, math.nan)
    now = report.headline[metric]
    bound = 2 * now - (low if higher else high)
    if math.isnan(bound) or math.isnan(limit):
        state = UNJUDGED
    else:
        state = BROKEN if (bound < limit if higher else bound > limit) else KEPT
    return Watch(metric, before, now, low, high, bound, limit, state)
