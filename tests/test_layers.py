"""Imports go one way; see the design. The test reads the imports of every file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fairtune

ROOT = Path(fairtune.__file__).parent
COMMON = {"errors", "progress", "registry", "seeding"}
ALLOWED = {
    "data": set(),
    "peft": set(),
    "fairness": set(),
    "training": {"data", "peft", "fairness"},
    "tracking": {"training", "fairness", "serving", "data", "peft"},
    "serving": {"peft", "data"},
    "report": {"fairness", "tracking"},
}
FORBIDDEN_LIBRARIES = {
    "fairness": {"torch", "mlflow"},
    "data": {"mlflow", "timm", "hyperopt"},
    "peft": {"mlflow", "hyperopt"},
    "training": {"mlflow", "hyperopt"},
    "serving": {"hyperopt", "fairlearn"},
    "report": {"torch"},
}


def imports(path: Path) -> set[str]:
    """Dotted names of all modules a file imports, at any depth but under TYPE_CHECKING."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "fairtune":
                found |= {f"fairtune.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_a_layer_imports_only_what_is_below_it(layer: str) -> None:
    allowed = COMMON | {layer} | ALLOWED[layer]
    for path in (ROOT / layer).rglob("*.py"):
        parts = {name.split(".")[1] for name in imports(path) if name.startswith("fairtune.")}
        assert parts <= allowed | {"__version__"}, f"{path} imports {parts - allowed}"


@pytest.mark.parametrize("layer", sorted(FORBIDDEN_LIBRARIES))
def test_a_layer_leaves_libraries_to_others(layer: str) -> None:
    for path in (ROOT / layer).rglob("*.py"):
        libraries = {name.split(".")[0] for name in imports(path)}
        assert not libraries & FORBIDDEN_LIBRARIES[layer], path


def test_nobody_imports_the_command_line() -> None:
    for path in ROOT.rglob("*.py"):
        if path.name not in ("cli.py", "__main__.py"):
            assert "fairtune.cli" not in imports(path), path


def test_the_search_asks_for_the_test_split_in_one_place() -> None:
    """Only the file that evaluates the winner names the test split."""
    naming = {
        path.name
        for path in (ROOT / "search").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == "test"
    }
    assert naming <= {"winner.py", "search.py"}
