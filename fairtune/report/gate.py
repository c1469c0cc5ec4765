"""What the promotion gate decided about versions of a run, laid out for the page."""

from __future__ import annotations

from dataclasses import dataclass

from fairtune.report.sections import number
from fairtune.report.story import Story


@dataclass(frozen=True)
class DecisionTable:
    """One decision of the promotion gate: a sentence, and a row for each check."""

    sentence: str
    rows: list[tuple[str, str, str, str, str, str]]


def decision_tables(story: Story) -> list[DecisionTable]:
    """Lay out what the promotion gate decided."""

    def figure(value: float | None) -> str:
        return "" if value is None else number(value)

    tables = []
    for one in story.decisions:
        against = f"version {one['champion']}" if one["champion"] else "absolute limits"
        note = f" {one['note']}." if one["note"] else ""
        tables.append(
            DecisionTable(
                f"{one['time']}: {one['name']} version {one['version']} was "
                f"{str(one['outcome']).replace('_', ' ')}, compared with {against}"
                + (
                    f" on {one['n']:,} images of {one['n_patients']:,} patients."
                    if one["n"]
                    else "."
                )
                + note,
                [
                    (
                        str(check["rule"]).replace("_", " "),
                        figure(check["champion"]),
                        figure(check["candidate"]),
                        figure(check["judged"]),
                        figure(check["limit"]),
                        "kept" if check["passed"] else "broken",
                    )
                    for check in one["checks"]
                ],
            )
        )
    return tables
