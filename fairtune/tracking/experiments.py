"""Which experiment a run belongs to, and how the tracking UI shows it."""

from __future__ import annotations

import os

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

KIND = "mlflow.experimentKind"
"""What the tracking UI asks to choose between its two faces; without it, it guesses."""
TRAINING = "custom_model_development"


def experiment_id(name: str) -> str:
    """Return the experiment that `mlflow run` gave, else the one of this name, made if need be."""
    client = MlflowClient(mlflow.get_tracking_uri())
    identifier = os.environ.get("MLFLOW_EXPERIMENT_ID") or _by_name(
        client, os.environ.get("MLFLOW_EXPERIMENT_NAME", name)
    )
    mark_training(client, identifier)
    return identifier


def mark_training(client: MlflowClient, identifier: str) -> None:
    """Mark an experiment as one of model training, unless someone has chosen otherwise.

    The tracking UI then shows runs and models first, and not traces and prompts.
    """
    if KIND not in client.get_experiment(identifier).tags:
        client.set_experiment_tag(identifier, KIND, TRAINING)


def _by_name(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, tags={KIND: TRAINING}))
    except MlflowException:  # another process made it in between
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)
