"""How every figure looks, and how it gets into a page that may be light or dark.

Figures are drawn in the light colours. Inside the page each of these colours is replaced by a CSS
variable, so that the reader's colour scheme decides; the files beside the page keep the light ones.
Colour never carries meaning alone: lines differ by dashes and markers too, areas by hatching.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Light colour, dark colour, CSS variable. All have a contrast of at least 4.5 (lines: 3) against
# white and #14181d; no two light colours are alike, as they are told apart by their code.
INK = "#1d2530"
FAINT = "#5a6572"
GRID = "#dde2e8"
PAPER = "#fffffe"
SERIES = ("#0b5cad", "#b04a00", "#006f52", "#8a2f94", "#7d5a00", "#4f5a66")
FILL = "#a9c8e8"
COLOURS = {
    INK: ("ink", "#e6eaef"),
    FAINT: ("faint", "#a9b4c0"),
    GRID: ("grid", "#343c46"),
    PAPER: ("paper", "#14181d"),
    SERIES[0]: ("series-1", "#74b6f7"),
    SERIES[1]: ("series-2", "#ff9f66"),
    SERIES[2]: ("series-3", "#52cfa6"),
    SERIES[3]: ("series-4", "#dd9bea"),
    SERIES[4]: ("series-5", "#e3c35a"),
    SERIES[5]: ("series-6", "#b9c4cf"),
    FILL: ("fill", "#1f5688"),
}
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MAX_NAME = 28

RC: Any = {
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.7,
    "legend.facecolor": PAPER,
    "legend.edgecolor": GRID,
    "legend.framealpha": 0.9,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "path.simplify": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "fairtune",  # the same run gives the same file
    "text.color": INK,
    "text.parse_math": False,  # a `$` in a group's name is a letter
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Drawing:
    """A figure with all that a page says about it."""

    name: str
    """File name without ending; unique in a report."""
    title: str
    alt: str
    """What the figure shows, with its numbers, for those who do not see it."""
    caption: str
    figure: Figure
    wide: bool = False
    """Whether it needs the page's whole width."""


@contextmanager
def look() -> Iterator[None]:
    """Draw and save in the report's style; the caller's settings come back afterwards."""
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        # Names in scripts that the font lacks: the page has them as text, the PNG as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def new_figure(width: float = 5.0, height: float = 3.6, **grid: Any) -> tuple[Figure, Any]:
    """Make a figure in inches without touching any global state; returns it and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**grid)


def short(name: object, length: int = MAX_NAME) -> str:
    """Return a name as a figure can show it: one line, not too long, legal in XML."""
    text = "".join(c if c.isprintable() else " " for c in str(name)).strip() or "(no name)"
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    return f" {text}" if text.startswith("_") else text  # a legend would hide it


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dashes of the index-th line: no two of the first thirty are alike."""
    return {
        "color": SERIES[index % len(SERIES)],
        "linestyle": DASHES[(index + index // len(SERIES)) % len(DASHES)],
    }


def legend_below(axes: Axes, **options: Any) -> None:
    """Put a legend under the axes, where it hides nothing."""
    figure = axes.figure
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower left", frameon=False, **options
    )
    if (own := axes.get_legend()) is not None:
        own.remove()


def save(drawing: Drawing, folder: Path) -> list[Path]:
    """Write a drawing as PNG and SVG, on white; returns the files."""
    paths = [folder / f"{drawing.name}.{ending}" for ending in ("png", "svg")]
    with look():
        for path in paths:
            drawing.figure.savefig(path, dpi=150, facecolor="white", metadata=_metadata(path))
    return paths


def inline_svg(drawing: Drawing) -> str:
    """Return a drawing as SVG to stand in a page: named, scalable, in the page's colours."""
    buffer = io.BytesIO()
    with look():
        drawing.figure.savefig(
            buffer, format="svg", transparent=True, metadata=_metadata(Path("x.svg"))
        )
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several figures in one page must not share ids.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{drawing.name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{drawing.name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{drawing.name}-\1"', text)
    for colour, (variable, _) in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0]
    opening = (
        f'<svg viewBox="0 0 {width} {height}" role="img" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'aria-labelledby="{drawing.name}-title {drawing.name}-alt" '
        f'style="max-width:{float(width) * 4 / 3:.0f}px">'
        f'<title id="{drawing.name}-title">{_escape(drawing.title)}</title>'
        f'<desc id="{drawing.name}-alt">{_escape(drawing.alt)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)


def _metadata(path: Path) -> dict[str, None]:
    """Leave out the date."""
    return {"Date": None} if path.suffix == ".svg" else {}


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
