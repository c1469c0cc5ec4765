"""Commands about containers: image build, image run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fairtune.cli._common import CONTEXT, HOST, PORT, Command, ask_store_of, option, print_result

DEVICE = option(
    "--device",
    default="cpu",
    type=click.Choice(["cpu", "gpu"]),
    help="gpu: with CUDA.",
    group="Image",
)


@click.group(context_settings=CONTEXT)
def image() -> None:
    """Build and run fairtune's container images with the Docker engine there is."""


@image.command(cls=Command, context_settings=CONTEXT)
@option(
    "--target",
    default="serving",
    type=click.Choice(["serving", "training", "tracking"]),
    help="Which image of the Dockerfile.",
    group="Image",
)
@DEVICE
@option("--tag", default="", help="Name of the image; fairtune-TARGET if not given.", group="Image")
@option("--folder", default=".", type=click.Path(path_type=Path), help="A checkout of fairtune.")
def build(target: str, device: str, tag: str, folder: Path) -> None:
    """Build an image: serving, training, or tracking (mlflow server).

    \b
    Example:
      fairtune image build --target serving --device gpu
    """
    from fairtune.containers import build_image

    tag, image_id = build_image(target, folder=folder, tag=tag, device=device)
    print_result({"image": tag, "image_id": image_id})


@image.command(cls=Command, context_settings=CONTEXT)
@option(
    "--model",
    required=True,
    help="NAME (its champion), NAME/VERSION or a model URI.",
    group="Server",
)
@option("--tag", default="fairtune-serving", help="An image of the target serving.", group="Image")
@HOST
@PORT
@DEVICE
def run(model: str, tag: str, host: str, port: int, device: str) -> None:
    """Serve a registered model in a container; the model is copied in, the registry stays here.

    \b
    Example:
      fairtune image run --model fairtune-demo --port 5001
    """
    from fairtune.containers import run_image

    ask_store_of(model)
    sys.exit(run_image(model, tag=tag, host=host, port=port, device=device))
