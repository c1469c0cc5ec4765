"""What was held against limits: by the promotion gate, or after deployment; laid out for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairtune.report.sections import number
from fairtune.report.story import Story
from fairtune.tracking.gate import ROLLED_BACK


@dataclass(frozen=True)
class DecisionTable:
    """One decision: a sentence, and a row for each figure that was held against a limit."""

    sentence: str
    rows: list[tuple[str, str, str, str, str, str]]
    figures: tuple[str, str] = ("Champion", "Candidate")
    """What the first two figures of a row are of."""


def decision_tables(story: Story) -> list[DecisionTable]:
    """Lay out what the promotion gate decided, or what monitoring found."""

    def figure(value: float | None) -> str:
        return "" if value is None else number(value)

    tables = _watched(story)
    for one in story.decisions:
        tables.append(
            DecisionTable(
                _sentence(one),
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


def _sentence(one: Mapping[str, Any]) -> str:
    """Say what was decided about which version, and against what."""
    head = f"{one['time']}: {one['name']} version {one['version']}"
    champion = f"version {one['champion']}" if one["champion"] else ""
    note = f" {one['note']}." if one["note"] else ""
    if one["outcome"] == ROLLED_BACK:
        return f"{head} is the champion again{f', was {champion}' if champion else ''}.{note}"
    n = f" on {one['n']:,} images of {one['n_patients']:,} patients" if one["n"] else ""
    outcome = str(one["outcome"]).replace("_", " ")
    return f"{head} was {outcome}, compared with {champion or 'absolute limits'}{n}.{note}"


def _watched(story: Story) -> list[DecisionTable]:
    """Lay out the limits of a monitoring run as one decision; none for other runs."""
    if story.watches is None:
        return []
    rows = [
        (
            str(watch["metric"]).replace("_", " "),
            number(watch["registered"]),
            number(watch["now"]),
            number(watch["bound"]),
            number(watch["limit"]),
            str(watch["state"]),
        )
        for watch in story.watches.to_dict("records")
    ]
    model = story.run.data.tags.get("fairtune.model", "the model").replace("/", " version ")
    sentence = f"Figures of {model} as registered and on the logged predictions."
    return [DecisionTable(sentence, rows, ("Registered", "Now"))]
