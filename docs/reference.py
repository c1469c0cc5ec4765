"""Write the pages that the code itself holds: configuration.md and datasets.md.

    python docs/reference.py

Keys, defaults and meanings are read from the models that check a configuration, the data sets' facts from
their modules. A test says when a page is not what this would write.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from numpydoc.docscrape import FunctionDoc
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fairtune.comparison.methods import Method
from fairtune.comparison.settings import Comparison, Task
from fairtune.config import Config
from fairtune.data import DATASETS
from fairtune.search.settings import ExtraChoice, ExtraRange
from fairtune.training import STRATEGIES

FOLDER = Path(__file__).parent
WRITTEN = "<!-- Written by docs/reference.py; do not edit. -->\n"

CONFIGURATION = """# Configuration

Every key of a configuration, its default and its meaning. A key that is not here is an error that names
the nearest. On the command line `-o search.trials=4` changes one; `fairtune search --dry-run` checks all and
says what would run. A key without a default must be given.
"""
COMPARISON = """## A comparison

The file that `fairtune compare --config` reads; [Comparing](comparing.md) says how to choose.
"""
STRATEGY = """## Options of the strategies

Under `train.strategy_options`, or searched as `search.extra: {strategy.<option>: ...}`.
[Strategies](strategies.md) says what each does.
"""
DATA = """# Data sets

What `data.name` may be, what has to lie in the folder that `--source` names, and the rules that are
followed. Own images are the data set `folder`: [Your own data](own-data.md) leads through it.
"""
HEAD = "| key | default | meaning |\n| --- | --- | --- |"


def configuration() -> str:
    """Return the page of configuration keys."""
    parts = [CONFIGURATION, "## Top level\n", _table(_rows(Config))]
    for key, section in _sections(Config):
        parts += [f"\n## `{key}`\n", f"{_first_line(section)}\n", _table(_rows(section))]
        for inner, model in _sections(section):
            title = f"\n### `{key}.{inner}`\n"
            parts += [title, f"{_first_line(model)}\n", _table(_rows(model))]
        if key == "search":
            for title, model in (("a range", ExtraRange), ("a choice", ExtraChoice)):
                parts += [f"\n### An entry of `search.extra`: {title}\n", _table(_rows(model))]
    parts += ["\n" + COMPARISON, _table(_rows(Comparison))]
    parts += ["\n### An entry of `tasks`\n", _table([*_rows(Task), _overrides()])]
    parts += [
        "\n### An entry of `methods`, if it is not a name\n",
        _table([_like(), *_rows(Method)]),
    ]
    parts += ["\n" + STRATEGY]
    for name in sorted(STRATEGIES):
        if rows := list(_rows(STRATEGIES[name])):
            parts += [f"### `{name}`\n", _table(rows), ""]
    return WRITTEN + "\n".join(parts).rstrip() + "\n"


def datasets() -> str:
    """Return the page of data sets."""
    parts = [DATA, "| name | data |", "| --- | --- |"]
    modules = {
        name: importlib.import_module(DATASETS[name].__module__) for name in sorted(DATASETS)
    }
    parts += [f"| [`{name}`](#{name}) | {_title(module)} |" for name, module in modules.items()]
    for name, module in modules.items():
        parts += [f"\n## {name}\n", f"{_title(module)}.\n", "| | |", "| --- | --- |"]
        parts += [f"| {slot} | {_cell(text)} |" for slot, text in _slots(module)]
        if rows := list(_options(name)):
            parts += ["\nOptions, under `data.options`:\n", _table(rows)]
    return WRITTEN + "\n".join(parts) + "\n"


def _rows(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    inner = {name for name, _ in _sections(model)}
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key not in inner:
            yield (
                key,
                _default(field),
                (field.description or _of_type(field)) + _one_of(field.annotation),
            )


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield field.alias or name, kind


def _default(field: FieldInfo) -> str:
    return (
        "" if field.is_required() else f"`{_written(field.get_default(call_default_factory=True))}`"
    )


def _written(value: Any) -> str:
    """Write a value as YAML's flow style would."""
    return value if isinstance(value, str) and value else json.dumps(value, default=list)


def _one_of(annotation: Any) -> str:
    """List what a `Literal` allows."""
    if get_origin(annotation) is not Literal:
        return ""
    return " One of " + ", ".join(f"`{value}`" for value in get_args(annotation)) + "."


def _of_type(field: FieldInfo) -> str:
    found = re.findall(r"(\w+)(?:, \.\.\.)?\]$", str(field.annotation))
    names = {
        "Task": "Data sets with their models; see below.",
        "Method": "Names, or mappings; see below.",
    }
    return names.get(found[-1] if found else "", "")


def _overrides() -> tuple[str, str, str]:
    return "overrides", "`{}`", "Changes of `config`: `{train.epochs: 5}`."


def _like() -> tuple[str, str, str]:
    return "like", "", "The name of a known method whose other fields are taken."


def _options(name: str) -> Iterator[tuple[str, str, str]]:
    parameters = inspect.signature(DATASETS[name]).parameters
    meanings = {
        one.strip(): " ".join(entry.desc)
        for entry in FunctionDoc(DATASETS[name])["Parameters"]
        for one in entry.name.split(",")
    }
    for option, parameter in list(parameters.items())[1:]:
        kinds = get_type_hints(DATASETS[name])
        yield option, f"`{_written(parameter.default)}`", meanings[option] + _one_of(kinds[option])


def _title(module: Any) -> str:
    return str(module.__doc__).partition("\n")[0].rstrip(".")


def _slots(module: Any) -> Iterator[tuple[str, str]]:
    """Take a module's docstring apart: lines that begin a slot, and the indented ones under them."""
    lines = inspect.cleandoc(module.__doc__).splitlines()[2:]
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line and not line.startswith(" "):
            found.append((line, []))
        elif found:
            found[-1][1].append(line.strip())
    for slot, texts in found:
        yield slot, " ".join(texts)


def _first_line(model: type[BaseModel]) -> str:
    return str(model.__doc__).partition("\n")[0]


def _table(rows: Any) -> str:
    return "\n".join([HEAD, *(f"| `{k}` | {_cell(d)} | {_cell(m)} |" for k, d, m in rows)])


def _cell(text: str) -> str:
    """Keep a text within a table's cell; what looks like a tag outside of code is none."""
    parts = " ".join(text.split()).replace("|", r"\|").split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


PAGES = {"configuration.md": configuration, "datasets.md": datasets}

if __name__ == "__main__":
    for file, page in PAGES.items():
        (FOLDER / file).write_text(page(), encoding="utf-8")
