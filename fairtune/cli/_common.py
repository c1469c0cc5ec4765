"""What the commands share: options that say what to work on, and the last line they print."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from fairtune.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


def config_options(command: F) -> F:
    """Add the options that say what to work on."""
    for option in reversed(
        [
            click.option(
                "--config",
                "config_path",
                default="configs/demo.yaml",
                help="YAML file; configs/ has one for each data set and attribute.",
            ),
            click.option(
                "-o",
                "--override",
                "overrides",
                multiple=True,
                metavar="KEY=VALUE",
                help="Change a key of the configuration: -o train.epochs=3. Repeatable.",
            ),
            click.option(
                "--overrides",
                "override_text",
                default="",
                help="The same in one string, separated by spaces, as MLproject passes it.",
            ),
            click.option(
                "--source",
                default="",
                help="Folder with the data set's official download; the demo needs none.",
            ),
        ]
    ):
        command = option(command)
    return command


def read_config(path: str, overrides: Iterable[str], text: str) -> Any:
    from fairtune.config import load_config

    try:
        more = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--overrides {text!r}: {error}") from None
    return load_config(path, [*more, *overrides])


def print_result(value: dict[str, Any]) -> None:
    """Print the last line: one JSON object. NaN becomes null, as JSON has none."""
    click.echo(json.dumps(plain(value), default=str, allow_nan=False))


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and value != value else value
