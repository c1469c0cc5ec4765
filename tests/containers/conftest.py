"""The images of this repository on a real Docker engine, where one can be had."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from containers.stack import ROOT, Stack, run

from fairtune.containers import build_image


@pytest.fixture(scope="session")
def engine() -> None:
    """Skip where no engine answers, or it has no compose."""
    import docker
    from docker.errors import DockerException

    try:
        docker.from_env().ping()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers (DOCKER_HOST says which): {str(error)[-120:]}")
    if shutil.which("docker") is None:
        pytest.skip("the Docker engine has no command line here")
    found = subprocess.run(["docker", "compose", "version"], capture_output=True)
    if found.returncode:
        pytest.skip("the Docker engine's command line has no compose")


@pytest.fixture(scope="session")
def stack(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The shared server, built and up; gone with its volumes in the end."""
    secrets = tmp_path_factory.mktemp("deploy") / "secrets"
    run("sh", "deploy/secrets.sh", secrets)
    made = Stack(secrets)
    try:
        # One image by fairtune itself, through the builder that every engine has; compose builds the rest.
        build_image("tracking", folder=ROOT, tag=f"fairtune-tracking:{made.tag}")
        made.compose("build", "postgres")
        made.compose("up", "--wait")
        yield made
    finally:
        made.compose(
            "--profile", "serving", "--profile", "training", "down", "--volumes", "--timeout", "5"
        )
