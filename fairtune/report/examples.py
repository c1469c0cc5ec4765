"""Example images of every group, laid out for the page."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from fairtune.report.story import Story


@dataclass(frozen=True)
class ExampleTable:
    """Example images of one attribute: groups by classes; a cell is a data URI with its number."""

    attribute: str
    classes: list[str]
    rows: list[tuple[str, list[tuple[str, int] | None]]]


def example_tables(story: Story) -> list[ExampleTable]:
    """Lay out the example images of each attribute."""
    tables = []
    for attribute in dict.fromkeys(one.attribute for one in story.examples):
        mine = [one for one in story.examples if one.attribute == attribute]
        classes = list(dict.fromkeys(one.label for one in mine))
        cells = {
            (one.group, one.label): (
                f"data:image/jpeg;base64,{base64.b64encode(one.jpeg).decode()}",
                one.n,
            )
            for one in mine
        }
        groups = dict.fromkeys(one.group for one in mine)
        rows = [(group, [cells.get((group, name)) for name in classes]) for group in groups]
        tables.append(ExampleTable(attribute, classes, rows))
    return tables
