"""What a registered version has shown: the predictions of its run, from which gates and cards work."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fairtune.errors import InputError
from fairtune.tracking.predictions import read_predictions
from fairtune.tracking.runs import RunLog, existing_run

GATE_TAG = "fairtune.gate"
"""Tag of a version: what the gate decided about it; further tags begin with it."""


@dataclass(frozen=True)
class Evidence:
    """A version's logged predictions and the threshold it serves with."""

    version: str
    log: RunLog
    table: pd.DataFrame
    threshold: float | None


def evidence(client: MlflowClient, name: str, version: str, split: str) -> Evidence:
    """Read a version's predictions of a split; raises `InputError` when its run has none."""
    log = existing_run(str(model_version(client, name, version).run_id))
    with tempfile.TemporaryDirectory() as folder:
        table = read_predictions(log.download(f"predictions/{split}.parquet", folder))
    if table["image"].duplicated().any():
        raise InputError(f"the predictions of version {version} name an image twice")
    return Evidence(version, log, table, log.data().data.metrics.get("threshold"))


def model_version(client: MlflowClient, name: str, version: str) -> ModelVersion:
    """Find a version; raises `InputError` that lists the known ones."""
    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        known = client.search_model_versions(f"name = '{name}'")
        numbers = ", ".join(sorted((str(found.version) for found in known), key=int)) or "none"
        raise InputError(f"{name!r} has no version {version!r} (known: {numbers})") from error


def aligned(champion: Evidence, candidate: Evidence) -> pd.DataFrame:
    """Order the champion's rows as the candidate's.

    Raises
    ------
    InputError
        The two were not evaluated on the same images, patients and labels.
    """
    wanted = candidate.table
    shared = ["image", "patient", "label"]
    other = champion.table.set_index("image").reindex(wanted["image"]).reset_index()
    same = len(champion.table) == len(wanted) and other[shared].equals(
        wanted[shared].reset_index(drop=True)
    )
    if not same:
        raise InputError(
            f"versions {candidate.version} and {champion.version} were evaluated on different "
            "images, patients or labels; evaluate both on the same data set and split"
        )
    return other
