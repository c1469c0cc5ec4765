"""What pruning saves: epochs and seconds, and what it costs in the objective.

Whole searches, with and without pruning. It comes twice: once with as many trials, and once with a third of
the epochs and as many trials as they allow. The objective is the mean of the best candidate's repetitions
with fresh seeds, on validation:

    python -m benchmarks.halving [--rule asha] [--config FILE --source DIR] [--seeds 5] [-o search.trials=36]

Where whole searches are too long, one unpruned random search, of which every order of trials is a search
that could have been: the curves are fixed, so that pruning in an order is exact. The objective is then
that of the best trial that was not pruned. The search is run, or is one of the tracking store:

    python -m benchmarks.halving --replay 200 --config configs/ham10000_age.yaml --source DIR
    python -m benchmarks.halving --replay 200 --run RUN_ID
"""

from __future__ import annotations

import tempfile

import numpy as np
import pandas as pd
from mlflow.tracking import MlflowClient
from numpy.typing import NDArray

from benchmarks._search import compare, configured, fresh_store, means, parser, study
from fairtune.config import Config
from fairtune.fairness import get_objective
from fairtune.search.pruning import Standing, furthest, make_pruner, next_to_go_on
from fairtune.search.runner import NUMBER
from fairtune.tracking.runs import existing_run


def curves(run_id: str, objective: str, epochs: int) -> NDArray[np.float64]:
    """Return the objective of every whole trial of a search after every epoch, oriented."""
    judge = get_objective(objective)
    found = []
    for run in existing_run(run_id).children("tags.`fairtune.kind` = 'trial'"):
        history = MlflowClient().get_metric_history(run.info.run_id, "objective")
        values = [-judge.loss(m.value) for m in sorted(history, key=lambda m: m.step)]
        if len(values) == epochs:  # a failed trial has none to the end
            found.append((int(run.data.tags[NUMBER]), values))
    return np.array([values for _, values in sorted(found)])


def replay(values: NDArray[np.float64], config: Config) -> tuple[int, float]:
    """Prune trials in this order; return the epochs spent and the best value of a whole trial.

    Parameters
    ----------
    values
        (trials, epochs) oriented objective.
    """
    if config.search.pruning.rule == "asha":
        return replay_pauses(values, config)
    pruner = make_pruner(config.search.pruning)
    assert pruner is not None
    seen: dict[int, list[float]] = {rung: [] for rung in config.rungs}
    spent, best = 0, -np.inf
    for curve in values:
        for epoch, value in enumerate(curve, 1):
            spent += 1
            if epoch in seen:
                goes_on = pruner.goes_on(value, list(seen[epoch]))
                seen[epoch].append(value)
                if not goes_on:
                    break
        else:
            best = max(best, curve[-1])
    return spent, best


def replay_pauses(values: NDArray[np.float64], config: Config) -> tuple[int, float]:
    """Let trials pause and go on in this order; as `replay`."""
    reduction, last = config.search.pruning.reduction, values.shape[1]
    there: list[Standing] = []
    spent, best, whole = 0, -np.inf, 0
    while True:
        job = next_to_go_on(there, config.rungs, reduction)
        if job is None and len(there) < len(values):
            job = Standing(len(there), {}, 0)
            there.append(job)
        if job is None and whole < config.search.final.candidates:
            job = furthest(there)
        if job is None:
            return spent, best
        begun = job.paused_at or 0
        epoch = next((rung for rung in config.rungs if rung > begun), last)
        spent += epoch - begun
        value = float(values[job.number, epoch - 1])
        paused = epoch if epoch < last else None
        there[job.number] = Standing(job.number, {**job.at, epoch: value}, paused)
        if paused is None:
            whole, best = whole + 1, max(best, value)


def replayed(values: NDArray[np.float64], pruned: Config, orders: int) -> None:
    """Print what pruning would have spent and found in so many orders of the same trials."""
    rng = np.random.default_rng(0)
    rows = [replay(rng.permutation(values), pruned) for _ in range(orders)]
    table = pd.DataFrame(rows, columns=["epochs", "objective"])
    whole = values.size
    rungs = ", ".join(map(str, pruned.rungs))
    print(f"{len(values)} trials of {values.shape[1]} epochs, {orders} orders; rungs {rungs}")
    print(f"no pruning: {whole} epochs, best objective {values[:, -1].max():.4f}")
    print(
        f"{pruned.search.pruning.rule}: {table.epochs.mean():.1f} ± {table.epochs.std():.1f} epochs "
        f"({whole / table.epochs.mean():.1f} times fewer), best objective "
        f"{table.objective.mean():.4f} ± {table.objective.std():.4f} (standard deviation over orders); "
        f"the best trial was kept in {(table.objective == values[:, -1].max()).mean():.0%} of them"
    )


def main() -> None:
    """Run what was asked for."""
    options = parser(__doc__, seeds=5)
    options.add_argument("--replay", type=int, default=0, metavar="ORDERS")
    options.add_argument("--rule", choices=["asha", "halving", "median"], default="asha")
    options.add_argument("--run", metavar="RUN_ID", help="with --replay: of this search")
    given = options.parse_args()
    if given.run and not given.replay:
        options.error("--run goes with --replay")
    with tempfile.TemporaryDirectory() as folder:
        if given.run:
            given.config = existing_run(given.run).download("config.yaml", folder)
        config = configured(given)
        epochs, objective = config.train.epochs, config.search.objective
        pruning = f"search.pruning.rule={given.rule}"
        whole, pruned = configured(given, "search.pruning.rule=none"), configured(given, pruning)
    if given.replay and given.run:
        replayed(curves(given.run, objective, epochs), pruned, given.replay)
        return
    if given.replay:
        random = whole.model_copy(
            update={"search": whole.search.model_copy(update={"algorithm": "rand"})}
        )
        with fresh_store():
            run_id = str(study(random, given.source)["run_id"])
            replayed(curves(run_id, objective, epochs), pruned, given.replay)
        return
    third = [
        f"search.max_epochs={whole.search.trials * epochs // 3 - epochs}",  # a trial may go beyond
        f"search.trials={10 * whole.search.trials}",
    ]
    kinds = {
        "no pruning": whole,
        f"{given.rule}, as many trials": pruned,
        f"{given.rule}, a third of the epochs": configured(given, pruning, *third),
    }
    rows = compare(kinds, given.source, given.seeds)
    print(means(rows, "kind").set_index("kind").to_string(), "\n")
    for kind in list(kinds)[1:]:
        print(against(rows, "no pruning", kind))


def against(rows: pd.DataFrame, reference: str, kind: str) -> str:
    """Say what a kind of search saved and what it cost, paired over the seeds."""
    apart = rows.pivot(index="seed", columns="kind")
    epochs, seconds = ((apart[f, reference] / apart[f, kind]).mean() for f in ("epochs", "seconds"))
    gain = apart["objective", kind] - apart["objective", reference]
    return (
        f"{kind}: {epochs:.1f} times fewer epochs, {seconds:.1f} times less time; objective "
        f"{gain.mean():+.4f} ± {gain.sem():.4f} (paired, n = {len(gain)})"
    )


if __name__ == "__main__":
    main()
