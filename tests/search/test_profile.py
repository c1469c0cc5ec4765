"""A profiled fine-tune leaves its table in the run, and every fine-tune what it took."""

from __future__ import annotations

from pathlib import Path

from search.samples import tiny_config, write_data

from fairtune.interrupt import StopRequest
from fairtune.search.single import fine_tune_once
from fairtune.search.trial import PROFILE
from fairtune.tracking.runs import existing_run


def test_a_profile_is_an_artifact(mlflow_store: str, tmp_path: Path) -> None:
    config = tiny_config(search__space="linear_readout", train__batch_size=8)
    source = str(write_data(tmp_path))
    run_id, _, _ = fine_tune_once(config, source, (), StopRequest(), profile=True)
    log = existing_run(run_id)
    assert "training steps" in log.read_text(PROFILE)
    assert log.download("profile/trace.json.gz", tmp_path).stat().st_size > 1000
    metrics = log.data().data.metrics
    assert metrics["step_seconds"] > 0
    assert metrics["validation_seconds"] > 0
    assert metrics.get("peak_memory_bytes", 1) > 0
