"""How fast a served model answers, beside the bare model and beside MLflow's own server.

    python -m benchmarks.serving [--size 64 --clients 16 --seconds 10]

Servers run as processes of their own, one after the other, on loopback; the load comes from this
process over raw sockets, a request after an answer. The bare model is called in a loop, on images
that are decoded already, at the mean batch size the server reached. With `--requests 20000` the
memory of `fairtune serve` is read on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from PIL import Image

from fairtune.peft.models import build_model
from fairtune.serving.predictor import Predictor
from fairtune.serving.server import running_server
from fairtune.serving.spec import ServingSpec
from fairtune.tracking.registry import register_model

ARCHITECTURE = "vit_tiny_patch16_224"


@dataclass
class Bare:
    """The model in a loop: images a second, and processor seconds an image."""

    rate: float
    cpu: float


@dataclass
class Load:
    """Latencies in seconds, the time all of them took, and the server's processor time."""

    latencies: np.ndarray
    seconds: float
    errors: int
    cpu: float = 0.0

    def row(self, name: str, bare: Bare) -> dict[str, object]:
        """Tabulate beside the bare model."""
        p50, p99 = np.quantile(self.latencies, [0.5, 0.99])
        rate = len(self.latencies) / self.seconds
        return {
            "server": name,
            "images/s": round(rate, 1),
            "of bare": round(rate / bare.rate, 3),
            "CPU ms/image": round(1000 * self.cpu / len(self.latencies), 2),
            "p50 ms": round(1000 * p50, 2),
            "p99 ms": round(1000 * p99, 2),
            "p99/p50": round(p99 / p50, 2),
            "errors": self.errors,
        }


class Client(asyncio.Protocol):
    """One connection that sends the next request as soon as it has an answer."""

    def __init__(self, requests: list[bytes], until: float, most: int) -> None:
        self.requests, self.until, self.most = requests, until, most
        self.latencies: list[float] = []
        self.errors = 0
        self.done = asyncio.get_running_loop().create_future()
        self._buffer = b""
        self._start = 0.0

    def connection_made(  # noqa: D102
        self, transport: asyncio.BaseTransport
    ) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        if time.perf_counter() >= self.until or len(self.latencies) >= self.most:
            self.transport.close()
            self.done.set_result(None)
            return
        self._start = time.perf_counter()
        self.transport.write(self.requests[len(self.latencies) % len(self.requests)])

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._buffer += data
        head, split, body = self._buffer.partition(b"\r\n\r\n")
        if not split:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) < length:
            return
        self.latencies.append(time.perf_counter() - self._start)
        self.errors += not head.startswith(b"HTTP/1.1 200") or b'"error":null' not in body.replace(
            b" ", b""
        )
        self._buffer = b""
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))


