"""The file that MLflow runs to get the model ("models from code"); it is never imported."""

from mlflow.models import set_model

from fairtune.serving.model import ServedModel

set_model(ServedModel())
