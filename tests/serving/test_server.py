"""`fairtune serve`: limits, fixed words, pages; over real HTTP and bare sockets."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pytest
import requests
from PIL import Image
from serving.samples import encode, image_bytes, png_bomb, tiny_model, tiny_spec
from stores import mlflow_at

from fairtune.errors import InputError
from fairtune.serving import app as texts
from fairtune.serving import scoring
from fairtune.serving.app import App, ServeConfig
from fairtune.serving.client import predict_files
from fairtune.serving.predictor import Predictor
from fairtune.serving.server import _wait_until_healthy, running_server

SECRET = "cGF0aWVudCAxMjM0"
GOOD = encode(image_bytes())
LIMITS = {
    "body_limit": 200_000,
    "memory_limit": 400_000,
    "header_timeout": 1.0,
    "body_timeout": 1.0,
}


@pytest.fixture(scope="module")
def server(_registered: str) -> Iterator[str]:
    with mlflow_at(_registered), running_server("moles", port=0, **LIMITS) as (_, url):
        yield url


def post(server: str, data: bytes | str, **headers: str) -> requests.Response:
    headers = {"Content-Type": "application/json", **headers}
    return requests.post(f"{server}/invocations", data=data, headers=headers, timeout=30)


def test_the_answer_equals_the_model_in_process(server: str, image_files: list[Path]) -> None:
    answers = predict_files(server, image_files, batch_size=2)
    rows = [encode(path.read_bytes()) for path in image_files]
    wanted = Predictor(tiny_model(), tiny_spec(), version="moles/1", device="cpu").predict(rows)
    for got, want in zip(answers, wanted, strict=True):
        assert {key: got[key] for key in want} == pytest.approx(want, abs=1e-5)


def test_pages(server: str) -> None:
    assert requests.get(f"{server}/ping", timeout=5).status_code == 200
    assert requests.get(f"{server}/health", timeout=5).status_code == 200
    assert requests.get(f"{server}/version", timeout=5).json()["model_version"] == "moles/1"
    page = requests.get(f"{server}/openapi.json", timeout=5).json()
    assert "post" in page["paths"]["/invocations"]
    assert requests.get(f"{server}/nothing", timeout=5).status_code == 404
    refused = requests.get(f"{server}/invocations", timeout=5)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")
    assert requests.post(f"{server}/ping", timeout=5).status_code == 405
    assert requests.head(f"{server}/ping", timeout=5).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["image"], "data": [[GOOD]]}},
        {"dataframe_split": {"columns": ["id", "image"], "data": [[7, GOOD]], "index": [3]}},
        {"dataframe_records": [{"image": GOOD, "id": 7}]},
        {"inputs": [{"image": GOOD}]},
        {"inputs": {"image": [GOOD]}},
        {"inputs": [GOOD]},
        {"instances": [{"image": GOOD}]},
    ],
)
def test_every_shape_of_request(server: str, body: dict) -> None:
    (row,) = post(server, json.dumps(body)).json()["predictions"]
    assert row["error"] is None
    assert row["label"] in ("benign", "malignant")


@pytest.mark.parametrize("row", ["", SECRET, "!", encode(png_bomb()), None, 3, [SECRET], {}])
def test_a_bad_row_is_that_rows_error(server: str, row: object) -> None:
    response = post(server, json.dumps({"inputs": [GOOD, row]}))
    assert response.status_code == 200
    assert SECRET not in response.text
    good, bad = response.json()["predictions"]
    assert good["error"] is None
    assert bad["error"]
    assert bad["label"] is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", scoring.NOT_JSON),
        (SECRET.encode(), scoring.NOT_JSON),
        (b"\xff\xfe" + SECRET.encode(), scoring.NOT_JSON),
        (b"[" * 150_000, scoring.NOT_JSON),
        (b'{"a":' * 30_000, scoring.NOT_JSON),
        (b"1" * 100_000, scoring.NOT_JSON),
        (b"null", scoring.NOT_ONE),
        (json.dumps([SECRET]).encode(), scoring.NOT_ONE),
        (json.dumps({SECRET: 1}).encode(), scoring.NOT_ONE),
        (b'{"inputs": [], "instances": []}', scoring.NOT_ONE),
        (json.dumps({"inputs": SECRET}).encode(), scoring.NOT_ROWS),
        (json.dumps({"inputs": {"image": SECRET}}).encode(), scoring.NOT_ROWS),
        (b'{"dataframe_records": null}', scoring.NOT_ROWS),
        (b'{"dataframe_split": []}', scoring.NO_COLUMN),
        (json.dumps({"dataframe_split": {"columns": [SECRET], "data": []}}), scoring.NO_COLUMN),
        (b'{"dataframe_split": {"columns": ["image"], "data": [["a", "b"]]}}', scoring.NO_COLUMN),
        (b'{"dataframe_split": {"columns": ["image", [{}]], "data": [[]]}}', scoring.NO_COLUMN),
        (json.dumps({"inputs": [""] * 300}).encode(), scoring.TOO_MANY.format(limit=256)),
    ],
)
def test_a_wrong_request_is_400_in_fixed_words(server: str, body: bytes, message: str) -> None:
    response = post(server, body)
    assert response.status_code == 400
    assert response.json()["message"] == message


@pytest.mark.parametrize(
    "kind", ["text/csv", "", "application/json; charset=latin-1", "application/jsonp", "a;b;c"]
)
def test_other_content_types_are_415(server: str, kind: str) -> None:
    response = post(server, b"{}", **{"Content-Type": kind})
    assert response.status_code == 415


def test_content_type_with_charset(server: str) -> None:
    kind = 'Application/JSON; charset="UTF-8"'
    assert post(server, b'{"inputs": []}', **{"Content-Type": kind}).json() == {"predictions": []}


def test_too_large_is_413_before_it_is_sent(server: str) -> None:
    with connect(server) as stream:
        stream.sendall(head(length=10**15))  # and not one byte of the body
        assert receive(stream).startswith(b"HTTP/1.1 413")
    response = post(server, b" " * 5_000_000)  # the answer reaches a client that sends all first
    assert response.status_code == 413
    assert response.json()["message"] == texts.TOO_LARGE.format(limit=200_000)


def test_too_large_without_a_declared_length_is_413(server: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    response = requests.post(
        f"{server}/invocations",
        data=endless(),
        headers={"Content-Type": "application/json"},
        timeout=10,
    )
    assert response.status_code == 413


def test_slow_clients_time_out_and_hold_nobody_up(server: str) -> None:
    """Twenty clients who never finish their headers, twenty who never finish their bodies."""
    slow = []
    for number in range(40):
        stream = connect(server)
        stream.sendall(
            head(length=1000) + b"{" if number % 2 else b"POST /invocations HTTP/1.1\r\nA"
        )
        slow.append(stream)
    start = time.monotonic()
    response = post(server, json.dumps({"inputs": [GOOD]}))
    assert response.status_code == 200
    assert time.monotonic() - start < 0.9, "waited for the slow ones"
    for number, stream in enumerate(slow):
        with stream:
            answer = receive(stream)  # returns at the end of the connection
        assert answer.startswith(b"HTTP/1.1 408") if number % 2 else answer == b""
    assert time.monotonic() - start < 6


def test_a_trickle_of_headers_is_no_way_around_the_limit(server: str) -> None:
    with connect(server) as stream:
        stream.sendall(b"GET /ping HTTP/1.1\r\n")
        start = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - start < 5:
                stream.sendall(b"A: b\r\n")
                time.sleep(0.1)
        assert time.monotonic() - start < 3


def test_bodies_in_progress_are_limited_together(server: str) -> None:
    held = []
    for _ in range(2):
        stream = connect(server)
        stream.sendall(head(length=199_000) + b" " * 198_000)
        held.append(stream)
    time.sleep(0.2)
    response = post(server, b" " * 50_000)
    assert response.status_code == 503
    for stream in held:
        stream.close()
    time.sleep(0.2)
    assert post(server, json.dumps({"inputs": [GOOD]})).status_code == 200


def test_clients_at_once_get_their_own_answers(server: str) -> None:
    rows = [encode(image_bytes(seed)) for seed in range(16)]
    alone = Predictor(tiny_model(), tiny_spec(), device="cpu").predict(rows)
    wrong = []

    def ask(number: int) -> None:
        for _ in range(5):
            (got,) = post(server, json.dumps({"inputs": [rows[number]]})).json()["predictions"]
            if abs(got["probability_benign"] - alone[number]["probability_benign"]) > 1e-5:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_damaged_images_and_requests_break_no_rule(server: str) -> None:
    """A short run of the fuzzer; `benchmarks/fuzz_serving.py` by itself sends 20,000 inputs."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz_serving.py"
    command = [sys.executable, str(script), "--url", server, "--inputs", "800", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert json.loads(done.stdout)["inputs"] >= 800


def test_a_model_with_a_pickle_is_refused(registered: str, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts("models:/moles@champion"))
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / "python_model.pkl").write_bytes(b"\x80\x04.")
    refused = pytest.raises(InputError, match=r"pickled data \(python_model\.pkl\)")
    with refused, running_server(str(copy), port=0):
        pass


