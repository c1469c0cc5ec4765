"""What the benchmarks of the outer search share: a store of their own, a space of 36 bits, one search."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.tracking import MlflowClient

from fairtune.config import Config, load_config
from fairtune.interrupt import StopRequest
from fairtune.search.point import Point, SearchSpace
from fairtune.search.search import search
from fairtune.search.standings import standard_error

RESULTS = Path(__file__).parent / "results" / "bench"
BITS = SearchSpace(
    tuple(f"blocks.{i:02d}.{part}" for i in range(12) for part in ("norms", "attn", "mlp")),
    1e-4,
    1e-2,
)


@contextmanager
def fresh_store() -> Iterator[Path]:
    """Point MLflow to a SQLite store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_registry_uri(f"sqlite:///{folder}/mlflow.db")
        yield Path(folder)


def random_point(rng: np.random.Generator) -> Point:
    return Point(tuple(int(b) for b in rng.integers(0, 2, 36)), float(10 ** rng.uniform(-4, -2)))


def parser(doc: str | None, seeds: int) -> argparse.ArgumentParser:
    """Return the options of a benchmark that runs real searches."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--config", default="configs/demo.yaml")
    made.add_argument("--source", default=None)
    made.add_argument("--seeds", type=int, default=seeds)
    made.add_argument("-o", "--override", action="append", default=[])
    return made


def configured(given: argparse.Namespace, *overrides: str) -> Config:
    """Load the configuration that was asked for; nothing is registered."""
    return load_config(given.config, [*overrides, *given.override, "register.name=null"])


def study(config: Config, source: str | None) -> dict[str, Any]:
    """Run a search; return its epochs, wall time and what it reached on validation."""
    started = time.perf_counter()
    outcome = search(config, source, StopRequest())
    seconds = time.perf_counter() - started
    run = MlflowClient().get_run(outcome.run_id)
    standings = pd.read_csv(MlflowClient().download_artifacts(outcome.run_id, "standings.csv"))
    searched = standings[standings["candidate"].str.startswith("trial")]
    return {
        "run_id": outcome.run_id,
        "epochs": run.data.metrics["epochs"],
        "seconds": seconds,
        "objective": float(searched["mean"].max()),
        "trials": run.data.metrics["trials"],
    }


def compare(kinds: dict[str, Config], source: str | None, seeds: int) -> pd.DataFrame:
    """Run each kind of search with each seed; return a row per search."""
    rows = []
    for seed in range(seeds):
        for kind, config in kinds.items():
            seeded = config.model_copy(update={"seed": seed})
            with fresh_store():
                rows.append({"kind": kind, "seed": seed, **study(seeded, source)})
    return pd.DataFrame(rows).drop(columns="run_id")


def means(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return mean and standard error of every figure over the seeds."""
    summary = rows.drop(columns="seed").groupby(by, sort=False).agg(["mean", _error])
    summary.columns = [f"{a}_se" if b != "mean" else a for a, b in summary.columns]
    return summary.assign(n=rows.groupby(by, sort=False).size()).round(4).reset_index()


def _error(values: pd.Series) -> float:
    return standard_error(values.tolist())
