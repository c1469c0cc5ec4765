"""Run every method on every task with every seed, then say how they compare. Reads from the top."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import yaml

from fairtune.comparison.methods import Method
from fairtune.comparison.output import write_results
from fairtune.comparison.results import collect
from fairtune.comparison.settings import Comparison, parse_comparison
from fairtune.comparison.unit import UNIT, Unit, UnitRunner, units
from fairtune.config import parse_config
from fairtune.errors import FairtuneError, InputError
from fairtune.interrupt import StopRequest
from fairtune.progress import progress_bar
from fairtune.search.executors import Executor, make_executor
from fairtune.search.search import EXPERIMENT
from fairtune.search.settings import WORKER_KEYS
from fairtune.tracking.runs import KIND, RunLog, existing_run, open_run
from fairtune.workspace import open_workspace

logger = logging.getLogger(__name__)

NAME = "fairtune.comparison"
SOURCE = "fairtune.source"
FILE = "comparison.yaml"


class NothingRanError(FairtuneError):
    """No unit of a comparison has a model."""

    exit_code = 1


@dataclass(frozen=True)
class ComparisonOutcome:
    """What a comparison came to."""

    run_id: str
    table: str
    """The table of all methods, as Markdown."""
    finished: int
    failed: int
    total: int

    @property
    def complete(self) -> bool:
        """Whether every unit was run, with whatever success."""
        return self.finished + self.failed == self.total


def compare(
    comparison: Comparison,
    source: str | None,
    stop: StopRequest,
    *,
    resume: str | None = None,
    max_minutes: float | None = None,
) -> ComparisonOutcome:
    """Run what has not been run, then write tables and figures of what stands in the store.

    Parameters
    ----------
    source
        Folder with the official download, for tasks that name none.
    resume
        Run id of an earlier comparison of the same settings, finished or not.
    max_minutes
        No unit starts after these; the comparison can be resumed.

    Raises
    ------
    InputError
        A task whose data cannot be read, or a run that is another comparison.
    NothingRanError
        When every unit failed; names the first reason.
    """
    todo = units(comparison)
    if resume:
        before = existing_run(resume)
        check_same(before, comparison)
        source = source or before.data().data.tags.get(SOURCE)
        todo = unfinished(before, comparison)
    for task in dict.fromkeys(unit.task.name for unit in todo):  # before any run is opened
        unit = next(unit for unit in todo if unit.task.name == task)
        # As the task is, whatever the first method makes of it.
        config = comparison.unit_config(unit.task, Method(name="data"), unit.seed, unit.fold)
        open_workspace(config, unit.task.source or source)
    first = parse_config(comparison.tasks[0].config, "configuration")
    executor = make_executor(first.search, device=first.device)
    name = f"compare {comparison.name}"
    stop.check()
    with open_run("compare", name, experiment=EXPERIMENT, resume=resume) as log:
        log.text(FILE, comparison.to_yaml())
        log.log(tags={NAME: comparison.name, **({SOURCE: source} if source else {})})
        log.end_children("KILLED")  # of a process that was killed
        runner = UnitRunner(comparison, source, log, stop)
        run_units(todo, runner, executor, max_minutes)
        outcome = summarize(log, comparison)
    if not outcome.complete:
        log.end("KILLED")
        logger.warning("not complete: go on with fairtune compare --resume %s", log.run_id)
    return outcome


def unfinished(log: RunLog, comparison: Comparison) -> list[Unit]:
    """Return the units that have no model yet; failed ones are tried again."""
    finished = log.children("attributes.status = 'FINISHED'")
    done = {run.data.tags.get(UNIT) for run in finished}
    return [unit for unit in units(comparison) if unit.key not in done]


def check_same(log: RunLog, comparison: Comparison) -> None:
    """Refuse to go on with a run that compares something else; where its units run may change."""
    if settings_of(log).apart_from_workers() != comparison.apart_from_workers():
        raise InputError(
            f"run {log.run_id} was started with other settings: give no --config and of -o only "
            f"{', '.join(WORKER_KEYS)}, and its own are taken, or start a new comparison"
        )


def settings_of(log: RunLog) -> Comparison:
    """Read the settings that a comparison was started with; an `InputError` for any other run."""
    if log.data().data.tags.get(KIND) != "compare":
        raise InputError(f"run {log.run_id} is no comparison; only one can be resumed here")
    return parse_comparison(yaml.safe_load(log.read_text(FILE)), f"{FILE} of run {log.run_id}")


def run_units(
    todo: Sequence[Unit],
    runner: UnitRunner,
    executor: Executor,
    max_minutes: float | None,
) -> None:
    """Run units in order, each when there is a worker for it, and show the time that is left.

    One whose mask hangs on another's waits for that one to end; those after it go first.
    """
    until = math.inf if max_minutes is None else time.monotonic() + max_minutes * 60
    total = len(units(runner.comparison))
    bar = progress_bar(total=total, initial=total - len(todo), unit="unit", desc="compare")
    left = {unit.key: unit for unit in todo}
    not_ended = set(left)

    def ready() -> Iterator[Unit | None]:
        while left and time.monotonic() < until:
            unit = next((unit for unit in left.values() if unit.needs not in not_ended), None)
            if unit is not None:
                bar.set_postfix_str(unit.title)
                del left[unit.key]
            yield unit

    def ended(unit: Unit, failure: str | None) -> None:
        if failure is not None:
            logger.warning("%s failed: %s", unit.title, failure)
        not_ended.discard(unit.key)
        bar.update()

    with bar:
        executor.map(
            runner, ready(), runner.parent, runner.stop, on_done=ended, when_lost=runner.lost
        )
        runner.stop.check()


def summarize(log: RunLog, comparison: Comparison) -> ComparisonOutcome:
    """Write tables and figures of all that stands in the store to the parent run."""
    results = collect(log, comparison)
    counts = results.status["status"].value_counts()
    finished, failed = int(counts.get("FINISHED", 0)), int(counts.get("FAILED", 0))
    total = len(units(comparison))
    log.log(metrics={"units_finished": finished, "units_failed": failed, "units_total": total})
    log.text("units.csv", results.status.to_csv(index=False))
    if results.models.empty:
        if failed == 0:
            return ComparisonOutcome(log.run_id, "", finished, failed, total)
        raise NothingRanError(f"no method has a model: {_first_reason(results.status)}")
    table = write_results(log, comparison, results)
    return ComparisonOutcome(log.run_id, table, finished, failed, total)


def _first_reason(status: pd.DataFrame) -> str:
    failed = status[status["status"] == "FAILED"]
    return str(failed["error"].iloc[0])
