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
from fairtune.errors import FairtuneError, GateRefusedError, InputError

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


@click.group("fairtune", cls=_Commands, context_settings=CONTEXT)
@click.version_option(__version__)
@click.option("-v", "--verbose", count=True, help="Say more: -v progress, -vv everything.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
def main(verbose: int, quiet: bool) -> None:
    """Search which parts of a pre-trained model to fine-tune, judged by fairness on validation data.

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


def _bits(mask: Any) -> str:
    return f"{mask.text} ({mask.space})" if mask.text else str(mask.space)


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
    """Search for the mask that is fairest on validation; register the winner.

    \b
    Example:
      fairtune search --config configs/ham10000_age.yaml --source data/ham10000 -o search.trials=12
    """
    config = _config(config_path, overrides, override_text)
    from fairtune.interrupt import handle_signals
    from fairtune.report import write_report
    from fairtune.report.table import comparison_table
    from fairtune.search.search import search as run_search

    with handle_signals() as stop:
        outcome = run_search(config, source or None, stop, resume=resume or None)
    mask, version = outcome.mask, outcome.version
    click.echo()
    click.echo(f"mask           {_bits(mask)}, learning rate {outcome.learning_rate:g}")
    click.echo(f"trains         {mask.trained:,} of {mask.total:,} parameters ({mask.share:.1%})")
    click.echo()
    click.echo(comparison_table(outcome.comparison))
    click.echo("Mean ± standard error over seeds; the test split was read once.")
    click.echo()
    if version is not None:
        click.echo(f"registered     {version.name} version {version.version}")
        uri = f"models:/{version.name}@{config.register_as.alias}"
        click.echo(f"serve it       mlflow models serve -m {uri} --env-manager local -p 5001")
    try:
        write_report(outcome.run_id)
    except Exception:  # a picture that fails must not hide the result of a finished search
        logging.getLogger("fairtune").exception("the report could not be written")
    click.echo(f"report         fairtune report --run-id {outcome.run_id} --output report")
    click.echo("see the runs   mlflow ui")
    _result(outcome.summary())


@main.command(context_settings=CONTEXT)
@config_options
@click.option("--bits", default="", help="Mask bits of the configured space, as runs show them.")
def finetune(
    config_path: str, overrides: tuple[str, ...], override_text: str, source: str, bits: str
) -> None:
    """Fine-tune once under one mask, judged on validation.

    \b
    Examples:
      fairtune finetune -o search.space=fullft
      fairtune finetune -o search.space=auto_peft1 --bits 101000111000010110
    """
    config = _config(config_path, overrides, override_text)
    from fairtune.interrupt import handle_signals
    from fairtune.search.single import fine_tune_once, parse_bits

    with handle_signals() as stop:
        run_id, mask, metrics = fine_tune_once(config, source or None, parse_bits(bits), stop)
    _result({"run_id": run_id, "mask": mask.text or mask.space, "metrics": metrics})


@main.command(context_settings=CONTEXT)
@click.option("--run-id", required=True, help="A finished search, trial or fine-tune.")
@click.option("--source", default="", help="Where the data is, if not where it was.")
def evaluate(run_id: str, source: str) -> None:
    """Evaluate a run's model on train, validation and test; the test split is read once.

    Asked again, the figures of the first time are shown.
    """
    from fairtune.search.single import evaluate_once

    _result({"run_id": run_id, "metrics": evaluate_once(run_id, source or None)})


@main.command(context_settings=CONTEXT)
@click.option("--run-id", required=True, help="A search, trial or fine-tune.")
@click.option("--output", default="", help="Folder for report.html and figures/, beside the run.")
def report(run_id: str, output: str) -> None:
    """Write the report of a run: one HTML file, also an artifact that the tracking UI shows."""
    from fairtune.report import write_report

    path = write_report(run_id, output or None)
    _result({"run_id": run_id, "report": str(path)})


@main.command(context_settings=CONTEXT)
@click.option("--run-id", required=True, help="A finished search, trial or fine-tune.")
@click.option("--name", required=True, help="Name of the registered model.")
@click.option("--alias", default="", help="Alias for the new version; `promote` sets champion.")
@click.option("--source", default="", help="Where the data is, if not where it was.")
def register(run_id: str, name: str, alias: str, source: str) -> None:
    """Register the model of a run, with its figures on test as tags of the version."""
    from fairtune.search.single import register_run

    version = register_run(run_id, name, source or None, alias=alias or None)
    click.echo(f"registered {version.name} version {version.version}")
    _result({"run_id": run_id, "model_name": name, "model_version": version.version})


@main.command(context_settings=CONTEXT)
@click.option("--name", required=True, help="Name of the registered model.")
@click.option("--version", default="", help="The candidate.")
@click.option("--rollback", is_flag=True, help="Make the previous champion the champion again.")
@click.option("--worst-group-margin", default=0.01, help="Worst-group AUROC may be lower by this.")
@click.option("--auroc-margin", default=0.01, help="Overall AUROC may be lower by this.")
@click.option("--equalized-odds-limit", default=0.3, help="Highest equalized odds difference.")
@click.option("--min-auroc", default=0.7, help="For a first version: lowest overall AUROC.")
@click.option("--min-worst-group-auroc", default=0.6, help="For a first version: worst group.")
def promote(name: str, version: str, rollback: bool, **limits: float) -> None:
    """Make a version the champion if it is not worse where it matters.

    Candidate and champion are compared on the same test images by a bootstrap over patients. Exit
    code 3 and the table of what failed when the gate says no.

    \b
    Example:
      fairtune promote --name fairtune-demo --version 2
    """
    from fairtune.tracking.gate import GateLimits
    from fairtune.tracking.gate import promote as run_promote
    from fairtune.tracking.gate import rollback as run_rollback

    if rollback == bool(version):
        raise InputError("give either --version N or --rollback")
    decision = (
        run_rollback(name) if rollback else run_promote(name, version, limits=GateLimits(**limits))
    )
    click.echo(decision.text)
    _result({"model_name": name, "model_version": decision.version, "outcome": decision.outcome})


@main.command(context_settings=CONTEXT)
@click.option("--name", required=True, help="Name of the registered model.")
@click.option(
    "--predictions", required=True, help="CSV or Parquet, as predictions/test.parquet is."
)
@click.option("--margin", default=0.05, help="A figure may be worse than registered by this.")
def monitor(name: str, predictions: str, margin: float) -> None:
    """Compare logged predictions with the champion's figures; exit code 3 when a limit is broken."""
    from fairtune.tracking.monitor import monitor as run_monitor

    report = run_monitor(predictions, name, margin=margin)
    click.echo(report.text)
    _result({"run_id": report.run_id, "model_version": report.version, "broken": report.broken})


@main.command(context_settings=CONTEXT)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", required=True, help="models:/NAME@champion, or the URL of a server.")
def predict(images: tuple[Path, ...], model: str) -> None:
    """Predict image files with a registered model, in this process or through a server.

    \b
    Example:
      fairtune predict --model models:/fairtune-demo@champion image.png
    """
    from fairtune.serving.client import predict_files

    rows = predict_files(model, images)
    for row in rows:
        click.echo(json.dumps(_plain(row)))
    _result({"model": model, "n": len(rows), "errors": sum(bool(r.get("error")) for r in rows)})


@main.command(context_settings=CONTEXT)
@click.option("--model", required=True, help="NAME (its champion), NAME/VERSION or a model URI.")
@click.option("--host", default="127.0.0.1", help="Address to listen on; this machine by default.")
@click.option("--port", default=5001, type=click.IntRange(0, 65535), help="0 takes a free port.")
@click.option("--workers", default=1, type=click.IntRange(1), help="Server processes.")
def serve(model: str, host: str, port: int, workers: int) -> None:
    """Serve a registered model over HTTP: /invocations, /ping, /health, /version."""
    from fairtune.serving.server import serve as run_server

    sys.exit(run_server(model, host=host, port=port, workers=workers))


@main.command(context_settings=CONTEXT)
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
        config = _config(config_path, (), "")
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
    _result(
        {
            "name": name,
            "images": len(done.manifest),
            "digest": done.manifest.digest,
            "store": str(done.store.path),
            "matches_official_counts": done.matches,
        }
    )


@main.command(context_settings=CONTEXT)
@config_options
@click.option("--images/--no-images", default=True, help="Decode every image as well.")
def doctor(
    config_path: str, overrides: tuple[str, ...], override_text: str, source: str, images: bool
) -> None:
    """Say what would go wrong before any training does. Exit code 3 when something would."""
    config = _config(config_path, overrides, override_text)
    from fairtune.data import diagnose, load_dataset

    manifest = load_dataset(config.data.name, source or None, **config.data.options)
    findings = diagnose(manifest.select(config.data.attributes), images=images)
    for finding in findings:
        click.echo(f"{finding.level:8}{finding.check:10} {finding.message}")
    errors = sum(finding.level == "error" for finding in findings)
    click.echo(f"{errors} errors, {len(findings) - errors} warnings")
    _result({"errors": errors, "warnings": len(findings) - errors})
    if errors:
        sys.exit(3)


@main.command(context_settings=CONTEXT)
@config_options
def spaces(config_path: str, overrides: tuple[str, ...], override_text: str, source: str) -> None:
    """List the mask spaces and how many bits each has for the configured model."""
    config = _config(config_path, overrides, override_text)
    from fairtune.peft import SPACES, build_model

    model = build_model(config.model.architecture, num_classes=2, options=config.model.options)
    for name in sorted(SPACES):
        try:
            bits = f"{SPACES[name].n_bits(model):5} bits"
        except InputError:
            bits = "does not fit"
        click.echo(f"{name:34}{bits:14}{SPACES[name].summary}")


@main.command(context_settings=CONTEXT)
@config_options
@click.option("--output", required=True, type=click.Path(path_type=Path), help="File to write.")
def pretrain(
    config_path: str, overrides: tuple[str, ...], override_text: str, source: str, output: Path
) -> None:
    """Train a model from scratch on a source task and write its weights without the head."""
    config = _config(config_path, overrides, override_text)
    from fairtune.pretraining import pretrain as run_pretrain

    done = run_pretrain(config, source or None, output)
    _result(
        {
            "path": str(done.path),
            "bytes": done.bytes,
            "base_hash": done.base_hash,
            "metrics": {"val/accuracy": done.accuracy},
        }
    )
