"""The served model as MLflow sees it: a pyfunc that loads plain code, safetensors and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from fairtune.serving.predictor import Predictor
from fairtune.serving.spec import IMAGE_COLUMN, SPEC_FILE, registered_version


class ServedModel(PythonModel):
    """Answers a table with one text column, `image`, holding base64 of image files.

    The output has a row for each input row: `label`, a `probability_<class>` for each class,
    `threshold`, `model_version` and `error`. A row that cannot be answered has nulls and a reason.
    """

    predictor: Predictor

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and specification from the model's artifacts."""
        folder = Path(context.artifacts["spec"]).parent
        if not (folder / SPEC_FILE).is_file():
            raise FileNotFoundError(f"{SPEC_FILE} is not among the model's artifacts")
        self.predictor = Predictor.load(folder, version=registered_version(folder))

    def predict(  # type: ignore[override]
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,  # a typed object would be quoted back when it does not validate
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Answer each row of `model_input`, a table with the column `image`."""
        column = model_input.get(IMAGE_COLUMN, [None] * len(model_input))
        rows = [_missing_as_none(value) for value in column]
        # Object columns keep None, which JSON writes as null; NaN would be no JSON at all.
        return pd.DataFrame(self.predictor.predict(rows), dtype=object)


def _missing_as_none(value: object) -> object:
    return value if isinstance(value, str) else None