def test_what_cannot_be_served_says_so(registered: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workers"), running_server("moles", workers=0):
        pass
    unknown = pytest.raises(InputError, match="no model 'models:/nobody@champion'")
    with unknown, running_server("nobody", port=0):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for host, wanted in (("127.0.0.1", port), ("300.1.1.1", 0)):
            with (
                pytest.raises(InputError, match="cannot listen at"),
                running_server("moles", host=host, port=wanted),
            ):
                pass


def test_large_files_go_in_smaller_requests(server: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.png" for k in range(6)]
    for path in files:
        path.write_bytes(noise(140))
    assert sum(path.stat().st_size for path in files) > 1.5 * LIMITS["body_limit"]
    answers = predict_files(server, files)
    assert [row["image"] for row in answers] == [str(path) for path in files]
    assert all(row["error"] is None for row in answers)
    files[4].write_bytes(noise(300))
    with pytest.raises(InputError, match=rf"{files[4].name} is too large for http"):
        predict_files(server, files)


def test_a_proxy_is_not_asked_for_this_machine(
    server: str, image_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert len(predict_files(server, image_files)) == 3
    monkeypatch.setattr("fairtune.serving.server.START_SECONDS", 5.0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        _wait_until_healthy(process, server)


def test_rows_that_nobody_waits_for_are_not_computed() -> None:
    goes_on = threading.Event()
    model = tiny_model()
    model.register_forward_pre_hook(lambda *_: goes_on.wait(30) and None)
    predictor = Predictor(model, tiny_spec(max_batch=4), device="cpu")
    app = App(predictor, ServeConfig(model="", request_timeout=0.5))
    assert ask(app, [GOOD] * 40) == 504
    goes_on.set()
    app.config = ServeConfig(model="")
    assert ask(app, [GOOD]) == 200
    assert predictor.stats()["images"] <= 4 + 1


def ask(app: App, rows: list[str]) -> int:
    """Send a request to an application in this process; gives the status."""
    body = json.dumps({"inputs": rows}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    sent = []

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/invocations", "method": "POST", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"]


def noise(side: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def connect(server: str) -> socket.socket:
    host, _, port = server.removeprefix("http://").partition(":")
    stream = socket.create_connection((host, int(port)), timeout=10)
    return stream


def head(length: int) -> bytes:
    return (
        "POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def receive(stream: socket.socket) -> bytes:
    parts = []
    while part := stream.recv(65536):
        parts.append(part)
    return b"".join(parts)
