"""What the outer search costs and what it saves. Tables and figures go to benchmarks/results/.

python -m benchmarks.search overhead            # cost per trial against finished trials
python -m benchmarks.search surrogate           # TPE against random search, 36 bits, 20 seeds
python -m benchmarks.search halving --config configs/demo.yaml [--source DIR]   # epochs saved
python -m benchmarks.search spark --config configs/demo.yaml [--source DIR]     # local[2] to serial
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from hyperopt import JOB_STATE_DONE, STATUS_OK, Trials, fmin
from hyperopt.base import Domain
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from fairtune.config import Config, load_config
from fairtune.fairness import get_objective
from fairtune.interrupt import StopRequest
from fairtune.search.point import Point, SearchSpace
from fairtune.search.proposer import Proposer, algorithm, trial_doc
from fairtune.search.runner import KEY, NUMBER, result_of
from fairtune.search.search import search
from fairtune.search.standings import standard_error
from fairtune.tracking.runs import RunLog, open_run

RESULTS = Path(__file__).parent / "results"
BITS = SearchSpace(
    tuple(f"blocks.{i:02d}.{part}" for i in range(12) for part in ("norms", "attn", "mlp")),
    1e-4,
    1e-2,
)
RUNG = "rung/001"


@contextmanager
def fresh_store() -> Iterator[Path]:
    """Point MLflow to a SQLite store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_registry_uri(f"sqlite:///{folder}/mlflow.db")
        yield Path(folder)


def write(name: str, table: pd.DataFrame) -> None:
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / f"{name}.csv", index=False)
    print(table.to_string(index=False))


# --- What fairtune adds to a trial ---------------------------------------------------------------


def overhead(sizes: tuple[int, ...] = (10, 100, 500, 1000), repeats: int = 3) -> None:
    """Time each step around a trivial trial of 36 bits, with so many finished trials in the store."""
    rng = np.random.default_rng(0)
    rows = []
    with fresh_store(), open_run("search", "overhead", experiment="benchmark") as parent:
        points = [random_point(rng) for _ in range(max(sizes) + repeats * len(sizes))]
        done = 0
        for size in sizes:
            while done < size:
                trivial_trial(parent, done, points[done])
                done += 1
            trials, domain = rebuilt(points[:done], parent)
            for _ in range(repeats):
                rows.append({"finished": size, **timed_trial(parent, done, points, trials, domain)})
                done += 1
                trials, domain = rebuilt(points[:done], parent)
    table = pd.DataFrame(rows)
    table["total"] = table.drop(columns="finished").sum(axis=1)
    summary = table.groupby("finished").agg(["median"]).droplevel(1, axis=1).round(4).reset_index()
    summary["trials_per_second"] = (1 / summary["total"]).round(2)
    write("search_overhead", summary)


def random_point(rng: np.random.Generator) -> Point:
    return Point(tuple(int(b) for b in rng.integers(0, 2, 36)), float(10 ** rng.uniform(-4, -2)))


def trivial_value(point: Point) -> float:
    return 0.5 + sum(point.bits) / 100


def open_trial(parent: RunLog, number: int, point: Point) -> RunLog:
    params = {f"mask.{n}": b for n, b in zip(BITS.bit_names, point.bits, strict=True)}
    return parent.child(
        f"trial-{number:03d}",
        "trial",
        params={"learning_rate": point.learning_rate, **params},
        tags={NUMBER: number, KEY: point.key},
    )


def log_epochs(log: RunLog, point: Point, epochs: int = 2) -> None:
    """Write what a trial of two groups writes: some 60 figures an epoch, and the final facts."""
    value = trivial_value(point)
    figures = {f"val/figure_{i:02d}": value for i in range(58)}
    for step in range(1, epochs + 1):
        rung = {f"rung/{step:03d}": value}
        log.log(metrics=figures | rung | {"objective": value, "val/auroc": value}, step=step)
    log.log(metrics={"epochs": epochs, "seconds": 0.0})


def trivial_trial(parent: RunLog, number: int, point: Point) -> None:
    log_epochs(open_trial(parent, number, point), point, epochs=1)
    parent.log(metrics={RUNG: trivial_value(point)}, step=number)


