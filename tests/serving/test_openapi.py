"""The OpenAPI page, kept to by the server: schemathesis draws requests from it, right ones and wrong ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fairtune.serving.server import running_server

pytest.importorskip("schemathesis", reason="schemathesis is not installed (extra `dev`)")


@pytest.mark.slow
def test_the_server_keeps_to_its_page(registered: str, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    options = ["--max-examples", "100", "--seed", "1", "--phases", "examples,coverage,fuzzing"]
    # A wrong row, or a key that MLflow's clients send beside, is no wrong request: the others are answered.
    options += ["--exclude-checks", "negative_data_rejection"]
    with running_server("moles", port=0) as (_, url):
        done = subprocess.run(
            [program, "run", f"{url}/openapi.json", *options, "--no-color"],
            capture_output=True,
            text=True,
            timeout=200,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Tested: 4" in done.stdout
