"""The registered model behind MLflow's own server, over real HTTP; here and in a fresh environment."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from serving.samples import encode, image_bytes, png_bomb, tiny_model, tiny_spec

from fairtune.errors import InputError
from fairtune.serving import bundle
from fairtune.serving.client import predict_files
from fairtune.serving.predictor import Predictor

SECRET = "cGF0aWVudCAxMjM0"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(
    store: str, log: Path, env_manager: str, *, seconds: float = 60, **variables: str
) -> Iterator[str]:
    """Run `mlflow models serve` with the champion `moles` for the length of the block: its address."""
    port = free_port()
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": store,
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    command = ["mlflow", "models", "serve", "-m", "models:/moles@champion"]
    command += ["--env-manager", env_manager, "-h", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, process, log, seconds)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if requests.get(f"{address}/ping", timeout=1).status_code == 200:
                return
        except requests.ConnectionError:
            time.sleep(0.1)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def server(_registered: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with mlflow_server(_registered, log, "local") as address:
        yield address


def test_the_answer_over_http_equals_the_model_in_process(
    server: str, image_files: list[Path]
) -> None:
    answers_equal(server, image_files)


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_the_same_in_a_fresh_environment(
    registered: str, image_files: list[Path], tmp_path: Path
) -> None:
    """An environment that uv makes of the model's own requirements, where there is no fairtune."""
    needs_package_index(tmp_path)
    environments, cache = tmp_path / "environments", tmp_path / "cache"
    try:
        with mlflow_server(
            registered,
            tmp_path / "log.txt",
            "uv",
            seconds=600,
            MLFLOW_ENV_ROOT=str(environments),
            UV_CACHE_DIR=str(cache),
        ) as address:
            answers_equal(address, image_files)
        (python,) = environments.rglob("bin/python")
        tell = [python, "-c", "import importlib.util as u; print(u.find_spec('fairtune'))"]
        done = subprocess.run(tell, capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout == "None\n", done.stderr
    finally:
        for folder in (environments, cache):
            shutil.rmtree(folder, ignore_errors=True)  # gigabytes


def needs_package_index(folder: Path) -> None:
    """Skip where uv cannot find what the model asks for."""
    (folder / "requirements.txt").write_text("\n".join(bundle.requirements()))
    try:
        done = subprocess.run(
            [Path(sys.executable).with_name("uv"), "pip", "compile", "requirements.txt"],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("no package index answers uv within a minute")
    if done.returncode:
        pytest.skip(f"uv finds no packages: {done.stderr.strip().splitlines()[-1]}")


def answers_equal(server: str, image_files: list[Path]) -> None:
    answers = predict_files(server, image_files, batch_size=2)
    rows = [encode(path.read_bytes()) for path in image_files]
    wanted = Predictor(tiny_model(), tiny_spec(), device="cpu").predict(rows)
    for got, want in zip(answers, wanted, strict=True):
        assert got["error"] is None
        assert got["label"] == want["label"]
        assert got["threshold"] == want["threshold"]
        assert got["model_version"] == "moles/1"
        for key in ("probability_benign", "probability_malignant"):
            assert got[key] == pytest.approx(want[key], abs=1e-5)


GOOD = encode(image_bytes())


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["image"], "data": [[GOOD]]}},
        {"dataframe_records": [{"image": GOOD}]},
        {"inputs": [{"image": GOOD}]},
        {"inputs": {"image": [GOOD]}},
        {"instances": [{"image": GOOD}]},
    ],
)
def test_every_shape_of_request_that_mlflow_knows(server: str, body: dict) -> None:
    response = requests.post(f"{server}/invocations", json=body, timeout=30)
    assert response.status_code == 200
    (row,) = response.json()["predictions"]
    assert row["error"] is None


@pytest.mark.parametrize("row", ["", SECRET, "!" + SECRET, encode(png_bomb()), None, 3, 1.5, True])
def test_a_bad_row_is_that_rows_error(server: str, row: object) -> None:
    body = {"dataframe_records": [{"image": GOOD}, {"image": row}]}
    response = requests.post(f"{server}/invocations", json=body, timeout=30)
    assert response.status_code == 200, response.text[:300]
    assert SECRET not in response.text
    good, bad = response.json()["predictions"]
    assert good["error"] is None
    assert bad["label"] is None
    assert bad["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [{"picture": SECRET}]},
        {"dataframe_records": [{"image": 3}]},
        {"dataframe_records": [{"image": {"a": SECRET}}]},
        {"dataframe_records": [{"image": [SECRET]}]},
        {"dataframe_records": []},
        {"inputs": SECRET},
        {"picture": SECRET},
        [SECRET],
    ],
)
def test_a_wrong_request_is_refused_without_an_echo(server: str, body: object) -> None:
    response = requests.post(f"{server}/invocations", json=body, timeout=30)
    if response.status_code == 200:  # then every row says that it is no image
        assert all(row["error"] for row in response.json()["predictions"])
    else:
        assert response.status_code == 400
    assert SECRET not in response.text
    assert "Traceback" not in response.text


def test_the_client_says_what_is_wrong_in_one_line(server: str, image_files: list[Path]) -> None:
    with pytest.raises(InputError, match="no server answers at"):
        predict_files(f"http://127.0.0.1:{free_port()}", image_files)
    with pytest.raises(InputError, match="answered 404"):
        predict_files(f"{server}/elsewhere", image_files)
