"""Seeds by name, so that a draw added in one place moves no draw in another."""

from __future__ import annotations

import hashlib


def seed(base: int, *names: str | int) -> int:
    """Derive the seed of one random draw from the base seed and the draw's name.

    Parameters
    ----------
    base
        The seed of the whole experiment.
    *names
        What is drawn, from the general to the particular: ``seed(0, "trial", 17, "augment")``.

    Returns
    -------
    int
        In [0, 2**31), which NumPy, PyTorch and scikit-learn all accept. The mapping is stable over
        processes, machines and Python versions.
    """
    digest = hashlib.sha256(repr((int(base), *names)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
