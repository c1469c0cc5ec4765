"""The command that compares methods: compare."""

from __future__ import annotations

import click

from fairtune.cli._common import all_overrides, command, option, print_result
from fairtune.errors import InputError


@command
@option(
    "--config",
    "config_path",
    default="",
    help="YAML file of a comparison, as in configs/compare/; not needed with --resume.",
)
@option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key in the configuration of every task: -o train.epochs=3. Repeatable.",
)
@option(
    "--overrides",
    "override_text",
    default="",
    help="The same in one string, separated by spaces, as MLproject passes it.",
)
@option("--source", default="", help="Folder with the official download, for all tasks.")
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
    """
    from fairtune.comparison.compare import compare as run_compare
    from fairtune.comparison.compare import settings_of
    from fairtune.comparison.settings import load_comparison
    from fairtune.interrupt import handle_signals
    from fairtune.tracking.runs import existing_run

    changes = all_overrides(overrides, override_text)
    if folds:
        changes = (*changes, f"data.folds={folds}")
    if config_path:
        comparison = load_comparison(config_path, changes)
    elif resume:
        if changes:
            raise InputError("a comparison goes on as it began: give no -o and no --folds here")
        comparison = settings_of(existing_run(resume))
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
