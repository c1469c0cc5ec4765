"""`fairtune init`: from a folder of images and a table to a configuration that reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fairtune.cli import main
from fairtune.config import load_config
from fairtune.data import load_dataset
from fairtune.fairness import check_groups, get_objective
from fairtune.starting.look import edges_of, likely_positive, look
from fairtune.starting.settle import image_size

N = 160


def write_images(folder: Path, *, inside: str = "pictures", **columns: object) -> Path:
    """Write small images in a folder of their own, and a table that names them without suffix."""
    (folder / inside).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(N):
        pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / inside / f"{i:03d}.png")
    table = {
        "file": [f"{i:03d}" for i in range(N)],
        "patient_id": [f"p{i // 2}" for i in range(N)],
        "diagnosis": rng.choice(["benign", "malignant"], N),
        "ward": rng.choice(["north", "south"], N),
        "weight": rng.integers(40, 110, N),
        **columns,
    }
    pd.DataFrame(table).to_csv(folder / "patients.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("own"))


def init(folder: Path, *flags: str, answers: str | None = None) -> Result:
    return CliRunner().invoke(main, ["init", "--source", str(folder), *flags], input=answers)


def test_the_table_is_understood(images: Path) -> None:
    sight = look(images)
    assert (sight.image, sight.suffix, sight.root.name) == ("file", ".png", "pictures")
    assert (sight.label, sight.patient, sight.split) == ("diagnosis", "patient_id", None)
    assert {column.name for column in sight.candidates} == {"ward", "weight"}
    assert sight.side == 20


def test_what_is_written_reads_the_data(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--attribute", "ward", "--attribute", "weight:60,80", "--name", "my skin"]
    result = init(images, *flags)
    assert result.exit_code == 0, result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["images"] == N
    config = load_config(tmp_path / last["config"])
    manifest = load_dataset("folder", Path(last["source"]), **config.data.options)
    assert manifest.attributes == ("ward", "weight")
    assert list(manifest.table["weight"].cat.categories) == ["<=60", "60-80", ">80"]
    assert manifest.classes == ("benign", "malignant")
    assert config.register_as.name == "my-skin"
    objective = get_objective(config.search.objective)
    check_groups(manifest.table["label"], manifest.groups(), objective)
    assert manifest.table.groupby("patient")["split"].nunique().max() == 1


def test_questions_are_asked_where_someone_answers(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fairtune.cli.start.is_terminal", lambda: True)
    # image, label, positive class, attributes, patient, split
    result = init(images, answers="\n\nbenign\nward weight:70\n\n\n")
    assert result.exit_code == 0, result.stderr
    assert "weight (" in result.stderr
    config = load_config(tmp_path / "fairtune.yaml")
    assert config.data.options["classes"] == ["malignant", "benign"]
    assert config.data.attributes == ("ward", "weight")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "name with --attribute the columns to judge fairness by (fitting: ward (2 values"),
        (("--attribute", "wrad"), "has no column 'wrad' (columns: file, patient_id"),
        (("--attribute", "weight:a"), "edges are numbers, as in weight:40,60"),
        (("--attribute", "ward", "--positive", "ill"), "no row has 'ill' in column 'diagnosis'"),
        (("--attribute", "ward", "--table", "no.csv"), "no table 'no.csv'"),
        (("--attribute", "ward", "--label-column", "x"), "has no column 'x'"),
    ],
)
def test_what_cannot_be_told_is_said_in_one_line(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = init(images, *flags)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_by_force(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fairtune.yaml").write_text("mine")
    refused = init(images, "--attribute", "ward")
    assert refused.exit_code == 2
    assert "give --output another name, or --force" in refused.stderr
    assert (tmp_path / "fairtune.yaml").read_text() == "mine"
    assert init(images, "--attribute", "ward", "--force").exit_code == 0
    assert load_config(tmp_path / "fairtune.yaml").data.name == "folder"


def test_a_split_column_and_empty_cells_are_kept_in_mind(tmp_path: Path) -> None:
    split = ["train"] * 96 + ["valid"] * 32 + ["test"] * 32
    ward = ["", *["north", "south"] * (N // 2)][:N]
    folder = write_images(tmp_path / "own", inside=".", split=split, ward=ward)
    result = init(folder, "--attribute", "ward", "--output", str(tmp_path / "a.yaml"))
    assert result.exit_code == 0, result.stderr
    options = load_config(tmp_path / "a.yaml").data.options
    assert options["split_column"] == "split"
    assert options["missing"] == "drop"
    assert "ratios" not in options
    assert json.loads(result.stdout.splitlines()[-1])["images"] == N - 1


def test_a_column_of_long_texts_is_no_image(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "own", a_note=["long " * 80] * N)
    assert look(folder).image == "file"


@pytest.mark.parametrize(
    ("numbers", "edge"),
    [
        (np.arange(N) + 20, 100),  # the median, 99.5, as people would say it
        (np.arange(N) / (N - 1), 0.5),
        (np.linspace(0.6, 0.9, N), 0.75),
        (np.linspace(0.12341, 0.12349, N), 0.12345),  # the same to three digits
        ([*range(N - 20), *[float("inf")] * 20], 70),
        ([1.0] * (N - 10) + [k / 10 for k in range(10)], 0.9),  # most of all are the highest
    ],
)
def test_numbers_are_cut_so_that_there_are_two_groups(
    tmp_path: Path, numbers: list[float], edge: float
) -> None:
    sight = look(write_images(tmp_path / "own", weight=numbers))
    name, edges = edges_of(sight, "weight")
    assert (name, edges) == ("weight", (pytest.approx(edge),))
    assert 0 < (np.asarray(numbers) <= edges[0]).sum() < N


def test_small_decisions() -> None:
    assert likely_positive(["0", "1"]) == "1"
    assert likely_positive(["a", "b"]) is None
    assert likely_positive(["yes", "no", "maybe"]) is None
    assert [image_size(side) for side in (0, 20, 33, 64, 90, 400)] == [32, 32, 64, 64, 96, 96]
