"""The command line: parses, calls, prints; no logic. One command per entry point of MLproject.

Progress and logs go to stderr. The last line on stdout is one JSON object with what a script needs next.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from fairtune import __version__
from fairtune.errors import FairtuneError, InputError

F = TypeVar("F", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


class _Commands(click.Group):
    """Turns what a user can mend into one line and an exit code; bugs keep their traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            return super().main(*args, **kwargs)
        except click.exceptions.Exit as done:
            sys.exit(done.exit_code)
        except click.Abort:
            sys.exit(130)
        except click.ClickException as error:
            error.show()
            sys.exit(2)
        except FairtuneError as error:
            click.echo(f"fairtune: {' '.join(str(error).split())}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt as error:
            click.echo(f"fairtune: {error or 'stopped'}; continue with --resume", err=True)
            sys.exit(130)


@click.group(cls=_Commands, context_settings=CONTEXT)
@click.version_option(__version__)
@click.option("-v", "--verbose", count=True, help="Say more: -v progress, -vv everything.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
def main(verbose: int, quiet: bool) -> None:
    r"""Search which parts of a pre-trained model to fine-tune, judged by fairness on validation data.

    \b
    Start with the embedded demo:   fairtune search --config configs/demo.yaml
    Look at the runs:               mlflow ui
    """
    level = logging.ERROR if quiet else logging.DEBUG if verbose > 1 else logging.INFO
    logging.basicConfig(stream=sys.stderr, format="%(levelname).1s %(name)s: %(message)s")
    logging.getLogger("fairtune").setLevel(level)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


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


def _config(path: str, overrides: Iterable[str], text: str) -> Any:
    from fairtune.config import load_config

    try:
        more = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--overrides {text!r}: {error}") from None
    return load_config(path, [*more, *overrides])


def _result(value: dict[str, Any]) -> None:
    """Print the last line: one JSON object. NaN becomes null, as JSON has none."""
    click.echo(json.dumps(_plain(value), default=str, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and value != value else value


@main.command(context_settings=CONTEXT)
@config_options
@click.option("--resume", default="", metavar="RUN_ID", help="Continue a search that was cut off.")
def search(
    config_path: str, overrides: tuple[str, ...], override_text: str, source: str, resume: str
) -> None:
    r"""Search for the mask that is fairest on validation; register the winner.

    \b
    Example:
      fairtune search --config configs/ham10000_age.yaml --source data/ham10000 -o search.trials=12
    """
    config = _config(config_path, overrides, override_text)
    from fairtune.interrupt import handle_signals
    from fairtune.report.table import comparison_table
    from fairtune.search.search import search as run_search

    with handle_signals() as stop:
        outcome = run_search(config, source or None, stop, resume=resume or None)
    mask, version = outcome.mask, outcome.version
    click.echo()
    click.echo(
        f"mask           {mask.text} ({mask.space}), learning rate {outcome.learning_rate:g}"
    )
    click.echo(f"trains         {mask.trained:,} of {mask.total:,} parameters ({mask.share:.1%})")
    click.echo()
    click.echo(comparison_table(outcome.comparison))
    click.echo("Mean ± standard error over seeds; the test split was read once.")
    click.echo()
    if version is not None:
        click.echo(f"registered     {version.name} version {version.version}")
        uri = f"models:/{version.name}@{config.register_as.alias}"
        click.echo(f"serve it       mlflow models serve -m {uri} --env-manager local -p 5001")
    click.echo("see the runs   mlflow ui")
    _result(outcome.summary())


@main.command(context_settings=CONTEXT)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", required=True, help="models:/NAME@champion, or the URL of a server.")
def predict(images: tuple[Path, ...], model: str) -> None:
    r"""Predict image files with a registered model, in this process or through a server.

    \b
    Example:
      fairtune predict --model models:/fairtune-demo@champion image.png
    """
    from fairtune.serving.client import predict_files

    rows = predict_files(model, images)
    for row in rows:
        click.echo(json.dumps(_plain(row)))
    _result({"model": model, "n": len(rows), "errors": sum(bool(r.get("error")) for r in rows)})
