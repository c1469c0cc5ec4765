"""Run the benchmarks one after another, each in a process of its own; tables go to results/bench/.

What lies in results/ itself is what the documentation quotes, some of it put together from several runs:
no command writes there.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TABLES = HERE / "results" / "bench"
NEED_DATA = {
    "agreement": ["--source", "{}"],
    "data": ["{}"],
    "feeding": ["{}"],
    "trial": ["--source", "{}"],
}
"""Benchmarks over real images, and how each is told where they are."""


def machine() -> str:
    """Describe this machine: a figure without it says nothing."""
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = f"{names[0]}, {len(names)} cores" if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cpu}; {gpu}; Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    """Run the benchmarks that are named, or all."""
    # `evidence` measures nothing: it writes a page of the documentation.
    known = sorted(path.stem for path in HERE.glob("[a-z]*.py") if path.stem != "evidence")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--ham10000", help="the download: without it, what needs it is left out")
    given = parser.parse_args()
    names = given.names or [name for name in known if given.ham10000 or name not in NEED_DATA]
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r} (known: {', '.join(known)})")
    without = sorted(set(names) & set(NEED_DATA)) if not given.ham10000 else []
    if without:
        parser.error(f"{', '.join(without)}: give --ham10000 DIR")
    TABLES.mkdir(exist_ok=True)
    for name in names:
        sys.stderr.write(f"benchmarks/{name}.py\n")
        options = [part.format(given.ham10000) for part in NEED_DATA.get(name, [])]
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        sys.stdout.write(done.stdout)
        if done.returncode:
            sys.exit(f"benchmarks/{name}.py ended with status {done.returncode}")
        (TABLES / f"{name}.txt").write_text(f"{machine()}\n\n{done.stdout}")


if __name__ == "__main__":
    main()
