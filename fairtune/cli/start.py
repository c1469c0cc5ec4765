"""The command that one begins with: init."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fairtune.cli._common import command, option, print_result
from fairtune.errors import InputError

if TYPE_CHECKING:
    from fairtune.starting.look import Sight
    from fairtune.starting.settle import Choices, Start


@command
@option("--source", required=True, help="Folder with your images.", group="What you have")
@option("--table", default="", help="CSV, TSV, Excel or Parquet.", group="What you have")
@option("--image-column", default="", help="Column of image files.", group="Columns")
@option("--label-column", default="", help="Column to predict.", group="Columns")
@option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="COLUMN[:EDGE,...]",
    help="Column to judge fairness by, with edges for numbers: weight:60,80. Repeatable.",
    group="Columns",
)
@option("--positive", default="", help="Label value of the positive class.", group="Columns")
@option(
    "--patient-column", default="", help="Images of one patient stay together.", group="Columns"
)
@option("--split-column", default="", help="Column of train, val, test.", group="Columns")
@option("--name", default="my-model", help="Name of the registered model.", group="Result")
@option("--output", default="fairtune.yaml", help="File to write.", group="Result")
@option("--force", is_flag=True, help="Replace the file.", group="Result")
@option(
    "--yes", is_flag=True, help="Ask nothing: take what the table seems to say.", group="Result"
)
def init(source: str, table: str, output: str, force: bool, yes: bool, **given: object) -> None:
    """Look at your images and their table, and write a commented configuration that works.

    Asks for what flags do not say. With --yes, or without a terminal, it asks nothing.

    \b
    Example:
      fairtune init --source my_images --attribute scanner --attribute weight:60,80
    """
    from fairtune.starting.look import look
    from fairtune.starting.settle import config_text, try_out, write_new

    path = Path(output)
    if path.exists() and not force:
        raise InputError(f"{path} is there already: give --output another name, or --force")
    sight = look(Path(source), table)
    choices = _choose(sight, given, ask=not yes and is_terminal())
    start = try_out(sight, choices)
    following = shlex.join(
        ["fairtune", "search", "--config", str(path), "--source", str(sight.root)]
    )
    write_new(path, config_text(choices, start, following), force=force)
    _tell(sight, start, path, following)
    print_result({"config": str(path), "source": str(sight.root), "images": len(start.manifest)})


def is_terminal() -> bool:
    """Say whether someone is there to answer questions."""
    return sys.stdin.isatty()


def _tell(sight: Sight, start: Start, path: Path, following: str) -> None:
    from fairtune.data.preparation import count_table

    click.echo(f"{sight.table}: {sight.n_rows:,} rows, images of about {sight.side} pixels")
    click.echo(count_table(start.manifest).to_string())
    for finding in start.findings:
        click.echo(f"{finding.level:8}{finding.check:10} {finding.message}")
    click.echo(f"wrote {path}; look through it, then")
    check = following.replace("fairtune search", "fairtune doctor", 1)
    click.echo(f"  {check}      # every image, and this machine")
    click.echo(f"  {following} --dry-run   # how long it will take")
    click.echo(f"  {following}")


def _choose(sight: Sight, given: dict[str, object], *, ask: bool) -> Choices:
    """Take flags, else answers, else what the table seems to say."""
    from fairtune.starting.look import edges_of, label_values, likely_positive
    from fairtune.starting.settle import Choices

    def column(flag: str, guess: str | None, question: str, *, needed: bool) -> str | None:
        name = str(given[flag] or "") or guess or ""
        if not given[flag] and ask:
            name = click.prompt(question, default=name, type=str, err=True)
        if name and name not in sight.columns:
            raise InputError(
                f"{sight.table} has no column {name!r} (columns: {', '.join(sight.columns)})"
            )
        if needed and not name:
            raise InputError(
                f"{sight.table}: say with --{flag.replace('_', '-')} which column it is "
                f"(columns: {', '.join(map(str, sight.columns.values()))})"
            )
        return name or None

    image = column("image_column", sight.image, "Column of image files", needed=True)
    label = column("label_column", sight.label, "Column to predict", needed=True)
    assert image is not None
    assert label is not None
    values = label_values(sight, label)
    positive = str(given["positive"] or "") or likely_positive(values) or ""
    if not given["positive"] and ask and len(values) > 1:
        shown = ", ".join(values[:8])
        positive = click.prompt(
            f"Positive class (of {shown}; empty: each value is a class)",
            default=positive,
            err=True,
        )
    attributes = [str(text) for text in given["attributes"] or ()]  # type: ignore[attr-defined]
    listed = ", ".join(str(one) for one in sight.candidates) or "none"
    if not attributes and ask:
        answer = click.prompt(
            f"Columns to judge fairness by, separated by spaces ({listed})", type=str, err=True
        )
        attributes = answer.split()
    if not attributes:
        raise InputError(
            f"name with --attribute the columns to judge fairness by (fitting: {listed})"
        )
    return Choices(
        image=image,
        label=label,
        attributes=dict(edges_of(sight, text) for text in attributes),
        patient=column("patient_column", sight.patient, "Column of patients", needed=False),
        split=column("split_column", sight.split, "Column of train, val, test", needed=False),
        positive=(positive,) if positive else (),
        name=str(given["name"]),
    )
