"""Throw damaged images, requests and connections at a served model, and see whether it stands.

    python benchmarks/fuzz_serving.py --inputs 20000

Without `--url` a tiny model is served for the occasion. Every answer is held against the rules: no
5xx, no answer later than `--patience` seconds, nothing of the input in it, no traceback. Among the
bad inputs go good ones, whose answers are known: another request's data would show. The server's
memory is read before and after. One JSON object on stdout; exit status 1 when a rule was broken.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

CANARY = "Q0FOQVJZX3BhdGllbnRfMTIzNA"  # base64 of a word that no answer may hold
CANARY_PLAIN = "CANARY_patient_1234"
JSON_TYPE = "application/json"
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "TGA", "ICO", "JPEG2000")
FORBIDDEN = (CANARY, CANARY_PLAIN, "Traceback", 'File "', "site-packages")


@dataclass(frozen=True)
class Attack:
    """One request: body, headers, and the statuses that are an answer to it."""

    kind: str
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": JSON_TYPE})
    method: str = "POST"
    path: str = "/invocations"


def seed_images(rng: random.Random) -> list[bytes]:
    """Small images of many formats, colour modes and sizes."""
    found = []
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (20, 24, 4), np.uint8)
    image = Image.fromarray(pixels)
    for kind in FORMATS:
        for mode in ("RGB", "L", "P", "1", "CMYK", "RGBA", "I;16"):
            with contextlib.suppress(OSError, KeyError, ValueError):
                buffer = io.BytesIO()
                image.convert(mode).save(buffer, format=kind)
                found.append(buffer.getvalue())
    dicom = bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\xff\xff\xff\xff" + bytes(64)
    return [*found, dicom, b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'shape': (3,)}" + bytes(64)]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage bytes in one to four of the ways that decoders dislike."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not raw:
            break
        at = rng.randrange(len(raw))
        match rng.randrange(8):
            case 0:
                raw[at] ^= 1 << rng.randrange(8)
            case 1:
                del raw[at:]
            case 2:
                del raw[at : at + rng.randint(1, 64)]
            case 3:
                raw[at:at] = rng.randbytes(rng.randint(1, 64))
            case 4:
                raw[at:at] = raw[: rng.randint(1, len(raw))]
            case 5:  # sizes and offsets: the numbers at which parsers overflow
                number = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 65535, 32768])
                raw[at : at + 4] = number.to_bytes(4, rng.choice(["big", "little"]))
            case 6:
                raw[at : at + 8] = b"\xff" * 8
            case _:
                raw[at : at + 32] = CANARY_PLAIN.encode()
    return bytes(raw)


def image_attack(images: list[bytes], rng: random.Random) -> Attack:
    """Put one to three damaged images into a request."""
    rows = [
        base64.b64encode(mutate(rng.choice(images), rng)).decode() for _ in range(rng.randint(1, 3))
    ]
    key = rng.choice(["inputs", "instances", "dataframe_records"])
    return Attack("image", json.dumps({key: [{"image": row} for row in rows]}).encode())


def base64_attack(images: list[bytes], rng: random.Random) -> Attack:
    """Make a text that is nearly base64."""
    text = base64.b64encode(rng.choice(images)).decode()
    at = rng.randrange(len(text))
    odd = rng.choice(["=", "\u0000", "é", "\ud800", " ", "-_", "====", "data:,", CANARY, "%", "\n"])
    text = rng.choice(
        [text[:at] + odd + text[at:], text[:at], odd * 3, f"data:{odd};base64,{text}"]
    )
    return Attack("base64", json.dumps({"inputs": [{"image": text}]}).encode())


def value(rng: random.Random, depth: int = 0) -> object:
    """Any JSON value, some with the words of the protocol in wrong places."""
    plain = (None, True, -1, 1e308, 10**400, "", CANARY, "image", "\ud800", [], {})
    if depth > 3 or rng.random() < 0.4:
        return rng.choice(plain)
    if rng.random() < 0.5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = ("image", "columns", "data", "index", "inputs", "dataframe_split", CANARY, "")
    return {rng.choice(keys): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def json_attack(images: list[bytes], rng: random.Random) -> Attack:
    """Make a request of the wrong shape, or no JSON at all."""
    keys = ("inputs", "instances", "dataframe_records", "dataframe_split", "params", CANARY)
    document = {key: value(rng) for key in rng.sample(keys, rng.randint(0, 2))}
    body = json.dumps(rng.choice([document, value(rng)])).encode()
    match rng.randrange(6):
        case 0:
            body = mutate(body, rng)
        case 1:
            body = rng.choice([b"[", b'{"inputs":[', b'{"a":']) * rng.randint(1, 20_000)
        case 2:
            body = CANARY.encode() + rng.randbytes(rng.randrange(200))
        case 3:
            body = body.decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))
    return Attack("json", body)


def header_attack(images: list[bytes], rng: random.Random) -> Attack:
    """Make a request of an odd content type, method or path."""
    body = json.dumps({"inputs": [{"image": CANARY}]}).encode()
    kinds = ("", "text/csv", "application/json; charset=utf-7", CANARY, "a" * 5000, ";;;=", "\xff")
    kinds += ("multipart/form-data", "application/json;charset", "application/vnd.apache.parquet")
    paths = (
        "/invocations",
        "/",
        "/../../etc/passwd",
        f"/{CANARY}",
        "/%00",
        "/ping",
        "/stats",
        "/a" * 999,
    )
    headers = {"Content-Type": rng.choice(kinds), rng.choice(["X-A", "Cookie"]): CANARY}
    if rng.random() < 0.3:
        headers["Content-Encoding"] = rng.choice(["gzip", "br", CANARY])
    method = rng.choice(
        ["POST", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "GET", "HEAD"]
    )
    return Attack("header", body, headers, method, rng.choice(paths))


ATTACKS: tuple[tuple[Callable[[list[bytes], random.Random], Attack], float], ...] = (
    (image_attack, 0.6),
    (base64_attack, 0.1),
    (json_attack, 0.2),
    (header_attack, 0.1),
)


def attacks(seed: int) -> Iterator[Attack]:
    """Endless attacks, the same for the same seed."""
    rng = random.Random(seed)
    images = seed_images(rng)
    makers, weights = zip(*ATTACKS, strict=True)
    while True:
        yield rng.choices(makers, weights)[0](images, rng)


class Fuzzer:
    """Several threads of attacks against one server, and what they found."""

    def __init__(self, url: str, patience: float) -> None:
        self.host, _, port = url.removeprefix("http://").partition(":")
        self.port, self.patience = int(port), patience
        self.statuses: Counter[str] = Counter()
        self.broken: list[str] = []
        self.slowest = 0.0
        self._lock = threading.Lock()
        self.good = [self._good(seed) for seed in range(4)]
        self.answers = [self._ask(body) for body in self.good]
        if len(set(self.answers)) < len(self.good):
            raise SystemExit("the model answers the good images alike: nothing could be told apart")

    @staticmethod
    def _good(seed: int) -> bytes:
        small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((40, 44), Image.Resampling.BICUBIC).save(buffer, "PNG")
        text = base64.b64encode(buffer.getvalue()).decode()
        return json.dumps({"inputs": [{"image": text}]}).encode()

    def _ask(self, body: bytes) -> tuple[float, ...]:
        status, text, _ = self._send(self._connect(), Attack("good", body))
        row = json.loads(text)["predictions"][0] if status == 200 else {}
        return tuple(round(v, 4) for k, v in row.items() if k.startswith("probability_"))

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=self.patience)

    @staticmethod
    def _send(connection: http.client.HTTPConnection, attack: Attack) -> tuple[int, str, float]:
        start = time.perf_counter()
        headers = {key: text.encode("latin-1", "replace") for key, text in attack.headers.items()}
        connection.request(attack.method, attack.path, attack.body, headers)
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
        return response.status, text, time.perf_counter() - start

    def work(self, seed: int, inputs: int) -> None:
        """Send `inputs` attacks, a good request after every tenth."""
        connection = self._connect()
        for number, attack in zip(range(inputs), attacks(seed), strict=False):
            try:
                status, text, seconds = self._send(connection, attack)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # Closing on a request it has refused is the server's right; not answering is not.
                if isinstance(error, TimeoutError):
                    self._report(attack, f"no answer within {self.patience} s")
                self.statuses[f"{attack.kind} closed"] += 1
                continue
            self._judge(attack, status, text, seconds)
            if number % 10 == 0:
                which = (seed + number // 10) % len(self.good)
                near = np.allclose(self._ask(self.good[which]), self.answers[which], atol=2e-4)
                if not near:
                    self._report(attack, "a good request got another answer than alone")
        connection.close()

    def _judge(self, attack: Attack, status: int, text: str, seconds: float) -> None:
        with self._lock:
            self.statuses[f"{attack.kind} {status}"] += 1
            self.slowest = max(self.slowest, seconds)
        if status >= 500:
            self._report(attack, f"status {status}")
        for word in FORBIDDEN:
            if word in text:
                self._report(attack, f"the answer holds {word!r}: {text[:200]!r}")
        if status == 200 and attack.path == "/invocations":
            for row in json.loads(text, parse_constant=self._no_number)["predictions"]:
                if (row["error"] is None) == (row["label"] is None):
                    self._report(attack, f"neither answer nor error: {row}")

    def _no_number(self, name: str) -> float:
        self.broken.append(f"{name} in an answer")
        return 0.0

    def _report(self, attack: Attack, what: str) -> None:
        with self._lock:
            self.broken.append(f"{attack.kind}: {what}; body {attack.body[:80]!r}")

    def raw(self, seed: int, count: int) -> None:
        """Send bytes that are no HTTP, or half of it, and hang up."""
        rng = random.Random(seed)
        head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        starts = (
            rng.randbytes(200),
            head + b"Content-Length: -1\r\n\r\n{}",
            head + b"Content-Length: 5, 7\r\n\r\n{}",
            head + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
            head + b"Content-Length: 10\r\n\r\n{}",
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"GET " + b"/" * 70_000,
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000,
        )
        for number in range(count):
            with contextlib.suppress(OSError):
                stream = socket.create_connection((self.host, self.port), timeout=1)
                with stream:
                    stream.sendall(mutate(starts[number % len(starts)], rng))
                    stream.settimeout(0.02)
                    answer = stream.recv(4096)
                    if answer.startswith(b"HTTP/1.1 5"):
                        self.broken.append(f"raw: {answer[:80]!r}")
            self.statuses["raw"] += 1


def resident_mb(pid: int | None) -> float | None:
    """Memory of a process in MB; None when it is not known."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return round(int(line.split()[1]) / 1024, 1)
    return None


