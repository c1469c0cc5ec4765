"""Benchmarks: the commands that the pages name are there, the new ones run, stored tables stay."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
SHARED = ("_search", "trial")  # whose options others take over


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Give what runs a benchmark's `main` with options, in this process."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("FAIRTUNE_CACHE", str(tmp_path))

    def main(name: str, *options: str) -> Any:
        module = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr(sys, "argv", [name, *options])
        module.main()
        return module

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield main
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_there_with_their_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"python -m benchmarks\.[^`\n]+", text):
        name, *words = shlex.split(command.removeprefix("python -m benchmarks."))
        source = "".join((FOLDER / f"{part}.py").read_text() for part in (name, *SHARED))
        for word in words:
            assert not word.startswith("-") or f'"{word}"' in source, f"{page.name}: {command}"


def test_make_bench_leaves_the_tables_that_were_put_together_by_hand(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("takes minutes with a GPU")
    module = importlib.import_module("benchmarks.__main__")
    assert module.TABLES.parent == FOLDER / "results"
    monkeypatch.setattr(module, "TABLES", tmp_path / "bench")
    before = {path: path.stat().st_mtime_ns for path in (FOLDER / "results").glob("*.*")}
    run("__main__", "compiled")
    written = (tmp_path / "bench" / "compiled.txt").read_text()
    assert written == f"{module.machine()}\n\nnot measured: no GPU\n"
    assert before == {path: path.stat().st_mtime_ns for path in (FOLDER / "results").glob("*.*")}


def test_agreement_sets_both_loops_side_by_side(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "--architecture resnet10t --weights none --size 32 --images 16 --val-images 16"
    short = "--epochs 1 --batch 8 --workers 0 --seeds 2 --device cpu"
    module = run("agreement", *small.split(), *short.split())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("resnet10t, weights none, 32 px, 16 + 16 generated images")
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| seed", "| ---", "| 0", "| 1", "| mean ± standard error",
    ]  # fmt: skip
    figures = [float(cell) for cell in lines[4].strip("| ").split(" | ")[1:]]
    assert figures[2] == pytest.approx(figures[0] - figures[1], abs=2e-3)
    rows = pd.DataFrame(
        {
            "loop": ["fairtune", "plain loop"] * 2,
            "seed": [0, 0, 1, 1],
            "auroc": [0.9, 0.8, 0.8, 0.8],
            "worst": [0.5, 0.4, 0.4, 0.5],
        }
    )
    last = module.table(rows).splitlines()[-1]
    assert "| 0.850 ± 0.050 | 0.800 ± 0.000 | +0.050 ± 0.050 |" in last


def test_feeding_one_ahead_is_measured_beside_feeding_in_turn(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairtune.data import batches

    fed = batches._fed
    options = "--images 8 --val-images 4 --batch 4 --rounds 1 --epochs 1"
    run("prefetch", *options.split(), "--device", "cpu")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| host, one ahead", "| host, in turn"]
    assert batches._fed is fed
