"""Comparisons whose units run on Spark's workers."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner
from comparison.conftest import METHODS, comparison_of
from comparison.test_compare import frame, only_comparison

from fairtune.cli import main
from fairtune.comparison.compare import compare
from fairtune.comparison.settings import Comparison
from fairtune.comparison.unit import units
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.tracking.runs import RunLog

pyspark = pytest.importorskip("pyspark.sql", reason="pyspark is not installed (extra `spark`)")
if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
    pytest.skip("Spark needs Java 17", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _one_session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    session = pyspark.SparkSession.getActiveSession()
    if session is not None:
        session.stop()


def stopped_when_two_are(what: str, comparison: Comparison, source: str) -> RunLog:
    """Run a comparison on two workers and ask it to stop as soon as two runs are like that."""
    stop = StopRequest()

    def watch() -> None:
        while len(mlflow.search_runs(search_all_experiments=True, filter_string=what)) < 2:
            time.sleep(0.2)
        stop.requested = True

    threading.Thread(target=watch, daemon=True).start()
    with pytest.raises(InterruptedSearchError):
        compare(comparison.changed(["search.executor=spark", "search.parallelism=2"]), source, stop)
    log = only_comparison()
    assert log.data().info.status == "KILLED"
    return log


def test_it_goes_on_with_other_workers_to_the_same_figures(
    mlflow_store: str, source: str, whole: tuple[str, RunLog]
) -> None:
    comparison = comparison_of(METHODS, candidate="searched+group_dro")
    done = "tags.`fairtune.kind` = 'method' and attributes.status = 'FINISHED'"
    log = stopped_when_two_are(done, comparison, source)
    before = {run.info.run_id for run in log.children("attributes.status = 'FINISHED'")}
    assert 2 <= len(before) < 8
    more = ["-o", "search.executor=serial", "--max-minutes", "0.001"]
    first = CliRunner().invoke(main, ["compare", "--resume", log.run_id, *more])
    assert first.exit_code == 0, first.output
    second = CliRunner().invoke(
        main, ["compare", "--resume", log.run_id, "-o", "search.executor=spark"]
    )
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout.splitlines()[-1])["complete"] is True
    runs = log.children()
    assert len(runs) == 8
    assert {run.info.status for run in runs} == {"FINISHED"}
    starts = sorted((run.info.start_time, run.info.end_time) for run in runs)
    assert any(b[0] < a[1] for a, b in itertools.pairwise(starts))  # two at once
    ended = {run.data.tags["fairtune.unit"]: run.info.end_time for run in runs}
    begun = {run.data.tags["fairtune.unit"]: run.info.start_time for run in runs}
    drawn = [unit for unit in units(comparison) if unit.needs]
    assert [unit.method.name for unit in drawn] == ["random", "random"]
    assert all(ended[unit.needs] <= begun[unit.key] for unit in drawn if unit.needs)
    mine, theirs = frame(log, "models.csv"), frame(whole[1], "models.csv")
    pd.testing.assert_frame_equal(mine, theirs, check_exact=False, rtol=1e-6)


def test_ctrl_c_reaches_the_trials_of_units_on_workers(mlflow_store: str, source: str) -> None:
    """In the middle of a trial: each is of so many epochs."""
    comparison = comparison_of(["full", "linear"], seeds=[1], candidate="linear", trials=4)
    long = comparison.changed(["train.epochs=300"])
    log = stopped_when_two_are("tags.`fairtune.kind` = 'trial'", long, source)
    for unit in log.children():
        trials = log.sibling(unit.info.run_id).children()
        assert {run.info.status for run in (unit, *trials)} == {"KILLED"}
