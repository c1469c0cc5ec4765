"""From what a person types to a model folder on disk that is safe to load."""

from __future__ import annotations

import re
from pathlib import Path

from fairtune.errors import InputError, without_password
from fairtune.serving.safety import refuse_pickles

_URI = re.compile(r"^(models|runs|file|s3|gs|mlflow-artifacts|https?):/")


def model_uri(target: str) -> str:
    """Complete a registered name: `name` means `models:/name@champion`, `name/3` version 3.

    A URI, and a path that exists, stay as they are.

    Raises
    ------
    InputError
        None of these.
    """
    if _URI.match(target) or Path(target).exists():
        return target
    if "@" in target or re.search(r"/\d+$", target):
        return f"models:/{target}"
    if "/" in target:
        raise InputError(
            f"no model {target!r}: give NAME, NAME/VERSION, NAME@ALIAS, a model URI or a folder that exists"
        )
    return f"models:/{target}@champion"


def download_model(target: str, folder: Path | None = None) -> Path:
    """Bring a model here and refuse one that holds a pickle.

    Parameters
    ----------
    target : str
        Registered name, `name@alias`, `name/version`, URI, or folder.
    folder : Path, optional
        Where to put it; MLflow chooses a temporary folder otherwise.

    Raises
    ------
    InputError
        There is no such model, or it holds pickled data.
    """
    import mlflow

    uri = model_uri(target)
    try:
        path = Path(
            mlflow.artifacts.download_artifacts(
                uri, dst_path=None if folder is None else str(folder)
            )
        )
    except Exception as error:  # a store raises nearly anything: of HTTP, of a database, of a disk
        said = str(error).strip() or type(error).__name__
        reason = without_password(said.splitlines()[0])
        where = without_password(mlflow.get_registry_uri())
        raise InputError(
            f"no model {uri!r} in {where}: {reason} (set MLFLOW_TRACKING_URI to the store that has "
            "it, or register one with `fairtune register`)"
        ) from error
    if not (path / "MLmodel").is_file():
        raise InputError(f"{uri} is no MLflow model: it has no file MLmodel")
    refuse_pickles(path, uri)
    return path
