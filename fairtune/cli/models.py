"""Commands about models: spaces, pretrain."""

from __future__ import annotations

from pathlib import Path

import click

from fairtune.cli._common import command, config_options, option, print_result, read_config
from fairtune.errors import InputError


@command
@config_options
def spaces(config_path: str, overrides: tuple[str, ...], override_text: str, source: str) -> None:
    """List the mask spaces and how many bits each has for the configured model.

    \b
    Example:
      fairtune spaces --config configs/ham10000_age.yaml
    """
    config = read_config(config_path, overrides, override_text)
    from fairtune.peft import SPACES, build_model

    model = build_model(config.model.architecture, num_classes=2, options=config.model.options)
    for name in sorted(SPACES):
        try:
            bits = f"{SPACES[name].n_bits(model):5} bits"
        except InputError:
            bits = "does not fit"
        click.echo(f"{name:34}{bits:14}{SPACES[name].summary}")


@command
@config_options
@option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write.",
    group="Result",
)
def pretrain(
    config_path: str, overrides: tuple[str, ...], override_text: str, source: str, output: Path
) -> None:
    """Train a model from scratch on a source task and write its weights without the head.

    \b
    Example:
      fairtune pretrain --config configs/demo_pretrain.yaml --output demo_vit.safetensors
    """
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