async def load(
    url: str, bodies: list[bytes], clients: int, seconds: float, most: int = 10**9
) -> Load:
    host, _, port = url.removeprefix("http://").partition(":")
    requests = [
        b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        for body in bodies
    ]
    start = time.perf_counter()
    loop = asyncio.get_running_loop()
    made = [
        (
            await loop.create_connection(
                lambda k=k: Client(requests[k:] + requests[:k], start + seconds, most // clients),
                host,
                int(port),
            )
        )[1]
        for k in range(clients)
    ]
    await asyncio.gather(*(client.done for client in made))
    latencies = np.concatenate([client.latencies for client in made])
    return Load(latencies, time.perf_counter() - start, sum(client.errors for client in made))


def jpegs(size: int, count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        image = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
        image.save(buffer, format="JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def bare_model(predictor: Predictor, images: np.ndarray, seconds: float) -> Bare:
    predictor.scores(images)
    start, before, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        predictor.scores(images)
        count += len(images)
    cpu = (time.process_time() - before) / count
    return Bare(count / (time.perf_counter() - start), cpu)


def group_cpu(group: int) -> float:
    """Processor seconds of all processes of a process group."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def get(url: str) -> dict[str, int]:
    with urllib.request.urlopen(url, timeout=5) as response:
        return json.load(response)


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


@contextlib.contextmanager
def mlflow_server(uri: str, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-p", str(port)]
    with (folder / "mlflow.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/ping", timeout=2)
                break
            time.sleep(0.2)
        yield process, url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def prepare(folder: Path, size: int) -> tuple[Predictor, str]:
    """Register one model as fairtune does, and once as the plain PyTorch flavour."""
    uri = f"sqlite:///{folder}/mlflow.db"
    os.environ["MLFLOW_TRACKING_URI"] = uri
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    experiment = client.create_experiment("e", (folder / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    options = {"img_size": size}
    torch.manual_seed(0)
    model = build_model(ARCHITECTURE, num_classes=2, weights="none", options=options)
    spec = ServingSpec(
        architecture=ARCHITECTURE,
        options=options,
        image_size=size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        classes=("no", "yes"),
        threshold=0.5,
    )
    register_model(run, "bench", model, spec)
    plain = str(folder / "plain")
    mlflow.pytorch.save_model(
        model,
        plain,
        input_example=np.zeros((1, 3, size, size), np.float32),
        serialization_format="pickle",
    )
    return Predictor(model, spec), plain


def drive(url: str, group: int, bodies: list[bytes], arguments: argparse.Namespace) -> Load:
    """Warm a server up, then load it."""
    asyncio.run(load(url, bodies, arguments.clients, 2.0))
    before = group_cpu(group)
    found = asyncio.run(load(url, bodies, arguments.clients, arguments.seconds))
    found.cpu = group_cpu(group) - before
    return found


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    predictor, plain = prepare(folder, arguments.size)
    texts = [base64.b64encode(data).decode() for data in jpegs(arguments.size, 32)]
    bodies = [json.dumps({"inputs": [{"image": text}]}).encode() for text in texts]
    images = np.concatenate([predictor.prepare(text)[None] for text in texts])
    memory = []
    with running_server("bench", port=0) as (process, url):
        ours = drive(url, process.pid, bodies, arguments)
        stats = get(f"{url}/stats")
        for _ in range(arguments.requests // 1000):
            memory.append(resident_mb(process.pid))
            asyncio.run(load(url, bodies, arguments.clients, 3600, 1000))
        memory.append(resident_mb(process.pid))
    batch = stats["images"] / stats["calls"]
    size = max(1, round(batch))
    bare = bare_model(predictor, images[:size], arguments.seconds)
    rows = [ours.row("fairtune serve", bare)]
    with mlflow_server("models:/bench@champion", folder) as (process, url):
        found = drive(url, process.pid, bodies, arguments)
        rows.append(found.row("the same behind mlflow models serve", bare))
    if arguments.plain:
        pixels = (images[:8].astype(np.float32) / 255 - 0.5) / 0.5
        wide = [json.dumps({"inputs": [x.transpose(2, 0, 1).tolist()]}).encode() for x in pixels]
        with mlflow_server(plain, folder) as (process, url):
            found = drive(url, process.pid, wide, arguments)
            row = found.row("mlflow.pytorch behind mlflow models serve", bare)
            rows.append({**row, "errors": "-"})  # its answer has no error column
    again = bare_model(predictor, images[:size], arguments.seconds)
    return {
        "model": f"{ARCHITECTURE}, {arguments.size} px",
        "cores": len(os.sched_getaffinity(0)),
        "load average": os.getloadavg(),
        "clients": arguments.clients,
        "mean batch": round(batch, 2),
        "bare, batch": size,
        "bare images/s": [round(bare.rate, 1), round(again.rate, 1)],
        "bare CPU ms/image": [round(1000 * bare.cpu, 2), round(1000 * again.cpu, 2)],
        "servers": rows,
        "memory MB": [round(value, 1) for value in memory],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--requests", type=int, default=0, help="further requests for memory")
    parser.add_argument("--no-plain", dest="plain", action="store_false")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fairtune-bench-"))
    try:
        print(json.dumps(measure(arguments, folder), indent=2))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
