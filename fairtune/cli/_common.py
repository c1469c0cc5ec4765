"""What the commands share: how their help looks, options that say what to work on, the last line."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from fairtune.errors import InputError, without_password

F = TypeVar("F", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


class Option(click.Option):
    """An option that says under which heading of the help it stands."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        self.group = group
        if kwargs.get("default") == "":  # nothing that is worth showing
            kwargs.setdefault("show_default", False)
        super().__init__(*args, **kwargs)


class Command(click.Command):
    """A command whose help lists its options under headings, in the order of their declaration."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Make the context; without colour where the reader asked for none (no-color.org)."""
        context = super().make_context(*args, **kwargs)
        if os.environ.get("NO_COLOR"):
            context.color = False
        return context

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the headings and their options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):  # not the usage's words
                groups.setdefault(getattr(parameter, "group", "Help"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def command(function: Callable[..., Any]) -> click.Command:
    """Make a command of a function, as all commands here are made."""
    made: click.Command = click.command(cls=Command, context_settings=CONTEXT)(function)
    return made


def option(*names: str, group: str = "Options", **settings: Any) -> Callable[[F], F]:
    """Declare an option under a heading of the help."""
    return click.option(*names, cls=Option, group=group, **settings)


HOST = option(
    "--host",
    default="127.0.0.1",
    help="Address to listen on; this machine by default.",
    group="Server",
)
PORT = option(
    "--port",
    default=5001,
    type=click.IntRange(0, 65535),
    help="0 takes a free port.",
    group="Server",
)


def config_options(command: F) -> F:
    """Add the options that say what to work on."""
    group = "Configuration"
    for one in reversed(
        [
            option(
                "--config",
                "config_path",
                default="configs/demo.yaml",
                help="YAML file; configs/ has one for each data set and attribute.",
                group=group,
            ),
            option(
                "--source",
                default="",
                help="Folder with the data set's official download; the demo needs none.",
                group=group,
            ),
            option(
                "-o",
                "--override",
                "overrides",
                multiple=True,
                metavar="KEY=VALUE",
                help="Change a key of the configuration: -o train.epochs=3. Repeatable.",
                group=group,
            ),
            option(
                "--overrides",
                "override_text",
                default="",
                help="The same in one string, separated by spaces, as MLproject passes it.",
                group=group,
            ),
        ]
    ):
        command = one(command)
    return command


def read_config(path: str, overrides: Iterable[str], text: str) -> Any:
    """Read the configuration that the options of `config_options` name."""
    from fairtune.config import load_config

    return load_config(path, all_overrides(overrides, text))


def all_overrides(overrides: Iterable[str], text: str) -> tuple[str, ...]:
    """Return the overrides of ``--overrides`` and of ``-o``, which come last and win."""
    try:
        return (*shlex.split(text), *overrides)
    except ValueError as error:
        raise InputError(f"--overrides {text!r}: {error}") from None


def leave_report(run_id: str) -> None:
    """Write a finished run's report and say how to have it as a file."""
    from fairtune.report import write_report

    try:
        write_report(run_id)
    except Exception:  # a picture that fails must not hide the result of a finished run
        logging.getLogger("fairtune").exception("the report could not be written")
    click.echo(f"report         fairtune report {run_id} --output report")


def print_result(value: dict[str, Any]) -> None:
    """Print the last line: one JSON object. NaN becomes null, as JSON has none."""
    click.echo(json.dumps(plain(value), default=str, allow_nan=False))


def plain(value: Any) -> Any:
    """Replace NaN by None, at any depth of dictionaries."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and value != value else value


def ask_store_of(model: str) -> None:
    """Say in one line that the server does not answer which a model comes from.

    MLflow would try for minutes. A serving image has little more than MLflow's client.
    """
    import mlflow

    from fairtune.serving.loading import model_uri
    from fairtune.tracking.stores import ask_server

    uri = mlflow.get_registry_uri()
    if uri.startswith(("http://", "https://")) and model_uri(model).startswith(
        ("models:", "runs:")
    ):
        try:
            ask_server(uri)
        except OSError as error:
            where = without_password(uri)
            raise InputError(
                f"tracking store {where}: {error}; check MLFLOW_TRACKING_URI"
            ) from None
