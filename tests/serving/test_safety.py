from __future__ import annotations

import pickle

import joblib
import numpy as np
import pytest
import torch
from serving.samples import tiny_model, tiny_spec

from fairtune.errors import InputError
from fairtune.serving.safety import find_pickles, refuse_pickles
from fairtune.serving.spec import export_model


def test_an_exported_model_is_clean(tmp_path) -> None:
    folder = export_model(tiny_model(), tiny_spec(), tmp_path)
    refuse_pickles(folder, "the model")


BY_CONTENT = ("pickle", "torch", "old_torch", "joblib")
BY_NAME = ("old_pickle", "npy")  # their first bytes are text, or NumPy's own header


@pytest.mark.parametrize(
    ("name", "write"),
    [
        *((n, w) for n in ("python_model.pkl", "deep/model.pt") for w in BY_CONTENT + BY_NAME),
        *((n, w) for n in ("weights.txt", "no_suffix") for w in BY_CONTENT),
    ],
)
def test_pickles_are_found_by_name_and_by_content(tmp_path, name: str, write: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    value = {"a": np.arange(3, dtype=object)}
    with path.open("wb") as stream:
        if write.endswith("torch"):
            torch.save(value, stream, _use_new_zipfile_serialization=write == "torch")
        elif write == "npy":
            np.save(stream, value["a"])
        elif write == "joblib":
            joblib.dump(value, stream)
        else:
            pickle.dump(value, stream, protocol=0 if write == "old_pickle" else 5)
    assert find_pickles(tmp_path) == [name]
    with pytest.raises(InputError, match=path.name):
        refuse_pickles(tmp_path, "the model")
