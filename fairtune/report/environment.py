"""How pages are filled in: names from the data are escaped, and what is missing is an error."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from fairtune.report.style import inline_svg

TEMPLATES = Path(__file__).with_name("templates")


def environment() -> jinja2.Environment:
    """Return the environment of the report's templates."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["svg"] = lambda drawing: Markup(inline_svg(drawing))
    return made
