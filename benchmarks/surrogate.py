"""TPE against random search at equal trials, on a deterministic problem of 36 bits and a learning rate.

    python -m benchmarks.surrogate [--seeds 20] [--trials 60]

Prints the mean regret and its standard error over problems drawn by seed; the curves go to
benchmarks/results/bench/surrogate.png.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import pandas as pd
from hyperopt import STATUS_OK, fmin
from matplotlib.figure import Figure

from benchmarks._search import BITS, RESULTS, random_point
from fairtune.search.point import Point
from fairtune.search.proposer import Proposer, algorithm


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
    """Climb from 20 random masks, bit by bit, over a grid of learning rates: the reference."""
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
    figure.savefig(RESULTS / "surrogate.png", dpi=120)
    print(pd.DataFrame(rows).round(4).to_string(index=False))


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    given = parser.parse_args()
    surrogates(given.trials, given.seeds)


if __name__ == "__main__":
    main()