def rebuilt(points: list[Point], parent: RunLog) -> tuple[Trials, Domain]:
    trials, domain = Trials(), Domain(lambda sample: 0.0, BITS.expression())
    docs = []
    for tid, point in enumerate(points):
        doc = trial_doc(tid, point, BITS, domain, trials)
        doc["state"] = JOB_STATE_DONE
        doc["result"] = {"status": STATUS_OK, "loss": -trivial_value(point)}
        docs.append(doc)
    trials.insert_trial_docs(docs)
    trials.refresh()
    return trials, domain


def timed_trial(
    parent: RunLog, number: int, points: list[Point], trials: Trials, domain: Domain
) -> dict[str, float]:
    clock = time.perf_counter
    proposer = Proposer(
        BITS, [], algorithm("tpe", 10), 0, lambda t: True, lambda n, p: None, set(range(number))
    )
    marks = [clock()]
    (doc,) = proposer([number], domain, trials, 0)
    marks.append(clock())
    point = BITS.point_of_vals(doc["misc"]["vals"])
    points[number] = point
    log = open_trial(parent, number, point)
    marks.append(clock())
    run = parent.children(f"tags.`{KEY}` = '{point.key}'")[-1]
    marks.append(clock())
    log_epochs(log, point)
    marks.append(clock())
    history = parent.client.get_metric_history(parent.run_id, RUNG)
    parent.log(metrics={RUNG: trivial_value(point)}, step=number)
    assert len(history) == number
    marks.append(clock())
    with tempfile.TemporaryDirectory() as folder:
        for name in ("delta.safetensors", "val.parquet", "mask.json", "report.json", "groups.csv"):
            path = Path(folder) / name
            path.write_bytes(b"0" * 100_000)
            log.file(path)
    marks.append(clock())
    log.end()
    result_of(parent.sibling(run.info.run_id).data(), get_objective("auroc"))
    marks.append(clock())
    names = ("proposal", "open", "find", "epochs", "rung", "artifacts", "close")
    return dict(zip(names, np.diff(marks).tolist(), strict=True))


# --- TPE against random search -------------------------------------------------------------------


def surrogate(point: Point, truth: np.random.Generator) -> float:
    """Return a deterministic validation AUROC: single bits, pairs and the learning rate matter.

    Twelve of 36 bits have an effect of their own (most of them harm when on: over-fitting), twelve
    pairs interact, and the learning rate has an optimum that falls with the number of bits that are
    on.
    """
    bits = np.array(point.bits) * 2.0 - 1
    single = truth.normal(-0.004, 0.01, 36) * (truth.random(36) < 1 / 3)
    left, right = truth.integers(0, 36, 12), truth.integers(0, 36, 12)
    pairs = truth.normal(0, 0.008, 12)
    best_rate = -2.5 - 0.5 * np.mean(point.bits)
    rate = -0.03 * (math.log10(point.learning_rate) - best_rate) ** 2
    return float(0.8 + single @ bits + pairs @ (bits[left] * bits[right]) + rate)


def best_possible(seed: int) -> float:
    """Climb from 200 random masks, bit by bit, over a grid of learning rates: the reference."""
    rng = np.random.default_rng(seed + 10_000)
    best = -math.inf
    for _ in range(20):
        point = random_point(rng)
        value, improved = surrogate(point, np.random.default_rng(seed)), True
        while improved:
            improved = False
            for i in range(36):
                bits = tuple(b ^ (j == i) for j, b in enumerate(point.bits))
                other = Point(bits, 10 ** (-2.5 - 0.5 * float(np.mean(bits))))
                found = surrogate(other, np.random.default_rng(seed))
                if found > value + 1e-12:
                    point, value, improved = other, found, True
        best = max(best, value)
    return best


def run_surrogate(name: str, seed: int, n: int) -> list[float]:
    values: list[float] = []

    def judge(sample: Any) -> dict[str, Any]:
        value = surrogate(BITS.point(sample), np.random.default_rng(seed))
        values.append(value)
        return {"status": STATUS_OK, "loss": -value}

    proposer = Proposer(
        BITS,
        [],
        algorithm(name, 10),
        seed,
        lambda trials: len(trials._dynamic_trials) < n,
        lambda number, point: None,
    )
    fmin(
        judge,
        BITS.expression(),
        algo=proposer,
        max_evals=10**9,
        rstate=np.random.default_rng(seed),
        show_progressbar=False,
        verbose=False,
    )
    return values


