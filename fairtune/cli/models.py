"""Commands about models: spaces, pretrain."""

from __future__ import annotations

from pathlib import Path

import click

from fairtune.cli._common import CONTEXT, config_options, print_result, read_config
from fairtune.errors import InputError


@click.command(context_settings=CONTEXT)
@config_options
def spaces(config_path: str, overrides: tuple[str, ...], override_text: str, source: str) -> None:
    """List the mask spaces and how many bits each has for the configured model."""
    config = read_config(config_path, overrides, override_text)
    from fairtune.peft import SPACES, build_model

    model = build_model(config.model.architecture, num_classes=2, options=config.model.options)
    for name in sorted(SPACES):
        try:
            bits = f"{SPACES[name].n_bits(model):5} bits"
        except InputError:
            bits = "does not fit"
        click.echo(f"{name:34}{bits:14}{SPACES[name].summary}")


@click.command(context_settings=CONTEXT)
@config_options
@click.option("--output", required=True, type=click.Path(path_type=Path), help="File to write.")
def pretrain(
    config_path: str, overrides: tuple[str, ...], override_text: str, source: str, output: Path
) -> None:
    """Train a model from scratch on a source task and write its weights without the head."""
    config = read_config(config_path, overrides, override_text)
    from fairtune.pretraining import pretrain as run_pretrain

    done = run_pretrain(config, source or None, output)
    print_result(
        {
            "path": str(done.path),
            "bytes": done.bytes,
            "base_hash": done.base_hash,
            "metrics": {"val/accuracy": done.accuracy},
        }
    )
