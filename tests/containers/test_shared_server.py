"""Compose up, a search in a container over HTTP with a password, its champion served, restarts, down."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import requests
from containers.stack import ROOT, Stack, last_line, run
from PIL import Image
from search.servers import free_port

from fairtune.containers import build_image, running_container
from fairtune.errors import InputError
from fairtune.serving.client import predict_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SMALL = (
    "search.trials=2 search.startup_trials=2 search.final.candidates=1 search.final.seeds=1 "
    "train.epochs=1 data.options.n_patients=300"
)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def searched(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """`mlflow run` of the project for Docker: a whole search in a container, its winner registered."""
    stack.compose("--profile", "training", "build", "train")
    folder = tmp_path_factory.mktemp("project")
    project = (ROOT / "MLproject").read_text()
    environment = f"docker_env: {{image: fairtune-training:{stack.tag}}}"
    in_docker, count = re.subn(r"(?m)^conda_env:.*", environment, project)
    assert count == 1
    (folder / "MLproject").write_text(in_docker)
    credentials = f"{stack.secrets}/mlflow_credentials:/home/fairtune/.mlflow/credentials:ro"
    text = run(
        *("mlflow", "run", folder, "-P", f"overrides={SMALL}"),
        *("-A", "network=host", "-A", f"volume={credentials}"),
        env=stack.client,
    )
    assert stack.secret("admin_password") not in text
    return last_line(text)


@pytest.fixture(scope="module")
def served(stack: Stack, searched: dict[str, object]) -> Stack:
    """The champion behind the model server of the compose project."""
    stack.compose("--profile", "serving", "build", "model")
    stack.compose("--profile", "serving", "up", "--wait")
    return stack


def test_nobody_gets_in_without_the_password_or_by_another_name(stack: Stack) -> None:
    address = f"{stack.tracking}/api/2.0/mlflow/experiments/search"
    password = stack.secret("admin_password")

    def ask(auth: tuple[str, str] | None, **headers: str) -> int:
        found = requests.post(
            address, json={"max_results": 1}, auth=auth, headers=headers, timeout=30
        )
        return found.status_code

    assert ask(None) == 401
    assert ask(("admin", "wrong")) == 401
    assert ask(("nobody", password)) == 401
    assert ask(("admin", password)) == 200
    assert ask(("admin", password), Host="elsewhere.example") == 403


def test_a_search_in_docker_logs_to_the_server(stack: Stack, searched: dict[str, object]) -> None:
    runs = {found["info"]["run_id"]: found for found in stack.search()}  # type: ignore[index]
    parent = runs[searched["run_id"]]
    tags = {tag["key"]: tag["value"] for tag in parent["data"]["tags"]}  # type: ignore[index]
    assert parent["info"]["status"] == "FINISHED"  # type: ignore[index]
    assert tags["fairtune.kind"] == "search"
    assert tags["mlflow.project.env"] == "docker"
    nested = [r for r in runs.values() if searched["run_id"] in str(r["data"])]
    assert len(nested) >= 5, "two trials, the winner again, and two baselines"


def test_the_champion_answers_alike_wherever_it_is_served(served: Stack, image: Path) -> None:
    (want,) = predict_files(served.model, [image])
    assert want["error"] is None
    assert want["model_version"] == "fairtune-demo/1"
    code = (
        "import importlib.util, mlflow, pandas, sys, base64\n"
        "assert importlib.util.find_spec('fairtune') is None\n"
        "model = mlflow.pyfunc.load_model('models:/fairtune-demo@champion')\n"
        "text = base64.b64encode(open('/a.png', 'rb').read()).decode()\n"
        "rows = model.predict(pandas.DataFrame({'image': [text]}))\n"
        "print(rows.to_json(orient='records', lines=True))\n"
    )
    bare = f"fairtune-runtime:{served.tag}"
    options = ("--target", "runtime", "--build-arg", f"DEVICE={served.environment['DEVICE']}")
    run("docker", "build", "--quiet", *options, "--tag", bare, ".")
    environment = served.client
    passed = [f"--env={name}" for name in environment if name.startswith("MLFLOW_TRACKING")]
    mount = f"{image}:/a.png:ro"
    text = run(
        *("docker", "run", "--rm", "--network=host", "--user=fairtune", "--volume", mount),
        *(*passed, bare, "python", "-c", code),
        env=environment,
    )
    assert last_line(text)["probability_benign"] == pytest.approx(want["probability_benign"], 1e-5)


def test_fairtune_image_run_serves_and_leaves_nothing(
    served: Stack, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in served.client.items():
        if name.startswith("MLFLOW_TRACKING"):
            monkeypatch.setenv(name, value)
    import mlflow

    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    (want,) = predict_files(served.model, [image])
    tag = f"fairtune-serving:{served.tag}"
    with running_container("fairtune-demo", tag=tag) as (container, url):
        assert predict_files(url, [image]) == [want]
        assert container.exec_run("id -u").output.strip() == b"10001"
        assert container.exec_run("touch /x").exit_code != 0, "the root can be written to"
        assert served.secret("admin_password") not in str(container.attrs)
    assert container.id not in run("docker", "ps", "--all", "--quiet", "--no-trunc")
    with (
        pytest.raises(InputError, match="no image 'no-such-image': build it"),
        running_container("fairtune-demo", tag="no-such-image"),
    ):
        pass


def test_every_container_restarts_and_nothing_is_lost(served: Stack, image: Path) -> None:
    before, (answer,) = served.search(), predict_files(served.model, [image])
    names = served.containers()
    assert sorted(names) == ["model", "postgres", "tracking"]
    for name in names:
        served.compose("restart", name)
        served.compose("--profile", "serving", "up", "--wait", "--no-recreate")
        assert served.search() == before, f"runs differ after a restart of {name}"
        assert predict_files(served.model, [image]) == [answer]
    artifacts = run("mlflow", "artifacts", "list", "-r", run_of(before), env=served.client)
    assert "report.html" in artifacts


def run_of(runs: list[dict[str, object]]) -> str:
    (parent,) = [r for r in runs if "'mlflow.project.env'" in str(r)]
    return str(parent["info"]["run_id"])  # type: ignore[index]


def test_backup_and_restore_on_an_empty_server(served: Stack, image: Path, tmp_path: Path) -> None:
    before, (answer,) = served.search(), predict_files(served.model, [image])
    served.script("backup.sh", tmp_path / "backup")
    served.compose("--profile", "serving", "down", "--volumes", "--timeout", "5")
    served.compose("up", "--wait")
    assert served.search() == []
    served.script("restore.sh", tmp_path / "backup")
    served.compose("--profile", "serving", "up", "--wait")
    assert served.search() == before
    assert predict_files(served.model, [image]) == [answer]


def test_no_secret_is_in_a_log_a_run_or_a_container(served: Stack) -> None:
    names = ("postgres_password", "admin_password", "session_key")
    logs = served.compose("--profile", "serving", "logs", "--no-color")
    ids = served.compose("--profile", "serving", "ps", "--quiet").split()
    inspected = run("docker", "inspect", *ids)
    commands = "".join(run("docker", "top", item) for item in ids)
    for name in names:
        secret = served.secret(name)
        assert len(secret) >= 32
        for where in (logs, inspected, commands, str(served.search())):
            assert secret not in where, name


def test_a_build_that_fails_says_what_was_said_last(engine: None, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM scratch AS serving\nCOPY nothing /\n", encoding="utf-8"
    )
    with pytest.raises(InputError, match=r"building fairtune-serving failed: .*nothing"):
        build_image("serving", folder=tmp_path)
    with pytest.raises(InputError, match="no Dockerfile in"):
        build_image("serving", folder=tmp_path / "elsewhere")


def test_without_an_engine_it_is_one_line() -> None:
    port = free_port()
    done = subprocess.run(
        ["fairtune", "image", "build"],
        env={**_path(), "DOCKER_HOST": f"tcp://127.0.0.1:{port}"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fairtune: no Docker engine answers at tcp://127.0.0.1:{port}")


def _path() -> dict[str, str]:
    import os

    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
