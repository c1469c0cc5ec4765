"""From a data set's official download to decoded images that training reads.

`load_dataset` makes a `Manifest` (the validated table), `open_store` the decoded images beside it.
Names are imported on first use, so that decoding one image needs only NumPy and Pillow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairtune.data.cache import cache_dir
    from fairtune.data.datasets import DATASETS, load_dataset
    from fairtune.data.doctor import Finding, diagnose
    from fairtune.data.images import decode_image, load_image
    from fairtune.data.manifest import Manifest
    from fairtune.data.preparation import Preparation, prepare
    from fairtune.data.store import Store, open_store

__all__ = [
    "DATASETS",
    "Finding",
    "Manifest",
    "Preparation",
    "Store",
    "cache_dir",
    "decode_image",
    "diagnose",
    "load_dataset",
    "load_image",
    "open_store",
    "prepare",
]

_HOMES = {
    "DATASETS": "datasets",
    "Finding": "doctor",
    "Manifest": "manifest",
    "Preparation": "preparation",
    "Store": "store",
    "cache_dir": "cache",
    "decode_image": "images",
    "diagnose": "doctor",
    "load_dataset": "datasets",
    "load_image": "images",
    "open_store": "store",
    "prepare": "preparation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
