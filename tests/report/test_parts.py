"""The parts of the report that compute something."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report.samples import mask_of, shapes
from safetensors.numpy import save_file

from fairtune.fairness import get_objective, paired_bootstrap
from fairtune.report.answer import verdict
from fairtune.report.description import plain
from fairtune.report.group_figures import reliability
from fairtune.report.mask import Cell, _cells_by_size, place_of, read_shapes
from fairtune.report.search_figures import parallel
from fairtune.report.style import COLOURS, GRID, MAX_NAME, PAPER, SERIES, line_style, short
from fairtune.report.trials import (
    FINISHED,
    Trials,
    bit_effects,
    bits_on,
    component_of,
    pareto_front,
)


def test_the_front_is_what_no_point_beats() -> None:
    x = [0.9, 0.8, 0.7, 0.9, 0.6, math.nan]
    y = [0.5, 0.7, 0.6, 0.4, 0.9, 1.0]
    assert pareto_front(x, y) == [4, 1, 0]
    assert pareto_front([], []) == []
    assert pareto_front([0.5, 0.5], [0.5, 0.5]) == [0]


def test_a_bit_effect_is_the_difference_of_means_with_its_error() -> None:
    bits = pd.DataFrame({"a": [1, 1, 0, 0], "b": [1, 1, 1, 1], "c": [4, 0, 0, 0]})
    effects = bit_effects(bits, pd.Series([0.8, 0.6, 0.5, 0.3]))
    assert effects.loc["a", "effect"] == pytest.approx(0.3)
    assert effects.loc["a", "se"] == pytest.approx(math.sqrt(0.02 / 2 + 0.02 / 2))
    assert (effects.loc["a", "n_on"], effects.loc["a", "n_off"]) == (2, 2)
    assert math.isnan(effects.loc["b", "effect"])  # never off: nothing to compare
    assert effects.loc["c", "effect"] == pytest.approx(0.8 - 1.4 / 3)
    assert math.isnan(effects.loc["c", "se"])  # one trial has no spread


def test_bits_are_counted_by_what_they_stand_for() -> None:
    bits = pd.DataFrame(
        {"blocks.00.attn": [1, 0], "blocks.01.attn": [8, 0], "blocks.01.mlp": [0, 1]}
    )
    assert bits_on(bits).to_dict("list") == {"attn": [2, 0], "mlp": [0, 1]}
    assert component_of("blocks.03") == "block"
    assert component_of("blocks.03.attn.qkv") == "attn.qkv"
    assert component_of("patch_embed") == "patch_embed"


def test_components_whose_names_begin_alike_have_an_axis_each() -> None:
    names = ["downsample.0.weight", "downsample.1.weight", "downsample.1.bias"]
    bits = pd.DataFrame([[1, 0, 1], [0, 1, 1], [1, 1, 0]], columns=[f"layer2.0.{n}" for n in names])
    figures = {key: [0.7, 0.8, 0.9] for key in ("value", "auroc", "worst_group_auroc", "share")}
    table = pd.DataFrame({**figures, "status": FINISHED, "learning_rate": [1e-3, 2e-3, 3e-3]})
    drawing = parallel(Trials(table, bits, {}), get_objective("worst_group_auroc"))
    (axes,) = drawing.figure.axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert len(set(labels)) == len(labels) == 7
    assert labels[0] == "downsample.\n0.\nweight"
    assert "log10\nlearning\nrate" in labels
    assert all(name in drawing.alt for name in names)


@pytest.mark.parametrize(
    ("parameter", "shape", "place"),
    [
        ("blocks.3.attn.qkv.weight", (8, 8), ("blocks.3", "attn")),
        ("blocks.3.norm1.bias", (8,), ("blocks.3", "norm1")),
        ("blocks.3.ls1.gamma", (8,), ("blocks.3", "other")),
        ("layer2.0.conv1.weight", (8, 8, 3, 3), ("layer2", "conv")),
        ("layer2.0.downsample.1.weight", (8,), ("layer2", "norm")),
        ("blocks.1.0.conv_dw.weight", (8, 1, 3, 3), ("blocks.1", "conv")),
        ("blocks.1.0.bn1.weight", (8,), ("blocks.1", "norm")),
        ("blocks.1.0.bn1.bias", (8,), ("blocks.1", "norm")),
        ("pos_embed", (1, 5, 8), ("outside the blocks", "pos_embed")),
        ("head.weight", (2, 8), ("outside the blocks", "head")),
    ],
)
def test_a_parameter_has_its_place_in_the_picture(
    parameter: str, shape: tuple[int, ...], place: tuple[str, str]
) -> None:
    assert place_of(parameter, shape) == place


def test_the_pieces_of_the_picture_add_up_to_the_mask() -> None:
    mask = mask_of([1, 0, 1, 0, 1, 0], 2)
    cells = _cells_by_size({"parameters": mask.parameters}, shapes(2))
    assert sum(cell.trained for cell in cells.values()) == mask.trained
    assert sum(cell.total for cell in cells.values()) == mask.total
    assert cells["blocks.0", "attn"].share == 0
    assert cells["blocks.1", "attn"].share == 1
    assert Cell(math.nan, math.nan, 8).share == 1


def test_shapes_are_read_from_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4)}, path, {"base_hash": "x"})
    whole = path.read_bytes()
    path.write_bytes(whole[: 8 + int.from_bytes(whole[:8], "little")])
    assert read_shapes(path) == {"a": (2, 3), "b": (4,)}


def test_reliability_leaves_thin_bins_out() -> None:
    score = np.array([0.05] * 10 + [1.0] * 6 + [0.55] * 4)
    labels = np.array([1] + [0] * 9 + [1] * 6 + [1] * 4)
    found = reliability(labels, score)
    assert found["n"].tolist() == [10, 6]
    assert found["observed"].tolist() == pytest.approx([0.1, 1.0])


def test_the_verdict_says_no_more_than_the_interval() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    groups = pd.DataFrame({"ward": np.where(np.arange(400) % 2, "a", "b")})

    def scores(skill: float) -> np.ndarray:
        p = 1 / (1 + np.exp(-(rng.normal(size=400) + skill * (labels - 0.5))))
        return np.stack([1 - p, p], axis=1)

    poor, good = scores(0.2), scores(4.0)
    up = paired_bootstrap(labels, poor, good, groups, None, n_resamples=100)["worst_group_auroc"]
    same = paired_bootstrap(labels, good, good, groups, None, n_resamples=100)["worst_group_auroc"]
    down = paired_bootstrap(labels, good, poor, groups, None, n_resamples=100)["worst_group_auroc"]
    assert "better side" in verdict(up)
    assert "do not settle" in verdict(same)
    assert "worse side" in verdict(down)


def test_markdown_shows_names_as_they_are() -> None:
    assert plain("a|b_*[x](y)\n<b>") == "a\\|b\\_\\*\\[x\\](y) &lt;b&gt;"


def test_names_in_figures_are_one_short_line() -> None:
    assert len(short("x" * 99)) == MAX_NAME
    assert short("a\nb\x00c") == "a b c"
    assert not short("_hidden").startswith("_")
    assert short("") == "(no name)"


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_and_lines_stand_out_from_the_paper(scheme: str) -> None:
    """WCAG 2.2 AA asks for 4.5 for text; the grid is decoration, the fill lies under text."""
    dark = scheme == "dark"
    shown = {light: pair[1] if dark else light for light, pair in COLOURS.items()}
    names = {pair[0]: shown[light] for light, pair in COLOURS.items()}
    for light, colour in shown.items():
        if light not in (PAPER, GRID) and names["fill"] != colour:
            assert contrast(colour, shown[PAPER]) >= 4.5, light
    assert contrast(names["ink"], names["fill"]) >= 4.5


def test_lines_differ_without_their_colour() -> None:
    styles = [line_style(i) for i in range(30)]
    assert len({(s["color"], str(s["linestyle"])) for s in styles}) == 30
    first = styles[: min(len(SERIES), 5)]
    assert len({str(s["linestyle"]) for s in first}) == len(first)
