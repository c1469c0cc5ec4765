"""Images of fairtune, built and run by the Docker engine of `DOCKER_HOST`, else the local one."""

from __future__ import annotations

import io
import logging
import re
import signal
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairtune.errors import InputError
from fairtune.progress import progress_bar
from fairtune.serving.loading import download_model
from fairtune.serving.server import StopRequested, checked_port, signals_raise

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

logger = logging.getLogger(__name__)

TARGETS = ("serving", "training", "tracking")
DEVICES = ("cpu", "gpu")
SERVER_PORT = 5001
START_SECONDS = 300.0
_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)")


@contextmanager
def engine() -> Iterator[DockerClient]:
    """Connect to the engine; raises `InputError` when none answers, or it refuses something."""
    import docker
    from docker.errors import APIError, DockerException

    try:
        client = docker.from_env()
    except DockerException as error:
        raise InputError(_no_engine(error)) from None
    try:
        yield client
    except APIError as error:
        raise InputError(f"the engine refused: {error.explanation or error}") from None
    finally:
        client.close()


def build_image(
    target: str, *, folder: Path, tag: str = "", device: str = "cpu"
) -> tuple[str, str]:
    """Build one of the images of the Dockerfile in `folder`, with a progress bar over its steps.

    Parameters
    ----------
    target : str
        One of `TARGETS`.
    folder : Path
        A checkout of the repository.
    tag : str
        Name of the image; ``fairtune-<target>`` by default.
    device : str
        ``cpu``, or ``gpu`` for wheels with CUDA.

    Returns
    -------
    (tag, image id)

    Raises
    ------
    InputError
        No engine, no Dockerfile, or a step that failed: the message ends with what it said.
    """
    if not (folder / "Dockerfile").is_file():
        raise InputError(f"no Dockerfile in {folder.absolute()}: give a checkout of fairtune")
    tag = tag or f"fairtune-{target}"
    with engine() as client:
        lines = client.api.build(
            path=str(folder),
            tag=tag,
            target=target,
            buildargs={"DEVICE": device},
            rm=True,
            forcerm=True,
            decode=True,
        )
        _follow(lines, tag)
        return tag, str(client.images.get(tag).id)


def _follow(lines: Iterator[dict[str, Any]], tag: str) -> None:
    """Turn the engine's messages into a progress bar; raises `InputError` for its error."""
    last = ""
    with progress_bar(desc=f"build {tag}", unit="step") as bar:
        for line in lines:
            text = str(line.get("stream", "")).strip()
            if "error" in line:
                raise InputError(f"building {tag} failed: {line['error']}; it said last: {last}")
            if step := _STEP.match(text):
                bar.total = int(step[2])
                bar.n = int(step[1]) - 1
                bar.set_postfix_str(step[3][:60])
            elif text:
                last = text.splitlines()[-1]
                logger.debug("%s", text)
        bar.update(max(0, (bar.total or 0) - bar.n))


def run_image(
    model: str, *, tag: str, host: str = "127.0.0.1", port: int = 5001, device: str = "cpu"
) -> int:
    """Serve a model in a container until stopped; the exit status is 0 after SIGTERM, 130 after Ctrl-C.

    Raises
    ------
    InputError
        No engine, no image, no such model, a port in use, or a server that does not start.
    """
    try:
        with (
            signals_raise(),
            running_container(model, tag=tag, host=host, port=port, device=device) as (
                container,
                url,
            ),
        ):
            logger.info("serving at %s (POST %s/invocations); stop with Ctrl-C", url, url)
            status = container.wait()["StatusCode"]
            raise InputError(f"the server ended with status {status}: {_last_words(container)}")
    except StopRequested as stop:
        return 130 if stop.signal == signal.SIGINT else 0


@contextmanager
def running_container(
    model: str, *, tag: str, host: str = "127.0.0.1", port: int = 0, device: str = "cpu"
) -> Iterator[tuple[Container, str]]:
    """Run a model server for the length of the block: its container and its address.

    The model is fetched here and copied in, so that the container needs neither the registry nor a
    password. It runs without rights, on a read-only root, and is removed in the end.

    Parameters
    ----------
    model : str
        What `download_model` takes: a registered name (its champion), `name/version`, a URI.
    tag : str
        An image of the target ``serving``.
    host, port
        Where the server can be reached from outside; port 0 takes a free one.
    device : str
        ``gpu`` gives the container all GPUs.
    """
    from docker.errors import ImageNotFound
    from docker.types import DeviceRequest, Mount

    port = checked_port(host, port)
    with engine() as client, tempfile.TemporaryDirectory(prefix="fairtune-image-") as scratch:
        try:
            client.images.get(tag)
        except ImageNotFound:
            raise InputError(f"no image {tag!r}: build it with `fairtune image build`") from None
        folder = download_model(model, Path(scratch))
        command = ["serve", "--model", "/model", "--host", "0.0.0.0", "--port", str(SERVER_PORT)]
        gpus = [DeviceRequest(count=-1, capabilities=[["gpu"]])] if device == "gpu" else []
        container = client.containers.create(
            tag,
            command,
            init=True,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            tmpfs={"/tmp": ""},
            mounts=[Mount("/model", None)],
            ports={f"{SERVER_PORT}/tcp": (host, port)},
            device_requests=gpus,
        )
        try:
            container.put_archive("/model", _archive(folder))
            container.start()
            _wait_until_healthy(container)
            yield container, f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            container.remove(v=True, force=True)


def _wait_until_healthy(container: Container) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        container.reload()
        if container.health == "healthy":
            return
        if container.status == "exited":
            raise InputError(f"the server did not start: {_last_words(container)}")
        time.sleep(0.3)
    raise InputError(f"the server was not healthy after {START_SECONDS:g} s")


def _last_words(container: Container) -> str:
    lines = container.logs(tail=5).decode("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _archive(folder: Path) -> bytes:
    """Pack a folder's contents so that anybody may read them."""

    def readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.mode = 0o755 if entry.isdir() else 0o644
        return entry

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, ".", filter=readable)
    return buffer.getvalue()


def _no_engine(error: Exception) -> str:
    import os

    where = os.environ.get("DOCKER_HOST", "the local socket")
    known = ("No such file or directory", "Permission denied", "Connection refused")
    reason = next((text for text in known if text in str(error)), str(error))
    return f"no Docker engine answers at {where} ({reason}): start one, or set DOCKER_HOST"