def fuzz(url: str, pid: int | None, arguments: argparse.Namespace) -> dict[str, object]:
    """Run all attacks in five parts, and read the memory after each."""
    fuzzer = Fuzzer(url, arguments.patience)
    per_thread = -(-arguments.inputs // arguments.threads)
    start, memory = time.monotonic(), []
    share = -(-per_thread // 5)
    for part in range(5):
        threads = [
            threading.Thread(target=fuzzer.work, args=(arguments.seed + 1000 * part + k, share))
            for k in range(arguments.threads)
        ]
        threads.append(
            threading.Thread(target=fuzzer.raw, args=(arguments.seed + part, share // 4))
        )
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        memory.append(resident_mb(pid))
    alive = fuzzer._ask(fuzzer.good[0]) == fuzzer.answers[0]
    return {
        "inputs": sum(fuzzer.statuses.values()),
        "seconds": round(time.monotonic() - start, 1),
        "statuses": dict(sorted(fuzzer.statuses.items())),
        "slowest s": round(fuzzer.slowest, 3),
        "memory MB after each fifth": memory,
        "alive at the end": alive,
        "broken rules": len(fuzzer.broken) + (not alive),
        "examples": fuzzer.broken[:10],
    }


@contextlib.contextmanager
def tiny_server() -> Iterator[tuple[int, str]]:
    """Serve a small random model, exported to a folder."""
    import torch
    from torch import nn

    from fairtune.peft.models import build_model
    from fairtune.serving.server import running_server
    from fairtune.serving.spec import ServingSpec, export_model

    options = {"img_size": 32, "patch_size": 8, "depth": 2}
    torch.manual_seed(0)
    model = build_model("vit_tiny_patch16_224", num_classes=2, weights="none", options=options)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    spec = ServingSpec(
        architecture="vit_tiny_patch16_224",
        options=options,
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        classes=("no", "yes"),
        threshold=0.5,
    )
    folder = Path(tempfile.mkdtemp(prefix="fairtune-fuzz-"))
    try:
        export_model(model, spec, folder / "model" / "artifacts")
        (folder / "model" / "MLmodel").write_text("flavors: {}\n")
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        with running_server(str(folder / "model"), port=0, log=sys.stderr) as (process, url):
            yield process.pid, url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Parse arguments, fuzz, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=10.0)
    parser.add_argument("--url", help="a running server; a tiny one is started otherwise")
    arguments = parser.parse_args()
    if arguments.url:
        found = fuzz(arguments.url.rstrip("/"), None, arguments)
    else:
        with tiny_server() as (pid, url):
            found = fuzz(url, pid, arguments)
    print(json.dumps(found, indent=2))
    return 1 if found["broken rules"] else 0


if __name__ == "__main__":
    sys.exit(main())
