"""Write the results in docs/evidence.md anew, from the comparisons in the tracking store.

The page has a part for each comparison, between two marks. Each is filled with the tables and figures of the
latest run of that comparison; parts without a run in the store stay as they are. Nothing is trained.

    fairtune compare --config configs/compare/demo.yaml
    python -m benchmarks.evidence
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

import mlflow
import pandas as pd

DOCS = Path(__file__).parents[1] / "docs"
PART = re.compile(r"(<!-- begin (?P<name>\S+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)
FIGURES = {
    "trade-off": "Overall and worst-group AUROC on test, 95 % intervals",
    "generalisation-gap": "AUROC gap between groups on train, validation and test",
    "critical-difference": "Average ranks by test worst-group AUROC",
}
PROTOCOLS = {"finetune": "published split", "crosstest": "five folds, pooled"}


def latest(where: str) -> list[pd.Series]:
    """Return the runs that fit, the latest first."""
    found = mlflow.search_runs(search_all_experiments=True, filter_string=where)
    return [row for _, row in found.iterrows()]


def comparison_part(name: str, figures: Path) -> str | None:
    """Return what the latest comparison of this name says; its figures are copied beside the page."""
    from fairtune.tracking.runs import existing_run

    runs = latest(f"tags.`fairtune.comparison` = '{name}'")
    runs = [run for run in runs if run.get("metrics.units_finished", 0) > 0]
    if not runs:
        return None
    log = existing_run(runs[0]["run_id"])
    units = pd.read_csv(log.client.download_artifacts(log.run_id, "units.csv"))
    done = units[units["status"] == "FINISHED"]
    minutes = done["minutes"].median()  # a unit that was cut off and went on counts the break
    parts = [
        log.read_text("table.md").strip().replace("\n### ", "\n#### "),  # the part has a heading
        f"Run: {len(done)} of {runs[0]['metrics.units_total']:.0f} units, "
        f"{minutes:.1f} minutes a unit (median, from start to end): some {minutes * len(done) / 60:.1f} "
        "hours of one worker.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = log.download("figures", folder)
        for kind, caption in FIGURES.items():
            for path in sorted(source.glob(f"{kind}*.svg")):
                figures.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, figures / f"{name}-{path.name}")
                parts.append(f"![{caption}]({figures.name}/{name}-{path.name})")
    return "\n\n".join(parts)


def noise_part() -> str | None:
    """Return how sure the worst group's AUROC is under both protocols, of the latest runs of each."""
    from fairtune.comparison.folds import report_of
    from fairtune.fairness import bootstrap_report
    from fairtune.tracking.predictions import groups_of, probabilities_of, read_predictions
    from fairtune.tracking.runs import existing_run

    rows = []
    for kind, title in PROTOCOLS.items():
        about = f"tags.`fairtune.kind` = '{kind}' and tags.`fairtune.dataset` = 'ham10000'"
        runs = latest(f"{about} and metrics.`test/auroc` > 0")
        nested = "tags.mlflow.parentRunId"
        runs = [run for run in runs if nested not in run or not isinstance(run[nested], str)]
        if not runs:
            return None
        with tempfile.TemporaryDirectory() as folder:
            log = existing_run(runs[0]["run_id"])
            table = read_predictions(log.download("predictions/test.parquet", folder))
        scores, groups = probabilities_of(table), groups_of(table)
        spread = bootstrap_report(table["label"], scores, groups, table["patient"])
        report = report_of(table)
        cells = next(iter(report.groups.values()))
        worst = min(cells, key=lambda group: cells[group].values["auroc"])
        found = spread["worst_group_auroc"]
        rows.append(
            f"| {title} | {len(table):,} | {worst} | {cells[worst].n:,} | {cells[worst].n_positive:,} "
            f"| {found.estimate:.3f} | {found.standard_error:.3f} | [{found.low:.3f}, {found.high:.3f}] |"
        )
    head = "| protocol | test images | worst group | its images | positive | AUROC | standard error | 95 % |"
    return "\n".join([head, "| --- " * 8 + "|", *rows])


def main(arguments: list[str] | None = None) -> None:
    """Fill the parts of the page that the store has runs for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--page", type=Path, default=DOCS / "evidence.md", help="the page")
    page = parser.parse_args(arguments).page
    text = page.read_text()
    for match in list(PART.finditer(text)):
        name = match["name"]
        found = noise_part() if name == "noise" else comparison_part(name, page.parent / "evidence")
        if found is None:
            sys.stderr.write(f"{name}: no run in {mlflow.get_tracking_uri()}; left as it is\n")
            continue
        text = text.replace(match[0], f"{match[1]}\n{found}\n\n{match[3]}")
        sys.stderr.write(f"{name}: written\n")
    page.write_text(text)


if __name__ == "__main__":
    main()
