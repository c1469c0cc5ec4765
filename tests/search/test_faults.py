"""What goes wrong around a search: memory, disks, servers, neighbours."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from search.conftest import children
from search.samples import tiny_config
from search.servers import end, free_port, wait_for
from search.test_resume import command, environment
from search.test_whole_search import ONE_FINAL, Runner, only_search
from stores import mlflow_at

from fairtune.errors import InputError
from fairtune.interrupt import StopRequest
from fairtune.search.search import search
from fairtune.workspace import Workspace


def with_hook(
    monkeypatch: pytest.MonkeyPatch, hook: Callable[[torch.nn.Module, torch.Tensor], None]
) -> None:
    """Run `hook` before every forward pass of every model of a search."""
    original = Workspace.model

    def model(self: Workspace, mask: object, seed: int) -> torch.nn.Module:
        built = original(self, mask, seed)  # type: ignore[arg-type]
        built.register_forward_pre_hook(lambda module, given: hook(module, given[0]))
        return built

    monkeypatch.setattr(Workspace, "model", model)


def test_out_of_memory_halves_the_micro_batch_and_the_trial_ends_well(
    run_search: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(search__trials=2, search__final=ONE_FINAL)
    roomy = children(run_search(config).run_id, "trial")

    def small(module: torch.nn.Module, x: torch.Tensor) -> None:
        if module.training and len(x) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with_hook(monkeypatch, small)
    tight = children(run_search(config).run_id, "trial")
    assert [run.info.status for run in tight] == ["FINISHED"] * 2
    assert [run.data.metrics["micro_batch_size"] for run in roomy] == [32, 32]
    assert [run.data.metrics["micro_batch_size"] for run in tight] == [16, 16]
    for a, b in zip(roomy, tight, strict=True):  # gradients add up: the same up to rounding
        assert a.data.metrics["train/loss"] == pytest.approx(b.data.metrics["train/loss"], rel=1e-3)


def test_a_full_disk_ends_the_search_in_one_line_and_it_can_go_on(
    store: str, source: str, tmp_path: Path
) -> None:
    config = tiny_config(search__trials=3, search__final=ONE_FINAL)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = (tmp_path / "mlflow.db").stat().st_size + 60_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(InputError) as told:
            search(config, source, StopRequest())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(told.value)
    assert "--resume" in str(told.value)
    run_id = only_search().info.run_id
    outcome = search(config, source, StopRequest(), resume=run_id)
    trials = children(outcome.run_id, "trial")
    assert [run.info.status for run in trials].count("FINISHED") == 3


def test_two_searches_at_once_keep_to_themselves(store: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(search__trials=4, search__final=ONE_FINAL).to_yaml())
    drivers = [
        subprocess.Popen(
            command(path, source),
            env=environment(store),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [driver.communicate() for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], told
    run_ids = {json.loads(out.splitlines()[-1])["run_id"] for out, _ in told}
    assert len(run_ids) == 2
    for run_id in run_ids:
        trials = children(run_id, "trial")
        assert [run.data.tags["fairtune.number"] for run in trials] == ["0", "1", "2", "3"]
        assert {run.info.status for run in children(run_id)} == {"FINISHED"}


OPEN = """
import mlflow, sys
from fairtune.tracking.runs import open_run
mlflow.set_tracking_uri(sys.argv[1])
sys.stdin.readline()
with open_run("search", "one of several", experiment="fairtune"):
    pass
"""


def test_a_fresh_store_is_opened_by_several_processes_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/fresh.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, uri],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    told = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("fairtune")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 3


def test_a_server_that_does_not_answer_is_one_quick_line(source: str) -> None:
    started = time.monotonic()
    with (
        mlflow_at(f"http://127.0.0.1:{free_port()}"),
        pytest.raises(InputError, match="does not answer"),
    ):
        search(tiny_config(), source, StopRequest())
    assert time.monotonic() - started < 60


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_restarted_server_costs_nothing_but_time(store: str, source: str, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", store, "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "server.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
        wait_for(f"{url}/health", process)
        return process

    servers = [start()]
    mlflow.set_tracking_uri(url)

    def restart() -> None:
        while True:
            time.sleep(0.2)
            try:
                runs = children(only_search().info.run_id, "trial")
            except (AttributeError, ValueError):
                continue
            if len(runs) >= 2:
                break
        end(servers[0])
        time.sleep(2)
        servers.append(start())

    restarting = threading.Thread(target=restart, daemon=True)
    restarting.start()
    try:
        config = tiny_config(search__trials=6, train__epochs=6, search__final=ONE_FINAL)
        outcome = search(config, source, StopRequest())
        restarting.join(timeout=120)
        assert len(servers) == 2
        runs = children(outcome.run_id, "trial")
        finished = [run for run in runs if run.info.status == "FINISHED"]
        assert [r.data.tags["fairtune.number"] for r in finished] == [str(n) for n in range(6)]
        assert all(run.data.metrics["epochs"] == 6 for run in finished)
        # A request that was answered into a dead connection may have left an empty run behind.
        assert len(runs) - len(finished) <= 1
        assert {run.info.status for run in runs} <= {"FINISHED", "FAILED"}
    finally:
        end(servers[-1])
