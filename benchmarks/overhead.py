"""What the outer search adds to a trial, against the number of finished trials.

Every step around a trivial trial of 36 bits is timed: proposal, opening its run, finding it, two epochs
of 60 figures, the rung's memory, five artifacts, closing. Seconds; medians over the repeats. `asked` is how
often TPE was asked: what it has proposed before is not tried again, and on this objective it repeats itself.

    python -m benchmarks.overhead
"""

from __future__ import annotations

import gc
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hyperopt import JOB_STATE_DONE, STATUS_OK, Trials
from hyperopt.base import Domain

from benchmarks._search import BITS, fresh_store, random_point
from fairtune.fairness import get_objective
from fairtune.search.point import Point
from fairtune.search.proposer import Proposer, algorithm, trial_doc
from fairtune.search.runner import KEY, NUMBER, result_of
from fairtune.tracking.runs import RunLog, open_run

RUNG = "rung/001"
SIZES = (10, 100, 500, 1000)
REPEATS = 5


def main(sizes: tuple[int, ...] = SIZES, repeats: int = REPEATS) -> None:
    """Time each step around a trivial trial of 36 bits, with so many finished trials in the store."""
    rng = np.random.default_rng(0)
    rows = []
    tpe, asked = algorithm("tpe", 10), count()

    def ask(*arguments: Any) -> list[dict[str, Any]]:
        next(asked)
        return tpe(*arguments)

    proposer = Proposer(BITS, [], ask, 0, lambda t: True, lambda n, p: None)
    with fresh_store(), open_run("search", "overhead", experiment="benchmark") as parent:
        points = [random_point(rng) for _ in range(max(sizes) + repeats * len(sizes))]
        done = 0
        for size in sizes:
            while done < size:
                trivial_trial(parent, done, points[done])
                done += 1
            trials, domain = rebuilt(points[:done], parent)
            for _ in range(repeats):
                proposer.taken = set(range(done))
                before = next(asked)
                parts = timed_trial(parent, done, points, proposer, trials, domain)
                rows.append({"finished": size, "asked": next(asked) - before - 1, **parts})
                done += 1
                trials, domain = rebuilt(points[:done], parent)
                gc.collect()  # what was rebuilt before is the benchmark's garbage, not a search's
    table = pd.DataFrame(rows)
    table["total"] = table.drop(columns=["finished", "asked"]).sum(axis=1)
    summary = table.groupby("finished").agg(["median"]).droplevel(1, axis=1).round(4).reset_index()
    summary["trials_per_second"] = (1 / summary["total"]).round(2)
    print(summary.to_string(index=False))


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
        doc = trial_doc(tid, tid, point, BITS, domain, trials)
        doc["state"] = JOB_STATE_DONE
        doc["result"] = {"status": STATUS_OK, "loss": -trivial_value(point)}
        docs.append(doc)
    trials.insert_trial_docs(docs)
    trials.refresh()
    return trials, domain


def timed_trial(
    parent: RunLog,
    number: int,
    points: list[Point],
    proposer: Proposer,
    trials: Trials,
    domain: Domain,
) -> dict[str, float]:
    clock = time.perf_counter
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


if __name__ == "__main__":
    main()
