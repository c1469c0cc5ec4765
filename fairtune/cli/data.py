"""Commands about data: prepare, doctor."""

from __future__ import annotations

import sys
from typing import Any

import click

from fairtune.cli._common import CONTEXT, config_options, print_result, read_config
from fairtune.errors import InputError


@click.command(context_settings=CONTEXT)
@click.argument("name", required=False, default="")
@click.option("--config", "config_path", default="", help="Take name, options, size from here.")
@click.option("--source", default="", help="Folder with the official download.")
@click.option("--size", default=224, type=click.IntRange(8), help="Side of the stored images.")
@click.option(
    "--on-bad-image",
    default="fail",
    type=click.Choice(["fail", "skip"]),
    help="What an unreadable image does.",
)
@click.option("--allow-missing", is_flag=True, help="Leave out rows whose image file is not there.")
def prepare(
    name: str, config_path: str, source: str, size: int, on_bad_image: Any, allow_missing: bool
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
    if not name:
        raise InputError(f"name a data set ({', '.join(sorted(DATASETS))}) or give --config")
    if allow_missing:
        options = {**options, "allow_missing": True}
    done = run_prepare(
        name,
        source or None,
        size=size,
        options=options,
        attributes=attributes,
        on_bad_image=on_bad_image,
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


@click.command(context_settings=CONTEXT)
@config_options
@click.option("--images/--no-images", default=True, help="Decode every image as well.")
def doctor(
    config_path: str, overrides: tuple[str, ...], override_text: str, source: str, images: bool
) -> None:
    """Say what would go wrong before any training does. Exit code 3 when something would."""
    config = read_config(config_path, overrides, override_text)
    from fairtune.data import diagnose, load_dataset

    manifest = load_dataset(config.data.name, source or None, **config.data.options)
    findings = diagnose(manifest.select(config.data.attributes), images=images)
    for finding in findings:
        click.echo(f"{finding.level:8}{finding.check:10} {finding.message}")
    errors = sum(finding.level == "error" for finding in findings)
    click.echo(f"{errors} errors, {len(findings) - errors} warnings")
    print_result({"errors": errors, "warnings": len(findings) - errors})
    if errors:
        sys.exit(3)
