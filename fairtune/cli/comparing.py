"""The command that compares methods: compare."""

from __future__ import annotations

from typing import Any

import click

from fairtune.cli._common import all_overrides, command, leave_report, option, print_result
from fairtune.errors import InputError


def with_folds(folds: int) -> tuple[str, ...]:
    """Return what ``--folds`` changes in a configuration."""
    return (f"data.folds={folds}", "data.fold=null") if folds else ()


def cross_test(
    config: Any, source: str, kind: Any, *, bits: tuple[int, ...] = (), resume: str = ""
) -> None:
    """Run a search or a fine-tune in every fold, and print the figures of all test parts together."""
    from fairtune.comparison.crosstest import cross_test as run_cross_test
    from fairtune.interrupt import handle_signals

    with handle_signals() as stop:
        done = run_cross_test(config, source or None, stop, kind, bits=bits, resume=resume or None)
    for name in ("auroc", "worst_group_auroc", "auroc_gap"):
        value, error = done.metrics[f"test/{name}"], done.metrics[f"test/{name}_standard_error"]
        mean = done.metrics[f"test/{name}_fold_mean"]
        click.echo(f"{name:20}{value:.3f} ± {error:.3f}   mean of the folds {mean:.3f}")
    leave_report(done.run_id)
    print_result({"run_id": done.run_id, "fold_runs": done.fold_runs, "metrics": done.metrics})


@command
@option(
    "--config",
    "config_path",
    default="",
    help="YAML file of a comparison, as in configs/compare/; not needed with --resume.",
    group="Configuration",
)
@option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key in the configuration of every task: -o train.epochs=3. Repeatable.",
    group="Configuration",
)
@option(
    "--overrides",
    "override_text",
    default="",
    help="The same in one string, separated by spaces, as MLproject passes it.",
    group="Configuration",
)
@option(
    "--source",
    default="",
    help="Folder with the official download, for all tasks.",
    group="Configuration",
)
@option("--folds", default=0, help="Cross-testing in this many folds, 3 or more; 0 = no.")
@option("--resume", default="", metavar="RUN_ID", help="Go on with a comparison.")
@option("--max-minutes", default=0.0, help="Start nothing after these; 0 = no limit.")
def compare(
    config_path: str,
    overrides: tuple[str, ...],
    override_text: str,
    source: str,
    folds: int,
    resume: str,
    max_minutes: float,
) -> None:
    """Compare methods under one protocol: methods x seeds x tasks, with the statistics.

    Resuming a finished comparison writes its tables and figures anew.

    \b
    Examples:
      fairtune compare --config configs/compare/demo.yaml
      fairtune compare --resume RUN_ID --max-minutes 60
      fairtune compare --resume RUN_ID -o search.executor=spark -o search.parallelism=8
    """
    from fairtune.comparison.compare import compare as run_compare
    from fairtune.comparison.compare import settings_of
    from fairtune.comparison.settings import load_comparison
    from fairtune.interrupt import handle_signals
    from fairtune.tracking.runs import existing_run

    changes = (*with_folds(folds), *all_overrides(overrides, override_text))
    if config_path:
        comparison = load_comparison(config_path, changes)
    elif resume:
        comparison = settings_of(existing_run(resume)).changed(changes)
    else:
        raise InputError("give --config configs/compare/demo.yaml, say, or --resume RUN_ID")
    with handle_signals() as stop:
        outcome = run_compare(
            comparison,
            source or None,
            stop,
            resume=resume or None,
            max_minutes=max_minutes or None,
        )
    click.echo(outcome.table)
    print_result(
        {
            "run_id": outcome.run_id,
            "finished": outcome.finished,
            "failed": outcome.failed,
            "total": outcome.total,
            "complete": outcome.complete,
        }
    )
