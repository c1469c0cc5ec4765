"""The command line: parses, calls, prints; no logic. One command per entry point of MLproject.

Progress and logs go to stderr. The last line on stdout is one JSON object with what a script needs next.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import click

from fairtune import __version__
from fairtune.cli._common import CONTEXT
from fairtune.cli.comparing import compare
from fairtune.cli.containers import image
from fairtune.cli.data import doctor, prepare
from fairtune.cli.models import pretrain, spaces
from fairtune.cli.registry import monitor, promote, register, report
from fairtune.cli.running import evaluate, finetune, search
from fairtune.cli.serving import predict, serve
from fairtune.cli.start import init
from fairtune.errors import FairtuneError, GateRefusedError

SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Begin": (init, doctor, prepare, spaces),
    "Train": (search, finetune, evaluate, pretrain),
    "Understand": (report, compare),
    "Use": (register, promote, serve, image, predict, monitor),
}
"""The commands, by the heading of the help that they stand under."""


class _Commands(click.Group):
    """Turns what a user can mend into one line and an exit code; bugs keep their traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            return super().main(*args, **kwargs)
        except click.exceptions.Exit as done:
            sys.exit(done.exit_code)
        except click.Abort as abort:  # what click makes of a KeyboardInterrupt
            click.echo(f"fairtune: {abort.__cause__ or 'stopped'}", err=True)
            sys.exit(130)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            where = f"; see {context.command_path} --help" if context else ""
            click.echo(f"fairtune: {' '.join(error.format_message().split())}{where}", err=True)
            sys.exit(2)
        except GateRefusedError as refusal:  # its message is a table
            click.echo(f"fairtune: {refusal}", err=True)
            sys.exit(refusal.exit_code)
        except FairtuneError as error:
            click.echo(f"fairtune: {' '.join(str(error).split())}", err=True)
            sys.exit(error.exit_code)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under their headings."""
        width = max(map(len, self.commands))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                rows = [(str(c.name).ljust(width), c.get_short_help_str(120)) for c in commands]
                formatter.write_dl(rows)


@click.group("fairtune", cls=_Commands, context_settings=CONTEXT)
@click.version_option(__version__)
@click.option(
    "-v",
    "--verbose",
    count=True,
    show_default=False,
    help="Say more: -v details, -vv the libraries too.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
def main(verbose: int, quiet: bool) -> None:
    """Search which parts of a pre-trained model to fine-tune, judged by fairness on validation data.

    \b
    The embedded demo:   fairtune search --config configs/demo.yaml
    Your own images:     fairtune init --source my_images
    Look at the runs:    mlflow ui
    """
    from fairtune.progress import LogHandler

    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(handlers=[LogHandler()], format="%(levelname).1s %(name)s: %(message)s")
    logging.getLogger("fairtune").setLevel(level)
    if verbose > 1:
        logging.getLogger().setLevel(logging.INFO)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


for _commands in SECTIONS.values():
    for _command in _commands:
        main.add_command(_command)
