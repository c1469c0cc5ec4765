"""The mask drawn as the model: blocks by components, trained or frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from fairtune.report.mask import OUTSIDE, Cell, ModelPicture
from fairtune.report.style import FAINT, FILL, INK, SERIES, Drawing, new_figure, short

ROW, TOP = 0.3, 1.0
TRAINED, PARTLY, FROZEN = "✓", "◐", "✗"


def mask_drawing(model: ModelPicture) -> Drawing | None:
    """Draw which piece of the model trains; None for a mask that says nothing of its pieces."""
    if not model.cells:
        return None
    rows = [row for row in model.rows if row != OUTSIDE]
    columns = [c for c in model.columns if any((row, c) in model.cells for row in rows)]
    outside = [c for c in model.columns if (OUTSIDE, c) in model.cells]
    heights = [max(len(rows), 1), *([max(1.0, 0.5 * len(outside))] if outside else [])]
    height = TOP + ROW * (len(rows) + len(outside)) + 0.5 * len(heights)
    figure, grid = new_figure(
        5.0,
        height,
        nrows=len(heights),
        squeeze=False,
        gridspec_kw={"height_ratios": [len(rows) or 1, len(outside)][: len(heights)]},
    )
    total = model.total if model.exact else math.nan
    _panel(grid[0, 0], [[model.cells.get((row, c)) for c in columns] for row in rows], total)
    _names(grid[0, 0], rows, columns)
    if outside:
        _panel(grid[1, 0], [[model.cells[OUTSIDE, c]] for c in outside], total)
        _names(grid[1, 0], outside, [OUTSIDE])
    figure.legend(
        handles=[
            Patch(facecolor=FILL, edgecolor=SERIES[0], label=f"{TRAINED} trained"),
            Patch(facecolor=FILL, edgecolor=SERIES[0], hatch="///", label=f"{PARTLY} in part"),
            Patch(facecolor="none", edgecolor=FAINT, label=f"{FROZEN} frozen"),
        ],
        loc="outside upper left",
        ncols=3,
        frameon=False,
    )
    shares = (
        "A piece's number is its share of all parameters."
        if model.exact
        else "The sizes of the frozen pieces are not known to this run, so the mask's bits are shown."
    )
    return Drawing(
        name="mask",
        title="What trains",
        alt=_alt(model),
        caption=f"{model.trained:,} of {model.total:,} parameters train ({model.share:.1%}). {shares}",
        figure=figure,
    )


def _panel(axes: Axes, cells: Sequence[Sequence[Cell | None]], total: float) -> None:
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            if cell is None:
                continue
            on = cell.share > 0
            axes.add_patch(
                Rectangle(
                    (x + 0.03, y + 0.06),
                    0.94,
                    0.88,
                    facecolor=FILL if on else "none",
                    edgecolor=SERIES[0] if on else FAINT,
                    hatch="///" if 0 < cell.share < 1 else None,
                    linewidth=1,
                )
            )
            text = _text(cell, total)
            axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=9, color=INK)


def _text(cell: Cell, total: float) -> str:
    if cell.bit is not None:
        return f"{FROZEN} frozen" if cell.bit == 0 else f"{TRAINED} {_rank(cell.bit)}"
    sign = TRAINED if cell.share == 1 else FROZEN if cell.share == 0 else PARTLY
    share = cell.total / total if total else 0.0
    return f"{sign} {share:.1%}" if share >= 0.001 else f"{sign} <0.1%"


def _rank(bit: int) -> str:
    return "trained" if bit == 1 else f"rank {bit}"


def _names(axes: Axes, rows: list[str], columns: list[str]) -> None:
    axes.set(xlim=(0, max(len(columns), 1)), ylim=(max(len(rows), 1), 0))
    axes.set_xticks([i + 0.5 for i in range(len(columns))], [short(c, 20) for c in columns])
    axes.set_yticks([i + 0.5 for i in range(len(rows))], [short(row, 18) for row in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _alt(model: ModelPicture) -> str:
    """Say in words which rows of which column train."""
    said = []
    for column in model.columns:
        rows = [row for row in model.rows if (row, column) in model.cells]
        on = [row for row in rows if model.cells[row, column].share > 0]
        if rows == [OUTSIDE]:
            said.append(f"{column} {'trained' if on else 'frozen'}")
        else:
            listed = ", ".join(row.rpartition(".")[2] for row in on)
            said.append(f"{column} trains in {len(on)} of {len(rows)} ({listed or 'none'})")
    return f"{model.share:.1%} of the parameters of {model.architecture} train: {'; '.join(said)}."
