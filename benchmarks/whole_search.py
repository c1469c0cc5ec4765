"""A whole search: with halving, decoded images and bf16, against the same search without them.

    python -m benchmarks.whole_search [--source ../shared/data/ham10000]

The search runs whole: 24 trials, its final stage, its runs in MLflow, timed from the start of its process.
What it is set against is not run whole: the time of one trial in the plain loop of `benchmarks.trial`
(files decoded at every look, 32-bit floats) is measured in the same run, and multiplied by the number of
fine-tunes, none of which ends early.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.trial import LOOPS, arguments, configuration, make_files, one

TRIALS = 24
FINAL = {"candidates": 1, "seeds": 1, "resamples": 20}
FINE_TUNES = TRIALS + 3  # in the final stage: the candidate, full fine-tuning, the linear probe


def main() -> None:
    parser = arguments()
    parser.set_defaults(images=96, val_images=64, batch=32, epochs=6)
    parser.add_argument("--rungs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(search(Path(options.child), options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_files(folder, options, test=options.val_images)
        skipped = ("rungs", "child", "epochs")
        given = [
            part
            for key, value in vars(options).items()
            if key not in skipped
            for part in (f"--{key.replace('_', '-')}", str(value))
        ]
        plain = one(LOOPS[0], 0, folder, [*given, "--epochs", "2"])
        epoch = min(train + val for train, val in zip(plain["train"], plain["val"], strict=True))
        os.environ["FAIRTUNE_CACHE"] = str(folder / "cache")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.whole_search", *sys.argv[1:], "--child", temporary],
            stdout=subprocess.PIPE, check=True, cwd=Path.cwd(),
        )  # fmt: skip
        seconds = time.perf_counter() - started
    show(options, plain["setup"], epoch, seconds, json.loads(done.stdout.splitlines()[-1]))


def search(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Search; returns how many epochs were trained in all."""
    import mlflow

    from fairtune.interrupt import StopRequest
    from fairtune.search.search import search

    pruning = {"rule": "halving", "rungs": options.rungs, "reduction": 3, "min_trials": 3}
    config = configuration(options, trials=TRIALS, pruning=pruning, final=FINAL)
    outcome = search(config, str(folder), StopRequest())
    run = mlflow.get_run(outcome.run_id)
    client = mlflow.MlflowClient()
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{outcome.run_id}'"
    )
    epochs = [child.data.metrics["epochs"] for child in children if "epochs" in child.data.metrics]
    return {"fine_tunes": len(epochs), "epochs": sum(epochs)}


def show(
    options: argparse.Namespace, setup: float, epoch: float, seconds: float, found: dict[str, Any]
) -> None:
    """Print both."""
    without = setup + FINE_TUNES * options.epochs * epoch
    print(
        f"{options.architecture}, {options.size} px, {options.images} + {options.val_images} "
        f"{'HAM10000' if options.source else 'generated'} images, {TRIALS} trials of up to "
        f"{options.epochs} epochs, then 3 final fine-tunes\n"
    )
    print("| search | fine-tunes | epochs | seconds |")
    print("| --- | --- | --- | --- |")
    print(
        f"| halving, store, bf16 (measured) | {found['fine_tunes']} | {found['epochs']:.0f} "
        f"| {seconds:.0f} |"
    )
    print(
        f"| none of them (one epoch measured: {epoch:.1f} s; times the epochs) | {FINE_TUNES} "
        f"| {FINE_TUNES * options.epochs} | {without:.0f} |"
    )
    print(f"\n{without / seconds:.1f} times as fast")


if __name__ == "__main__":
    main()
