"""What a dry run says, beside what really happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from search.samples import N_IMAGES, tiny_config

from fairtune.cli import main
from fairtune.errors import InputError
from fairtune.search.estimate import estimate
from fairtune.workspace import open_workspace


def test_parameters_are_those_of_the_model(source: str) -> None:
    config = tiny_config()
    found = estimate(config, source)
    model = open_workspace(config, source).base.model
    assert found.parts["parameters"].sum() == sum(p.numel() for p in model.parameters())
    assert (found.parts["trained"] == found.parts["parameters"]).all()  # full fine-tuning
    assert found.n_bits == 6
    assert found.fine_tunes == 6 + (2 + 2) * 2
    assert found.images == {"train": N_IMAGES // 2, "val": N_IMAGES * 3 // 10}


def test_of_a_given_mask_only_its_parameters_train(source: str) -> None:
    config = tiny_config()
    bits = (0, 1, 0, 0, 0, 0)
    found = estimate(config, source, bits=bits)
    mask = open_workspace(config, source).mask(bits)
    trained = found.parts.set_index("part")["trained"]
    assert trained.sum() == mask.trained
    assert set(trained[trained > 0].index) == {"blocks.0.attn", "head"}
    assert found.fine_tunes == 1


def test_time_and_memory_are_measured(source: str) -> None:
    found = estimate(tiny_config(train__epochs=4), source)
    low, high = found.seconds_per_fine_tune
    assert low > 0
    assert 0 < high < 60
    assert found.seconds[1] == pytest.approx(high * found.fine_tunes)
    assert found.memory > 1_000_000
    doubled = estimate(tiny_config(train__epochs=4, search__trials=100), source)
    assert doubled.fine_tunes == 108


def test_a_dry_run_leaves_no_trace(store: str, source: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(tiny_config().to_yaml())
    arguments = ["search", "--config", "a.yaml", "--source", source, "--dry-run"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["bits"] == 6
    assert last["seconds"][0] > 0
    assert "learning_rate: 0.003" in result.stdout  # the resolved configuration
    assert "blocks.0.attn" in result.stdout
    assert [e.name for e in MlflowClient().search_experiments()] == ["Default"]


def test_a_dry_run_of_a_cross_test_counts_every_fold(
    store: str, source: str, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(tiny_config().to_yaml())
    arguments = ["finetune", "--config", "a.yaml", "--source", source, "--dry-run"]
    once = CliRunner().invoke(main, [*arguments, "--bits", "010000"])
    folds = CliRunner().invoke(main, [*arguments, "--bits", "010000", "--folds", "3"])
    assert folds.exit_code == 0, folds.stderr
    one, all_ = (json.loads(result.stdout.splitlines()[-1]) for result in (once, folds))
    assert (one["fine_tunes"], all_["fine_tunes"]) == (1, 3)
    assert all_["seconds"][1] == pytest.approx(3 * all_["seconds_per_fine_tune"][1])
    assert "folds: 3" in folds.stdout  # the configuration is the whole's, not that of a fold


def test_what_would_stop_a_search_stops_a_dry_run(source: str) -> None:
    with pytest.raises(InputError, match="6 bits"):
        estimate(tiny_config(), source, bits=(1, 0))
    with pytest.raises(InputError, match="unknown attribute"):
        estimate(tiny_config(data__attributes=["wrad"]), source)
