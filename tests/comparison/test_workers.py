"""Comparisons whose units run on Spark's workers."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner
from comparison.conftest import METHODS, comparison_of
from comparison.test_compare import frame, only_comparison

from fairtune.cli import main
from fairtune.comparison.compare import compare
from fairtune.comparison.unit import units
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.tracking.runs import RunLog

pytest.importorskip("pyspark", reason="pyspark is not installed (extra `spark`)")
if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
    pytest.skip("Spark needs Java 17", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def stop_after_two(kind: str, stop: StopRequest) -> None:
    def watch() -> None:
        done = f"tags.`fairtune.kind` = '{kind}' and attributes.status = 'FINISHED'"
        while len(mlflow.search_runs(search_all_experiments=True, filter_string=done)) < 2:
            time.sleep(0.2)
        stop.requested = True

    threading.Thread(target=watch, daemon=True).start()


def test_it_goes_on_with_other_workers_to_the_same_figures(
    mlflow_store: str, source: str, whole: tuple[str, RunLog]
) -> None:
    comparison = comparison_of(METHODS, candidate="searched+group_dro").changed(
        ["search.executor=spark", "search.parallelism=2"]
    )
    stop = StopRequest()
    stop_after_two("method", stop)
    with pytest.raises(InterruptedSearchError):
        compare(comparison, source, stop)
    log = only_comparison()
    assert log.data().info.status == "KILLED"
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
    comparison = comparison_of(["full", "linear"], seeds=[1], candidate="full", trials=60).changed(
        ["search.executor=spark", "search.parallelism=2"]
    )
    stop = StopRequest()
    stop_after_two("trial", stop)
    with pytest.raises(InterruptedSearchError):
        compare(comparison, source, stop)
    log = only_comparison()
    assert log.data().info.status == "KILLED"
    for unit in log.children():
        assert unit.info.status == "KILLED"
        assert len(log.sibling(unit.info.run_id).children()) < 60
