"""Every shipped configuration searches on a small copy of its data set's official download."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data.official import LAYOUTS

from fairtune.config import load_config
from fairtune.interrupt import StopRequest
from fairtune.search.search import search
from fairtune.tracking.runs import existing_run

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*_*.yaml"))
CONFIGS = [path for path in CONFIGS if "demo" not in path.stem]
# What the test changes: the model and the lengths, for time, and the objective, because the groups
# of so small a copy lack a class. The data section stays as it ships, but for the side in pixels.
SMALL = [
    "device=cpu",
    "data.image_size=16",
    "model.architecture=vit_tiny_patch16_224",
    "model.options={img_size: 16, patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2}",
    "model.weights=none",
    "train.epochs=1",
    "train.class_weights=none",
    "search.space=components",
    "search.objective=accuracy",
    "search.pruning.rule=none",
    "search.trials=2",
    "search.final.candidates=1",
    "search.final.seeds=1",
    "register.name=null",
]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict]]:
    torch.set_num_threads(1)
    made = {}
    for name, write in LAYOUTS.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = (folder, write(folder))
    return made


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_searches(
    path: Path, downloads: dict[str, tuple[Path, dict]], mlflow_store: str
) -> None:
    folder, options = downloads[load_config(path).data.name]
    extra = [f"data.options.{key}={value}" for key, value in options.items()]
    config = load_config(path, [*SMALL, *extra])
    outcome = search(config, str(folder), StopRequest())
    assert set(outcome.comparison["model"].str.removesuffix(" (winner)")) >= {
        "full fine-tuning",
        "linear probe",
    }
    assert outcome.version is None
    assert 0 <= existing_run(outcome.run_id).data().data.metrics["test/accuracy"] <= 1
