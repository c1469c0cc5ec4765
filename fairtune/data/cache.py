"""Where decoded images and generated data live."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "FAIRTUNE_CACHE"


def cache_dir() -> Path:
    """Return the cache folder: `FAIRTUNE_CACHE` if set, else the user's cache folder.

    The folder is not created here; whoever writes into it does so. All it holds can be made again.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("fairtune"))
