"""One file per data set; importing this package fills the registry."""

from __future__ import annotations

import importlib.util

from fairtune.data.catalog import DATASETS, load_dataset
from fairtune.data.datasets import (
    chexpert,
    fitzpatrick17k,
    folder,
    ham10000,
    harvard_gf3300,
    oasis1,
    ol3i,
    papila,
)

__all__ = [
    "DATASETS",
    "chexpert",
    "fitzpatrick17k",
    "folder",
    "ham10000",
    "harvard_gf3300",
    "load_dataset",
    "oasis1",
    "ol3i",
    "papila",
]

if importlib.util.find_spec("fairtune.data.datasets.synthetic"):
    importlib.import_module("fairtune.data.datasets.synthetic")
