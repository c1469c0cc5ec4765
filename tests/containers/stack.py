"""A compose project of the repository's own files, and commands run beside it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import requests
from search.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
# The wheels with CUDA come from the same registry as all others; the CPU's have an index of their own.
DEVICE = os.environ.get("FAIRTUNE_TEST_DEVICE", "gpu")


def run(*command: object, timeout: float = 900, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
    return str(done.stdout)


@dataclass
class Stack:
    """A compose project of its own, with free ports and its own secrets and volumes."""

    secrets: Path
    tracking_port: int = field(default_factory=free_port)
    model_port: int = field(default_factory=free_port)
    tag: str = "test"

    @property
    def environment(self) -> dict[str, str]:
        files = [ROOT / "compose.yaml", Path(__file__).with_name("compose.override.yaml")]
        return {
            **os.environ,
            "COMPOSE_FILE": os.pathsep.join(map(str, files)),
            "COMPOSE_PROJECT_NAME": f"fairtune-test-{os.getpid()}",
            "COMPOSE_PROFILES": "",
            "SECRETS": str(self.secrets),
            "TRACKING_PORT": str(self.tracking_port),
            "MODEL_PORT": str(self.model_port),
            "MODEL": "fairtune-demo",
            "DEVICE": DEVICE,
            "TAG": self.tag,
        }

    @property
    def tracking(self) -> str:
        return f"http://127.0.0.1:{self.tracking_port}"

    @property
    def model(self) -> str:
        return f"http://127.0.0.1:{self.model_port}"

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    @property
    def client(self) -> dict[str, str]:
        """What a person who logs to the server sets."""
        return {
            **self.environment,
            "MLFLOW_TRACKING_URI": self.tracking,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.secret("admin_password"),
        }

    def compose(self, *arguments: object) -> str:
        return run("docker", "compose", *arguments, env=self.environment)

    def script(self, name: str, folder: Path) -> str:
        return run("sh", f"deploy/{name}", folder, env=self.environment)

    def containers(self) -> list[str]:
        return self.compose("--profile", "serving", "ps", "--services").split()

    def search(self, experiments: list[str] | None = None) -> list[dict[str, object]]:
        """All runs of the server, read as a person with the password would."""
        response = requests.post(
            f"{self.tracking}/api/2.0/mlflow/runs/search",
            json={"experiment_ids": experiments or ["0"], "max_results": 1000},
            auth=("admin", self.secret("admin_password")),
            timeout=30,
        )
        response.raise_for_status()
        runs = response.json().get("runs", [])
        return sorted(runs, key=lambda found: found["info"]["run_id"])


def last_line(text: str) -> dict[str, object]:
    """Find the last line of JSON that a command printed."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    return dict(json.loads(lines[-1]))
