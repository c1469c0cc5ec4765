"""A team's tracking server without containers: PostgreSQL, passwords, many writers, hostile names."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from search.samples import tiny_config, write_data
from search.servers import postgresql, tracking_server

from fairtune.tracking.runs import RunLog

pytest.importorskip("flask_wtf", reason="passwords need Flask-WTF (mlflow[auth])")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PASSWORD = "pa%ss'word-8d1f0c2b"
PROCESSES, RUNS, PARENTS = 8, 200, 4


@dataclass(frozen=True)
class Shared:
    """The server's address, and the folder that has its log and its artifacts."""

    uri: str
    folder: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """`mlflow server` with passwords on a PostgreSQL of its own."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "artifacts").mkdir()
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 60\n"
        f"database_uri = sqlite:///{folder}/auth.db\n"
    )
    secrets = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of no account",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    try:
        database = postgresql()
        with (
            database as uri,
            tracking_server(uri, folder, "--app-name=basic-auth", **secrets) as at,
        ):
            yield Shared(at, folder)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def client(server: Shared, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    return MlflowClient(server.uri)


@pytest.mark.parametrize("auth", [None, ("admin", "wrong"), ("", ""), ("nobody", PASSWORD)])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "api/2.0/mlflow/runs/search"),
        ("POST", "api/2.0/mlflow/runs/create"),
        ("GET", "api/2.0/mlflow/registered-models/search"),
        ("GET", "api/2.0/mlflow-artifacts/artifacts"),
        ("PUT", "api/2.0/mlflow-artifacts/artifacts/0/x/artifacts/a.txt"),
        ("GET", "get-artifact?path=a&run_uuid=b"),
    ],
)
def test_no_password_and_a_wrong_one_are_refused(
    server: Shared, auth: tuple[str, str] | None, method: str, path: str
) -> None:
    found = requests.request(method, f"{server.uri}/{path}", auth=auth, json={}, timeout=30)
    assert found.status_code == 401
    assert PASSWORD not in found.text


def test_the_command_line_says_that_the_password_is_wrong(
    server: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = fairtune(
        server, tmp_path, "report", "--run-id", "nope", MLFLOW_TRACKING_PASSWORD="wr0ng-one"
    )
    assert done.returncode == 2
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("fairtune:")]
    assert "401" in line
    assert "wr0ng-one" not in done.stderr


def _log_nested(uri: str, experiment: str, parents: list[str], worker: int, start: object) -> None:
    start.wait(120)  # type: ignore[attr-defined]
    for number in range(worker, RUNS, PROCESSES):
        parent = parents[number % PARENTS]
        log = RunLog(uri, experiment, parent).child(
            f"trial {number}",
            "trial",
            params={"number": number, "mask": "01" * 40},
            tags={"of": parent},
        )
        log.log(metrics={f"val/metric_{k}": number + k / 10 for k in range(10)})
        if number % 4 == 0:
            log.text("number.txt", str(number))
        log.end()


def test_eight_processes_log_two_hundred_nested_runs_at_once(
    server: Shared, client: MlflowClient
) -> None:
    experiment = client.create_experiment("load")
    parents = [client.create_run(experiment).info.run_id for _ in range(PARENTS)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fairtune.tracking.runs"])
    start = context.Barrier(PROCESSES)
    arguments = [(server.uri, experiment, parents, worker, start) for worker in range(PROCESSES)]
    processes = [context.Process(target=_log_nested, args=given) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * PROCESSES

    seen: Counter[int] = Counter()
    for position, parent in enumerate(parents):
        nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
        assert len(nested) == RUNS // PARENTS
        for run in nested:
            number = int(run.data.params["number"])
            assert number % PARENTS == position, "under a wrong parent"
            assert run.data.tags["of"] == parent
            assert run.info.status == "FINISHED"
            assert run.data.metrics["val/metric_9"] == pytest.approx(number + 0.9)
            seen[number] += 1
    assert seen == Counter(range(RUNS))
    files = {int(path.read_text()) for path in (server.folder / "artifacts").rglob("number.txt")}
    assert files == set(range(0, RUNS, 4))


ESCAPES = (
    "../../escaped.txt",
    "..%2f..%2fescaped.txt",
    "%2e%2e/%2e%2e/escaped.txt",
    "..%252f..%252fescaped.txt",
    "/etc/escaped.txt",
    "%2fetc%2fescaped.txt",
    "a/../../../escaped.txt",
    "..%5c..%5cescaped.txt",
    "file:///etc/escaped.txt",
)


@pytest.mark.parametrize("name", ESCAPES)
def test_an_artifact_name_does_not_leave_its_folder(
    server: Shared, client: MlflowClient, name: str, tmp_path: Path
) -> None:
    inside = server.folder / "artifacts"
    outside = {path for path in server.folder.rglob("*") if inside not in path.parents}
    run = client.create_run("0")
    base = f"api/2.0/mlflow-artifacts/artifacts/0/{run.info.run_id}/artifacts"
    session = requests.Session()
    session.auth = ("admin", PASSWORD)
    for method in ("PUT", "GET", "DELETE"):
        # As it stands: the library would tidy the dots of a path away before sending it.
        raw = requests.Request(method, server.uri, data=b"x" if method == "PUT" else None)
        prepared = session.prepare_request(raw)
        prepared.url = f"{server.uri}/{base}/{name}"
        answer = session.send(prepared, timeout=30)
        assert "Traceback" not in answer.text
    assert {p for p in server.folder.rglob("*") if inside not in p.parents} == outside
    assert not Path("/etc/escaped.txt").exists()
    source = tmp_path / "a.txt"
    source.write_text("x")
    if "%5c" not in name and not name.startswith(("%", "file:")):
        refused = (MlflowException, requests.HTTPError)  # by the client, or by the server
        with pytest.raises(refused, match="Invalid"):
            client.log_text(run.info.run_id, "x", name)
        with pytest.raises(refused, match="Invalid"):
            RunLog(server.uri, "0", run.info.run_id).file(source, name)


def test_no_secret_is_in_the_output_the_log_or_the_runs(
    server: Shared, client: MlflowClient, tmp_path: Path
) -> None:
    """A search that says all it can: nothing that it prints or writes holds the password."""
    folder = tmp_path / "data"
    folder.mkdir()
    final = {"candidates": 1, "seeds": 1}
    config = tiny_config(search__trials=2, search__startup_trials=2, search__final=final)
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    done = fairtune(
        server,
        tmp_path,
        *("-vv", "search", "--config", "tiny.yaml", "--source", str(write_data(folder))),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run_id = json.loads(done.stdout.splitlines()[-1])["run_id"]
    runs = client.search_runs(["0", client.get_run(run_id).info.experiment_id])
    assert run_id in {run.info.run_id for run in runs}
    written = str([run.to_dictionary() for run in runs])
    artifacts = b"".join(
        path.read_bytes() for path in (server.folder / "artifacts").rglob("*") if path.is_file()
    )
    log = (server.folder / "log").read_text()
    for text in (done.stdout, done.stderr, written, log):
        assert PASSWORD not in text
    assert PASSWORD.encode() not in artifacts


def fairtune(
    server: Shared, folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fairtune", *arguments],
        env={
            **os.environ,
            "MLFLOW_TRACKING_URI": server.uri,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            **environment,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
