"""Commands that train: search, finetune, evaluate."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from fairtune.cli._common import (
    command,
    config_options,
    leave_report,
    option,
    print_result,
    read_config,
)
from fairtune.cli.comparing import cross_test, with_folds

if TYPE_CHECKING:
    from fairtune.search.search import SearchOutcome

DRY_RUN = option(
    "--dry-run",
    is_flag=True,
    help="Train nothing: show the configuration, parameters, and the time and memory it will take.",
)


FOLDS = option(
    "--folds",
    default=0,
    help="Cross-testing: once in each of this many folds of patients, 3 or more; 0 = the data set's "
    "own splits. Each fold's test part is read once.",
)
COUNTS = ("parameters", "trained")


def _bits(mask: Any) -> str:
    return f"{mask.text} ({mask.space})" if mask.text else str(mask.space)


@command
@config_options
@option("--resume", default="", metavar="RUN_ID", help="Continue a search that was cut off.")
@FOLDS
@DRY_RUN
def search(
    config_path: str,
    overrides: tuple[str, ...],
    override_text: str,
    source: str,
    resume: str,
    folds: int,
    dry_run: bool,
) -> None:
    """Search for the mask that is fairest on validation; register the winner.

    \b
    Example:
      fairtune search --config configs/ham10000_age.yaml --source data/ham10000 -o search.trials=12
    """
    config = read_config(config_path, (*with_folds(folds), *overrides), override_text)
    if dry_run:
        return _dry_run(config, source, None)
    if len(config.data.tested_folds) > 1:
        return cross_test(config, source, "search", resume=resume)
    from fairtune.interrupt import handle_signals
    from fairtune.report.table import comparison_table
    from fairtune.search.search import search as run_search

    with handle_signals() as stop:
        outcome = run_search(config, source or None, stop, resume=resume or None)
    mask = outcome.mask
    click.echo()
    click.echo(f"mask           {_bits(mask)}, learning rate {outcome.learning_rate:g}")
    click.echo(f"trains         {mask.trained:,} of {mask.total:,} parameters ({mask.share:.1%})")
    click.echo()
    click.echo(comparison_table(outcome.comparison))
    click.echo("Mean ± standard error over seeds; the test split was read once.")
    click.echo()
    for line in registered(outcome):
        click.echo(line)
    leave_report(outcome.run_id)
    click.echo("see the runs   mlflow ui")
    print_result(outcome.summary())


def registered(outcome: SearchOutcome) -> list[str]:
    """Say where the winner is registered, and what to do with it next."""
    version, alias = outcome.version, outcome.alias
    if version is None:
        return []
    uri = f"models:/{version.name}@{alias}" if alias else version.uri
    serve = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-p", "5001"]
    promote = ["fairtune", "promote", version.name, "--version", version.version]
    return [
        f"registered     {version.name} version {version.version}, {alias or 'not the champion'}",
        *([] if alias else [f"promote it     {shlex.join(promote)}"]),
        f"serve it       {shlex.join(serve)}",
    ]


@command
@config_options
@option("--bits", default="", help="Mask bits of the configured space, as runs show them.")
@FOLDS
@DRY_RUN
@option("--profile", is_flag=True, help="Show where the time goes; leave a trace in the run.")
def finetune(
    config_path: str,
    overrides: tuple[str, ...],
    override_text: str,
    source: str,
    bits: str,
    folds: int,
    dry_run: bool,
    profile: bool,
) -> None:
    """Fine-tune once under one mask, judged on validation.

    \b
    Examples:
      fairtune finetune -o search.space=fullft
      fairtune finetune -o search.space=auto_peft1 --bits 101000111000010110
    """
    config = read_config(config_path, (*with_folds(folds), *overrides), override_text)
    from fairtune.interrupt import handle_signals
    from fairtune.search.single import fine_tune_once, parse_bits

    if dry_run:
        return _dry_run(config, source, parse_bits(bits))
    if len(config.data.tested_folds) > 1:
        return cross_test(config, source, "finetune", bits=parse_bits(bits))
    with handle_signals() as stop:
        run_id, mask, metrics = fine_tune_once(
            config, source or None, parse_bits(bits), stop, profile=profile
        )
    if profile:
        from fairtune.search.trial import PROFILE, TRACE
        from fairtune.tracking.runs import existing_run

        log = existing_run(run_id)
        click.echo(log.read_text(PROFILE))
        if any(file.path == TRACE for file in log.client.list_artifacts(run_id, "profile")):
            click.echo(f"trace          {TRACE} in the run's artifacts: ui.perfetto.dev")
    print_result({"run_id": run_id, "mask": mask.text or mask.space, "metrics": metrics})


def _dry_run(config: Any, source: str, bits: tuple[int, ...] | None) -> None:
    from fairtune.comparison.crosstest import fold_config
    from fairtune.search.estimate import estimate

    folds = config.data.tested_folds
    first = fold_config(config, 0) if len(folds) > 1 else config
    found = estimate(first, source or None, bits=bits, times=len(folds))
    click.echo(config.to_yaml())
    click.echo(found.parts.to_string(index=False, formatters=dict.fromkeys(COUNTS, "{:,}".format)))
    click.echo()
    for line in found.lines():
        click.echo(line)
    print_result(found.summary())


@command
@option("--run-id", required=True, help="A finished search, trial or fine-tune.")
@option("--source", default="", help="Where the data is, if not where it was.")
def evaluate(run_id: str, source: str) -> None:
    """Evaluate a run's model on train, validation and test; the test split is read once.

    Asked again, the figures of the first time are shown.

    \b
    Example:
      fairtune evaluate --run-id RUN_ID
    """
    from fairtune.search.single import evaluate_once

    print_result({"run_id": run_id, "metrics": evaluate_once(run_id, source or None)})
