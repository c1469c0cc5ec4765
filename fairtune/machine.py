"""What `fairtune doctor` says of the machine: what a search, a server or a container would miss here."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

import mlflow
import torch
from huggingface_hub import constants
from mlflow import MlflowClient

from fairtune.data import cache_dir
from fairtune.errors import InputError, without_password
from fairtune.tracking.runs import store_errors
from fairtune.tracking.stores import prepare_store
from fairtune.training.hardware import choose_device, has_native_bf16

Level = Literal["ok", "warning", "error"]
LEAST_FREE = 5_000_000_000
SECONDS = 3.0
"""How long the hub and docker may take to answer."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    level
        "error" where a search cannot run, "warning" where something will be missing or slow.
    name
        What was looked at: `python`, `torch`, `memory`, `disk`, `store`, `hub`, `docker`.
    message
        What was found and, unless it is well, what to do; one line.
    """

    level: Level
    name: str
    message: str


def check_machine(device: str = "auto") -> list[Check]:
    """Look at this machine; `device` is what the configuration asks for.

    Nothing is changed, except that an empty local tracking store is initialised.
    """
    return [
        _python(),
        *_torch(device),
        _memory(),
        *_disk(),
        _store(),
        _hub(),
        _docker(),
    ]


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Check("ok", "python", found)
    return Check(
        "warning", "python", f"{found}: fairtune is tested on 3.11 and 3.12; use one of them"
    )


def _torch(name: str) -> Iterator[Check]:
    try:
        device = choose_device(name)
    except InputError as error:
        yield Check("error", "torch", str(error))
        return
    bf16 = "bf16" if has_native_bf16(device) else "fp32 (no native bf16)"
    found = f"{torch.__version__}, device {device}, {bf16}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        gpu = torch.cuda.get_device_name(device)
        yield Check("ok", "torch", f"{found}: {gpu}, {_size(free)} of {_size(total)} free")
        return
    yield Check("ok", "torch", found)
    if shutil.which("nvidia-smi"):
        yield Check(
            "warning",
            "torch",
            f"there is an NVIDIA driver, but torch does not use it (built for CUDA "
            f"{torch.version.cuda or 'none'}): install a build of torch that fits the driver",
        )


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{_size(total)}, {os.cpu_count()} processors, {torch.get_num_threads()} threads"
    if total < 4_000_000_000:
        return Check("warning", "memory", f"{text}: set train.micro_batch_size to use less of it")
    return Check("ok", "memory", text)


def _disk() -> Iterator[Check]:
    places = {cache_dir(): "FAIRTUNE_CACHE", Path.cwd(): "the working folder"}
    for place, what in places.items():
        there = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(there).free
        text = f"{_size(free)} free in {place}"
        if not os.access(there, os.W_OK):
            yield Check("error", "disk", f"{there} cannot be written: set {what} to another place")
        elif free < LEAST_FREE:
            yield Check(
                "warning", "disk", f"only {text}: make room, or set {what} to another place"
            )
        else:
            yield Check("ok", "disk", text)


def _store() -> Check:
    uri = mlflow.get_tracking_uri()
    address = urlparse(uri)
    shown = without_password(uri)
    if address.scheme in ("http", "https") and not _answers(address.hostname, address.port):
        return Check(
            "error",
            "store",
            f"tracking server {shown} does not answer: start it, or correct MLFLOW_TRACKING_URI",
        )
    try:
        with store_errors():
            prepare_store(uri)
            n = len(MlflowClient(uri).search_experiments(max_results=100))
    except InputError as error:
        return Check("error", "store", str(error))
    return Check("ok", "store", f"{shown}, {n} experiments")


def _hub() -> Check:
    """Ask whether pre-trained weights can be fetched; nothing is."""
    address = urlparse(constants.ENDPOINT)
    instead = (
        "weights: pretrained then works only for models in its cache; else use weights: "
        "efficientnet_lite0 or a .safetensors file"
    )
    if constants.HF_HUB_OFFLINE:
        return Check("warning", "hub", f"HF_HUB_OFFLINE is set; {instead}")
    proxy = os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")
    if proxy:
        return Check("ok", "hub", f"{address.hostname} through the proxy, not tried")
    if _answers(address.hostname, address.port or 443):
        return Check("ok", "hub", f"{address.hostname} answers")
    return Check("warning", "hub", f"{address.hostname} does not answer; {instead}")


def _docker() -> Check:
    instead = "needed only for images of the server: https://docs.docker.com/engine/install"
    program = shutil.which("docker")
    if program is None:
        return Check("warning", "docker", f"not installed; {instead}")
    try:
        done = subprocess.run(
            [program, "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("warning", "docker", f"does not answer ({type(error).__name__}); {instead}")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        return Check("warning", "docker", f"no engine: {reason}; start it, or join its group")
    return Check("ok", "docker", f"engine {done.stdout.strip()}")


def _answers(host: str | None, port: int | None) -> bool:
    try:
        with socket.create_connection((host or "", port or 80), timeout=SECONDS):
            return True
    except OSError:
        return False


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.1f} GB"
