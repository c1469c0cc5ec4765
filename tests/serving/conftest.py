from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from serving.samples import tiny_model, tiny_spec
from stores import mlflow_at

from fairtune.tracking.registry import register_model


@pytest.fixture(scope="session")
def _registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Make a store with the champion `moles`; gives its URI."""
    folder = tmp_path_factory.mktemp("registered")
    uri = f"sqlite:///{folder}/mlflow.db"
    with mlflow_at(uri):
        client = MlflowClient()
        experiment = client.create_experiment("e", (folder / "artifacts").as_uri())
        run = client.create_run(experiment)
        client.set_terminated(run.info.run_id)
        register_model(run.info.run_id, "moles", tiny_model(), tiny_spec())
    yield uri
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def registered(_registered: str) -> Iterator[str]:
    """A store with the champion `moles`, in use; gives the store's URI."""
    with mlflow_at(_registered) as uri:
        yield uri


@pytest.fixture(scope="session")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from serving.samples import image_bytes

    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{seed}.jpg" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_bytes(image_bytes(seed))
    return paths
