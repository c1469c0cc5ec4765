"""Commands about data: prepare, doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fairtune.cli._common import command, config_options, option, print_result, read_config
from fairtune.errors import InputError


@command
@click.argument("name", required=False, default="")
@option(
    "--config",
    "config_path",
    default="",
    help="Take name, options, size and on_bad_image from here.",
    group="Data",
)
@option("--source", default="", help="Folder with the official download.", group="Data")
@option(
    "--size", default=224, type=click.IntRange(8), help="Side of the stored images.", group="Images"
)
@option(
    "--on-bad-image",
    default="",
    type=click.Choice(["", "fail", "skip"]),
    metavar="[fail|skip]",
    help="What an unreadable image does; by default as the configuration says, else fail.",
    group="Images",
)
@option(
    "--on-missing-image",
    default="fail",
    type=click.Choice(["fail", "skip"]),
    help="What a row without its image file does.",
    group="Images",
)
def prepare(
    name: str, config_path: str, source: str, size: int, on_bad_image: Any, on_missing_image: str
) -> None:
    """Check a data set, decode its images once, and show its counts.

    \b
    Examples:
      fairtune prepare ham10000 --source data/ham10000 --size 96
      fairtune prepare folder --config my.yaml --source data/mine
    """
    from fairtune.data import DATASETS
    from fairtune.data import prepare as run_prepare

    options: dict[str, Any] = {}
    attributes = None
    if config_path:
        config = read_config(config_path, (), "")
        if name and name != config.data.name:
            raise InputError(f"{config_path} is about {config.data.name!r}, not {name!r}")
        name, options, attributes = config.data.name, config.data.options, config.data.attributes
        size = config.data.store_size or config.data.image_size
        on_bad_image = on_bad_image or config.data.on_bad_image
    if not name:
        raise InputError(f"name a data set ({', '.join(sorted(DATASETS))}) or give --config")
    if on_missing_image == "skip":
        options = {**options, "allow_missing": True}
    done = run_prepare(
        name,
        source or None,
        size=size,
        options=options,
        attributes=attributes,
        on_bad_image=on_bad_image or "fail",
    )
    click.echo(done.counts.to_string())
    for note in done.notes():
        click.echo(note)
    print_result(
        {
            "name": name,
            "images": len(done.manifest),
            "digest": done.manifest.digest,
            "store": str(done.store.path),
            "matches_official_counts": done.matches,
        }
    )


@command
@config_options
@option(
    "--images/--no-images", default=True, help="Decode every image as well.", group="What to check"
)
@option(
    "--machine/--no-machine",
    default=True,
    help="Look at this machine: torch, disk, tracking store, hub, docker.",
    group="What to check",
)
def doctor(
    config_path: str,
    overrides: tuple[str, ...],
    override_text: str,
    source: str,
    images: bool,
    machine: bool,
) -> None:
    """Say what would go wrong before any training does. Exit code 3 when something would.

    Looks at the machine and at the data. Without a configuration, at the machine alone.

    \b
    Example:
      fairtune doctor --config configs/ham10000_age.yaml --source data/ham10000
    """
    context = click.get_current_context()
    given = context.get_parameter_source("config_path") != click.core.ParameterSource.DEFAULT
    read = given or Path(config_path).is_file() or bool(source or overrides or override_text)
    config = read_config(config_path, overrides, override_text) if read else None
    levels: list[str] = []

    def tell(level: str, name: str, message: str) -> None:
        levels.append(level)
        colour = {"ok": "green", "warning": "yellow", "error": "red"}[level]
        click.echo(f"{click.style(f'{level:8}', fg=colour)}{name:10} {message}")

    if machine:
        from fairtune.machine import check_machine

        for check in check_machine(config.device if config else "auto"):
            tell(check.level, check.name, check.message)
    if config is not None:
        from fairtune.data import diagnose, load_dataset

        data = config.data
        findings = diagnose(
            load_dataset(data.name, source or None, **data.options).select(data.attributes),
            images=images,
            on_bad_image=data.on_bad_image,
            folds=data.folds,
            fold=data.fold,
            fold_seed=data.fold_seed,
        )
        for finding in findings:
            tell(finding.level, finding.check, finding.message)
    errors, warnings = levels.count("error"), levels.count("warning")
    click.echo(f"{errors} errors, {warnings} warnings")
    print_result({"errors": errors, "warnings": warnings})
    if errors:
        sys.exit(3)
