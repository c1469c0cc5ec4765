"""`mlflow run`: what a person passes as a parameter arrives as it was written, and is never run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving.samples import image_bytes

ROOT = Path(__file__).parents[2]
NASTY = "a $(touch pwned) `touch pwned` 'b' \"c\" ; touch pwned\n* {model} && touch pwned.png"


@pytest.mark.slow
def test_parameters_arrive_literally(registered: str, tmp_path: Path) -> None:
    image = tmp_path / NASTY
    image.write_bytes(image_bytes())
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        [
            *("mlflow", "run", ROOT, "-e", "predict", "--env-manager=local"),
            *("-P", "model=moles", "-P", f"image={image}"),
        ],
        env={
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": registered,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert rows[0]["image"] == str(image)
    assert rows[0]["error"] is None
    assert rows[-1]["errors"] == 0
    assert not [*tmp_path.rglob("pwned*"), *ROOT.glob("pwned*")]
