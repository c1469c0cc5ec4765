"""Commands about what training gave: report, register, promote, monitor."""

from __future__ import annotations

import click

from fairtune.cli._common import command, option, print_result
from fairtune.errors import InputError


@command
@click.argument("run", metavar="RUN_ID", default="")
@option("--run-id", default="", help="The same, as MLproject passes it.")
@option("--output", default="", help="Folder for report.html and figures/, beside the run.")
def report(run: str, run_id: str, output: str) -> None:
    """Write the report of a run: one HTML file, also an artifact that the tracking UI shows.

    Of a search, a trial, a fine-tune, a cross-test, a comparison or a monitored batch; of a fine-tune
    that was evaluated it is about the test split, and of a promoted model it tells the gate's decision.

    \b
    Example:
      fairtune report RUN_ID --output report
    """
    run_id = _given_once("RUN_ID", run, run_id)
    from fairtune.report import write_report

    path = write_report(run_id, output or None)
    print_result({"run_id": run_id, "report": str(path)})


@command
@click.argument("run", metavar="RUN_ID", default="")
@option("--run-id", default="", help="The same, as MLproject passes it.")
@option("--name", required=True, help="Name of the registered model.")
@option("--alias", default="", help="Alias for the new version; `promote` sets champion.")
@option("--source", default="", help="Where the data is, if not where it was.")
def register(run: str, run_id: str, name: str, alias: str, source: str) -> None:
    """Register the model of a finished search, trial or fine-tune.

    Its figures on the test split become tags of the version.

    \b
    Example:
      fairtune register RUN_ID --name skin
    """
    run_id = _given_once("RUN_ID", run, run_id)
    from fairtune.search.single import register_run
    from fairtune.tracking.runs import store_in_use

    with store_in_use():
        version = register_run(run_id, name, source or None, alias=alias or None)
    click.echo(f"registered {version.name} version {version.version}")
    print_result({"run_id": run_id, "model_name": name, "model_version": version.version})


@command
@click.argument("model", metavar="NAME", default="")
@option("--name", default="", help="The same, as MLproject passes it.")
@option("--version", default="", help="The candidate.")
@option(
    "--rollback",
    is_flag=False,
    flag_value="true",
    default=False,
    type=bool,
    help="Make the previous champion the champion again.",
)
@option(
    "--worst-group-margin",
    default=0.01,
    help="Worst-group AUROC may be lower by this.",
    group="Limits",
)
@option("--auroc-margin", default=0.01, help="Overall AUROC may be lower by this.", group="Limits")
@option(
    "--equalized-odds-limit", default=0.3, help="Highest equalized odds difference.", group="Limits"
)
@option(
    "--min-auroc", default=0.7, help="For a first version: lowest overall AUROC.", group="Limits"
)
@option(
    "--min-worst-group-auroc", default=0.6, help="For a first version: worst group.", group="Limits"
)
def promote(model: str, name: str, version: str, rollback: bool, **limits: float) -> None:
    """Make a version of a registered model the champion if it is not worse where it matters.

    Candidate and champion are compared on the same test images by a bootstrap over patients. Exit
    code 3 and the table of what failed when the gate says no.

    \b
    Examples:
      fairtune promote fairtune-demo --version 2
      fairtune promote fairtune-demo --rollback
    """
    name = _given_once("NAME", model, name)
    from fairtune.tracking.gate import GateLimits
    from fairtune.tracking.gate import promote as run_promote
    from fairtune.tracking.gate import rollback as run_rollback
    from fairtune.tracking.runs import store_in_use

    if rollback == bool(version):
        raise InputError("give either --version N or --rollback")
    with store_in_use():
        decision = (
            run_rollback(name)
            if rollback
            else run_promote(name, version, limits=GateLimits(**limits))
        )
    click.echo(decision.text)
    print_result(
        {"model_name": name, "model_version": decision.version, "outcome": decision.outcome}
    )


@command
@option("--name", required=True, help="Name of the registered model.")
@option("--predictions", required=True, help="CSV or Parquet, as predictions/test.parquet is.")
@option("--margin", default=0.05, help="A figure may be worse than registered by this.")
def monitor(name: str, predictions: str, margin: float) -> None:
    """Compare logged predictions with the champion's figures; exit code 3 when a limit is broken.

    \b
    Example:
      fairtune monitor --name skin --predictions week-12.parquet
    """
    from fairtune.tracking.monitor import monitor as run_monitor
    from fairtune.tracking.runs import store_in_use

    with store_in_use():
        report = run_monitor(predictions, name, margin=margin)
    click.echo(report.text)
    print_result(
        {"run_id": report.run_id, "model_version": report.version, "broken": report.broken}
    )


def _given_once(what: str, argument: str, option: str) -> str:
    """Return what was given either as an argument or, as MLproject passes it, as an option."""
    if argument and option:
        raise click.UsageError(f"give {what} once")
    if not argument and not option:
        raise click.UsageError(f"Missing argument '{what}'")
    return argument or option
