from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from search.samples import tiny_config, write_data
from stores import mlflow_at

from fairtune.comparison.compare import compare
from fairtune.comparison.methods import method
from fairtune.comparison.settings import Comparison, parse_comparison
from fairtune.interrupt import StopRequest
from fairtune.tracking.runs import RunLog, existing_run

os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_data(tmp_path_factory.mktemp("tiny")))


RANDOM = {"name": "random", "size_of": "searched+group_dro"}
METHODS = ["full", "linear", "best_fixed", "searched+group_dro", RANDOM]


@pytest.fixture(scope="session")
def whole(
    tmp_path_factory: pytest.TempPathFactory, _empty_store: Path, source: str
) -> tuple[str, RunLog]:
    """One comparison without a break, in a store of its own; its table and its run."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(_empty_store, folder / "mlflow.db")
    methods = comparison_of(METHODS, candidate="searched+group_dro")
    with chdir(folder), mlflow_at(f"sqlite:///{folder}/mlflow.db"):
        outcome = compare(methods, source, StopRequest())
        assert outcome.complete
        log = existing_run(outcome.run_id)
        log.data()
    return outcome.table, log


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def comparison_of(
    methods: list[Any],
    config: dict[str, Any] | None = None,
    *,
    redrawn: bool = False,
    **changes: Any,
) -> Comparison:
    """A comparison of seconds on the tiny data set; `redrawn`: one where each seed draws new people."""
    drawn = {"data__name": "synthetic", "data__options": {}, "data__attributes": ["age_group"]}
    more = {**(drawn if redrawn else {}), **(config or {})}
    tiny = tiny_config(train__epochs=1, train__batch_size=50, **more)
    task = {"name": "spots", "config": tiny.model_dump(mode="json", by_alias=True)}
    raw = {
        "name": "tiny",
        "tasks": [{**task, "seed_keys": ["data.options.seed"] if redrawn else []}],
        "methods": [method(one).model_dump() for one in methods],
        "seeds": [1, 2],
        "trials": 1,
        "resamples": 100,
        **changes,
    }
    return parse_comparison(raw, "tiny comparison")


@pytest.fixture
def tiny_file(tmp_path: Path) -> Callable[[str], Path]:
    """Write a comparison file beside the configuration that it names."""

    def write(methods: str, more: str = "") -> Path:
        (tmp_path / "tiny.yaml").write_text(tiny_config(train__epochs=1).to_yaml())
        path = tmp_path / "comparison.yaml"
        path.write_text(
            f"name: tiny\ntasks: [{{name: spots, config: tiny.yaml}}]\nmethods: {methods}\n"
            f"seeds: [1]\ntrials: 1\n{more}"
        )
        return path

    return write
