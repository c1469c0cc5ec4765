from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner
from search.samples import tiny_config, write_data

from fairtune.cli import main


@pytest.mark.parametrize(
    ("empty", "stops"),
    [("val", "finetune"), ("test", "evaluate"), ("test", "search"), ("test", "search --dry-run")],
)
def test_a_split_without_images_is_one_line(
    empty: str, stops: str, mlflow_store: str, tmp_path: Path
) -> None:
    write_data(tmp_path)
    table = pd.read_csv(tmp_path / "manifest.csv")
    table[table["split"] != empty].to_csv(tmp_path / "manifest.csv", index=False)
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_config(train__epochs=1).to_yaml())
    what = stops.split() if "search" in stops else ["finetune", "--bits", "101010"]
    result = CliRunner().invoke(main, [*what, "--config", str(config), "--source", str(tmp_path)])
    if stops == "evaluate":
        assert result.exit_code == 0, result.stderr
        run_id = json.loads(result.stdout.splitlines()[-1])["run_id"]
        result = CliRunner().invoke(main, ["evaluate", "--run-id", run_id])
    assert result.exit_code == 2
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("fairtune: ")]
    assert f"the {empty} split of 'folder' has no images" in line
    assert "Traceback" not in result.stderr
    if "search" in stops:
        assert mlflow.search_runs(search_all_experiments=True).empty  # refused before a run opens


@pytest.mark.parametrize("command", [["search", "--dry-run"], ["search"], ["finetune"]])
def test_a_fixed_mask_of_too_few_bits_is_refused_before_anything_runs(
    command: list[str], mlflow_store: str, tmp_path: Path
) -> None:
    write_data(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_config(search__space="auto_peft1:10").to_yaml())
    result = CliRunner().invoke(
        main, [*command, "--config", str(config), "--source", str(tmp_path)]
    )
    assert result.exit_code == 2
    assert "has 6 bits" in result.stderr
    assert mlflow.search_runs(search_all_experiments=True).empty
