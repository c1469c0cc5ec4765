"""What all tests share: the data that is there only on some machines, and a cache of their own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def _beside(folder: str) -> Path:
    root = Path(os.environ.get("FAIRTUNE_TEST_DATA", REPOSITORY.parent / "shared"))
    path = root / folder
    if not path.is_dir():
        pytest.skip(
            f"no {folder!r} folder in {root} (set FAIRTUNE_TEST_DATA to a folder that has it)"
        )
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets: `ham10000/`, `fitzpatrick17k/`."""
    return _beside("data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Figures of the published method."""
    return _beside("golden")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test's decoded images out of the user's cache, and share them between tests."""
    cache = tmp_path_factory.getbasetemp() / "fairtune-cache"
    monkeypatch.setenv("FAIRTUNE_CACHE", os.environ.get("FAIRTUNE_TEST_CACHE", str(cache)))


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the code of models that a test or a fixture loads: MLflow puts it first on the path."""
    own = [entry for entry in sys.path if Path(entry).parts[-2:] != ("artifacts", "code")]
    monkeypatch.setattr(sys, "path", own)


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised SQLite store: making its tables takes seconds, copying it none."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_store(
    _empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """An MLflow store of the test's own, in `tmp_path`, with nothing active; its URI."""
    from stores import mlflow_at  # not above: MLflow takes seconds to import

    shutil.copy(_empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with mlflow_at(uri):
        yield uri
