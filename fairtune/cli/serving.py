"""Commands that answer for images: predict, serve."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from fairtune.cli._common import HOST, PORT, ask_store_of, command, option, plain, print_result


@command
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("--model", required=True, help="models:/NAME@champion, or the URL of a server.")
def predict(images: tuple[Path, ...], model: str) -> None:
    """Predict image files with a registered model, in this process or through a server.

    \b
    Example:
      fairtune predict --model models:/fairtune-demo@champion image.png
    """
    from fairtune.serving.client import image_files, predict_files

    files = image_files(images)  # before a store is asked
    ask_store_of(model)
    rows = predict_files(model, files)
    for row in rows:
        click.echo(json.dumps(plain(row)))
    print_result(
        {"model": model, "n": len(rows), "errors": sum(bool(r.get("error")) for r in rows)}
    )


@command
@option("--model", required=True, help="NAME (its champion), NAME/VERSION or a model URI.")
@HOST
@PORT
@option("--workers", default=1, type=click.IntRange(1), help="Server processes.", group="Server")
@option(
    "--body-limit",
    default=32,
    type=click.IntRange(1),
    help="MiB; a larger request gets 413. All that arrive at once may have eight times as much.",
    group="Limits",
)
@option(
    "--timeout",
    default=60.0,
    type=click.FloatRange(0, min_open=True),
    help="Seconds for an answer to be made.",
    group="Limits",
)
def serve(model: str, host: str, port: int, workers: int, body_limit: int, timeout: float) -> None:
    """Serve a registered model over HTTP: /invocations, /ping, /health, /version.

    \b
    Example:
      fairtune serve --model fairtune-demo --port 5001
    """
    from fairtune.serving.server import serve as run_server

    ask_store_of(model)
    status = run_server(
        model,
        host=host,
        port=port,
        workers=workers,
        body_limit=body_limit * 2**20,
        memory_limit=8 * body_limit * 2**20,
        request_timeout=timeout,
    )
    sys.exit(status)
