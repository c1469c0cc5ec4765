"""One file per data set; importing this package fills the registry."""

from __future__ import annotations

import importlib.util

from fairtune.data.catalog import DATASETS, load_dataset
from fairtune.data.datasets import ham10000

__all__ = ["DATASETS", "ham10000", "load_dataset"]

if importlib.util.find_spec("fairtune.data.datasets.synthetic"):
    importlib.import_module("fairtune.data.datasets.synthetic")
