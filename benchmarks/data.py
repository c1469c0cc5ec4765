"""From a download to decoded images: seconds, images a second and memory, printed as a table.

    python -m benchmarks.data ../shared/data/ham10000

Each row is measured in a process of its own, so that its peak memory is its own; the memory that
the imports alone take is told as well. Feeding batches is measured by `benchmarks.feeding`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PATIENTS = 64_540  # as in CheXpert's training table
ROWS = 223_414


@dataclass(frozen=True)
class Cost:
    """What one measured call took, after its imports."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    imports_mb: float
    answer: Any


def memory_mb() -> float:
    """Return the greatest resident memory of this process so far."""
    try:  # `getrusage` begins with the parent's
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measured(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Run a function in a fresh process and say what it cost."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run, args=(there, function, arguments))
    process.start()
    there.close()
    cost = here.recv()
    process.join()
    return cost


def _run(there: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    from fairtune.data import load_dataset, open_store  # noqa: F401

    before = memory_mb()
    start, cpu = time.perf_counter(), time.process_time()
    answer = function(*arguments)
    seconds = time.perf_counter() - start
    there.send(Cost(seconds, time.process_time() - cpu, memory_mb(), before, answer))


def prepare_ham10000(source: Path, size: int, cache: Path) -> int:
    from fairtune.data import prepare

    return len(prepare("ham10000", source, size=size, cache=cache).manifest)


def load_chexpert(source: Path) -> int:
    from fairtune.data import load_dataset

    return len(load_dataset("chexpert", source))


def load_own(source: Path) -> int:
    from fairtune.data import load_dataset

    options = {"table": "own.csv", "patient_column": "patient", "attributes": ["sex", "race"]}
    return len(load_dataset("folder", source, **options))


def load_manifest(folder: Path) -> int:
    from fairtune.data import Manifest

    return len(Manifest.load(folder))


def save_manifest(source: Path, folder: Path) -> None:
    from fairtune.data import load_dataset

    load_dataset("chexpert", source).save(folder)


def generate_chexpert(folder: Path) -> None:
    """Write tables of CheXpert's size and an empty file for each image."""
    rng = np.random.default_rng(0)
    patient = np.sort(np.r_[np.arange(PATIENTS), rng.integers(0, PATIENTS, ROWS - PATIENTS)])
    names = np.char.add("patient", np.char.zfill(patient.astype(str), 5))
    paths = [f"train/{name}/study1/view{i}_frontal.jpg" for i, name in enumerate(names)]
    base = folder / "CheXpert-v1.0-small"
    columns = {
        "Path": [f"CheXpert-v1.0-small/{path}" for path in paths],
        "Sex": rng.choice(["Male", "Female"], ROWS),
        "Age": rng.integers(18, 91, ROWS),
        "Frontal/Lateral": "Frontal",
        "AP/PA": "AP",
        "No Finding": rng.choice(["1.0", "", "0.0", "-1.0"], ROWS),
        **{f"Finding {number}": rng.choice(["1.0", ""], ROWS) for number in range(13)},
    }
    base.mkdir(parents=True)
    pd.DataFrame(columns).to_csv(base / "train.csv", index=False)
    races = ["White, non-Hispanic", "Black or African American", "Asian", "Other", "Unknown"]
    unique = np.unique(names)
    race = rng.choice(races, len(unique), p=[0.55, 0.06, 0.12, 0.15, 0.12])
    demographics = {"PATIENT": unique, "GENDER": "Male", "AGE_AT_CXR": 60, "PRIMARY_RACE": race}
    pd.DataFrame(demographics).to_csv(folder / "CHEXPERT DEMO.csv", index=False)
    made = None
    for path in paths:
        place = os.path.dirname(base / path)
        if place != made:
            os.makedirs(place, exist_ok=True)
            made = place
        open(base / path, "wb").close()
    own = pd.DataFrame({"image": [f"CheXpert-v1.0-small/{path}" for path in paths]})
    own["label"], own["patient"] = columns["No Finding"] == "1.0", names
    own["sex"], own["race"] = columns["Sex"], race[patient]
    own.to_csv(folder / "own.csv", index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the download of HAM10000")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 224])
    source, sizes = (arguments := parser.parse_args()).source, arguments.sizes
    print("| what | seconds | CPU seconds | images/s | peak memory | of it imports |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder)
        for size in sizes:
            cache = temporary / "cache"
            show(f"HAM10000, {size} px", measured(prepare_ham10000, source, size, cache), True)
            again = measured(prepare_ham10000, source, size, cache)
            show(f"HAM10000, {size} px, second start", again)
        print("generating tables of CheXpert's size", file=sys.stderr)
        large, saved = temporary / "large", temporary / "saved"
        generate_chexpert(large)
        show(f"{ROWS:,} rows: CheXpert's tables, split", measured(load_chexpert, large))
        show(f"{ROWS:,} rows: own table, stratified split", measured(load_own, large))
        measured(save_manifest, large, saved)
        show(f"{ROWS:,} rows: saved manifest", measured(load_manifest, saved))


def show(what: str, cost: Cost, rate: bool = False) -> None:
    """Print a row of the table."""
    per_second = f"{cost.answer / cost.seconds:,.0f}" if rate else ""
    memory = f"{cost.peak_mb:,.0f} MB | {cost.imports_mb:,.0f} MB"
    print(
        f"| {what} | {cost.seconds:.2f} | {cost.cpu_seconds:.2f} | {per_second} | {memory} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
