"""Every code block of README and docs runs, or says why it does not.

Python blocks of a page run one after another in one namespace. YAML blocks must be valid parts of a
configuration. Of shell blocks every `fairtune` line runs in this process, cut short where it trains;
`RUN_ID` is the run of the line before. A block after ``<!-- not run: reason -->`` does not run, but the
commands, options, entry points and make targets that it names must exist.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from markdown_it import MarkdownIt
from mlflow.projects._project_spec import load_project

from fairtune.cli import main
from fairtune.config import load_config, parse_config
from fairtune.data import DATASETS
from fairtune.fairness import OBJECTIVES
from fairtune.peft import SPACES
from fairtune.training import STRATEGIES

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PAGES = [page for page in PAGES if "_build" not in page.parts and "generated" not in page.parts]
MARK = re.compile(r"<!-- not run: (.+?) -->")
SKIPPED = re.compile(r"<!-- not run")
TRAINS = ("search", "finetune")
SHORT = (
    "device=cpu train.epochs=1 train.precision=fp32 search.trials=2 search.final.candidates=1 "
    "search.final.seeds=1 search.final.resamples=20 search.pruning.rule=none"
)
FEWER = " data.options.n_patients=250 register.name=null"  # for the demo, which draws its own
PLACEHOLDERS = re.compile(r"\b[A-Z][A-Z_]{1,}\b")


@dataclass(frozen=True)
class Block:
    """One block of code, where it stands, and why it does not run."""

    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> Iterator[Block]:
    reason = None
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            found = MARK.search(token.content)
            assert found or not SKIPPED.search(token.content), f"{page}: a mark without a reason"
            reason = found[1] if found else None
        elif token.type in ("fence", "code_block"):
            assert token.map is not None
            yield Block(token.map[0] + 1, token.info.strip(), token.content, reason)
            reason = None
        elif token.type.endswith("_open"):
            reason = None


def commands(text: str) -> list[list[str]]:
    joined = text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture
def place(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder with the configurations and an empty store; new names are forgotten after."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.setattr("fairtune.machine.SECONDS", 0.2)
    registries: list[Any] = [DATASETS, OBJECTIVES, SPACES, STRATEGIES]
    before = [dict(registry._items) for registry in registries]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    for registry, items in zip(registries, before, strict=True):
        registry._items.clear()
        registry._items.update(items)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where pydantic looks for names
    run_id = ""
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}, line {block.line}"
        if block.language == "python" and block.reason is None:
            exec(compile("\n" * block.line + block.text, str(page), "exec"), module.__dict__)
        elif block.language == "python":
            compile(block.text, str(page), "exec")
        elif block.language == "yaml" and block.reason is None:
            check_configuration(block.text, where)
        elif block.language == "bash":
            for words in commands(block.text):
                check_command(words, where)
                if block.reason is None:
                    run_id = run(words, run_id, where) or run_id
        else:
            known = block.reason is not None or block.language in (
                "text",
                "{toctree}",
                "{eval-rst}",
            )
            assert known, f"{where}: say `python`, `bash`, `yaml` or `text`, or why it is not run"


def check_configuration(text: str, where: str) -> None:
    """A block of YAML is a part of a configuration: its keys and values are known."""
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    for section, values in yaml.safe_load(text).items():
        if isinstance(values, dict):
            raw[section] = {**raw.get(section, {}), **values}
        else:
            raw[section] = values
    parse_config(raw, where)


def check_command(words: list[str], where: str) -> None:
    """What a line names must exist: command, options, entry point, make target."""
    while words and re.fullmatch(r"[A-Za-z_]+=.*", words[0]):
        words = words[1:]
    words = list(itertools.takewhile(lambda word: word not in ("|", ">", "&&", ";"), words))
    if words[:1] == ["fairtune"]:
        parse(words[1:], where)
    elif words[:2] == ["mlflow", "run"]:
        entry = words[words.index("-e") + 1] if "-e" in words else "main"
        known = load_project(str(ROOT)).get_entry_point(entry).parameters
        given = [w.partition("=")[0] for flag, w in itertools.pairwise(words) if flag == "-P"]
        assert set(given) <= set(known), f"{where}: {entry} has no parameters {given}"
    elif words[:1] == ["make"]:
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets, f"{where}: no target {words[1]}"


def parse(words: list[str], where: str) -> None:
    command: Any = main
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    assert command is not main or words[:1] in ([], ["--help"]), f"{where}: {words}"
    if not {"--help", "--version"} & set(words) and command is not main:
        numbers = ["1" if PLACEHOLDERS.fullmatch(word) else word for word in words]
        command.make_context(str(command.name), numbers)


def run(words: list[str], run_id: str, where: str) -> str:
    """Run a `fairtune` line; returns the run that it made."""
    assert words[0] == "fairtune", f"{where}: only fairtune's lines run, mark this: {words[0]}"
    words = [run_id if word == "RUN_ID" else word for word in words[1:]]
    if words[0] in TRAINS and "--help" not in words:
        config = words[words.index("--config") + 1] if "--config" in words else "configs/demo.yaml"
        short = SHORT + (FEWER if load_config(config).data.name == "synthetic" else "")
        words += [word for key in short.split() for word in ("-o", key)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, f"{where}: {shlex.join(words)}\n{result.stderr[-2000:]}"
    last = result.stdout.splitlines()[-1]
    return str(json.loads(last).get("run_id", "")) if last.startswith("{") else ""


def test_every_page_is_in_the_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    listed = set(re.findall(r"^[a-z][\w/-]*$", index, re.M))
    pages = {
        path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        for path in [*PAGES, *(ROOT / "docs").glob("*.ipynb")]
        if "docs" in path.parts and path.stem != "index"
    }
    assert pages == listed


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_errors_of_the_faq_are_what_the_package_says() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    said = [
        node.value
        for path in (ROOT / "fairtune").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    messages = re.findall(r"\*\*`([^`]+)`\*\*", text)
    assert len(messages) > 12
    for message in messages:
        for part in filter(None, (part.strip() for part in message.split("..."))):
            assert any(part in constant for constant in said), f"nothing says {part!r}"


def test_the_pages_that_the_code_holds_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    for name, page in reference.PAGES.items():
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert text == page(), f"docs/{name}: run python docs/reference.py"
        assert "|  |\n" not in text, f"docs/{name}: a key without a meaning"