def surrogates(n: int = 60, seeds: int = 20) -> None:
    """Compare regret after n trials, equal epochs each, over problems drawn by seed."""
    curves: dict[str, list[np.ndarray]] = {"tpe": [], "rand": []}
    for seed in range(seeds):
        top = best_possible(seed)
        for name, found in curves.items():
            found.append(top - np.maximum.accumulate(run_surrogate(name, seed, n)))
    rows = []
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, found in curves.items():
        regrets = np.array(found)  # (seeds, n)
        mean, error = regrets.mean(0), regrets.std(0, ddof=1) / math.sqrt(seeds)
        axes.plot(np.arange(1, n + 1), mean, label=name)
        axes.fill_between(np.arange(1, n + 1), mean - error, mean + error, alpha=0.2)
        for at in (10, 20, 40, 60):
            if at <= n:
                row = {"algorithm": name, "trials": at, "n_seeds": seeds}
                rows.append(row | {"regret": mean[at - 1], "standard_error": error[at - 1]})
    axes.set(xlabel="trials", ylabel="regret (AUROC below the best known)")
    axes.set_title(f"surrogate of 36 bits, {seeds} seeds, mean ± standard error", fontsize=10)
    axes.legend(frameon=False)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "search_surrogate.png", dpi=120)
    write("search_surrogate", pd.DataFrame(rows).round(5))


# --- Real searches -------------------------------------------------------------------------------


def study(config: Config, source: str | None) -> dict[str, float]:
    """Run a search; return its epochs, wall time and what it reached on validation."""
    started = time.perf_counter()
    outcome = search(config, source, StopRequest())
    seconds = time.perf_counter() - started
    run = MlflowClient().get_run(outcome.run_id)
    standings = pd.read_csv(MlflowClient().download_artifacts(outcome.run_id, "standings.csv"))
    searched = standings[standings["candidate"].str.startswith("trial")]
    return {
        "epochs": run.data.metrics["epochs"],
        "seconds": seconds,
        "objective": float(searched["mean"].max()),
        "trials": run.data.metrics["trials"],
    }


def compare(
    name: str, config: Config, source: str | None, seeds: int, kinds: dict[str, dict[str, Any]]
) -> None:
    rows = []
    for seed in range(seeds):
        for kind, changes in kinds.items():
            settings = config.search.model_copy(update=changes)
            changed = config.model_copy(
                update={
                    "seed": seed,
                    "search": settings,
                    "register_as": config.register_as.model_copy(update={"name": None}),
                }
            )
            with fresh_store():
                rows.append({"kind": kind, "seed": seed, **study(changed, source)})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).drop(columns="seed")
    summary = table.groupby("kind", sort=False).agg(["mean", standard_error_of])
    summary.columns = [f"{a}_se" if b != "mean" else a for a, b in summary.columns]
    write(name, summary.assign(n_seeds=seeds).round(4).reset_index())


def standard_error_of(values: pd.Series) -> float:
    return standard_error(values.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["overhead", "surrogate", "halving", "spark"])
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--source", default=None)
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("-o", "--override", action="append", default=[])
    given = parser.parse_args()
    if given.what == "overhead":
        overhead()
    elif given.what == "surrogate":
        surrogates(seeds=given.seeds or 20)
    else:
        config = load_config(given.config, given.override)
        pruning = config.search.pruning
        epochs = config.train.epochs
        rungs = tuple(r for r in (1, 3, 9, 27) if r < epochs)
        halving = pruning.model_copy(update={"rule": "halving", "rungs": rungs})
        whole = {"pruning": pruning.model_copy(update={"rule": "none"})}
        kinds: dict[str, dict[str, dict[str, Any]]] = {
            "halving": {"no pruning": whole, "halving": {"pruning": halving}},
            "spark": {"serial": {"executor": "serial"}, "local[2]": {"executor": "spark"}},
        }
        compare(
            f"search_{given.what}_{config.data.name}",
            config,
            given.source,
            given.seeds or (5 if given.what == "halving" else 1),
            kinds[given.what],
        )


if __name__ == "__main__":
    main()
