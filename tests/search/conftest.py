from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from search.samples import write_data

from fairtune.config import Config
from fairtune.interrupt import StopRequest
from fairtune.search.search import SearchOutcome, search

os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of the tiny data set."""
    return str(write_data(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store(mlflow_store: str) -> str:
    """Point MLflow to an empty SQLite store; gives its URI."""
    logging.getLogger("hyperopt").setLevel(logging.WARNING)
    return mlflow_store


def children(run_id: str, kind: str | None = None) -> list[Run]:
    """Read the nested runs of a run, by their start."""
    client = MlflowClient()
    experiment = client.get_run(run_id).info.experiment_id
    where = f"tags.`mlflow.parentRunId` = '{run_id}'"
    where += f" and tags.`fairtune.kind` = '{kind}'" if kind else ""
    return list(client.search_runs([experiment], where, order_by=["attributes.start_time ASC"]))


@pytest.fixture
def run_search(store: str, source: str) -> Callable[..., SearchOutcome]:
    """Run a whole search of the tiny data set."""

    def run(config: Config, **options: object) -> SearchOutcome:
        return search(config, source, StopRequest(), **options)  # type: ignore[arg-type]

    return run
