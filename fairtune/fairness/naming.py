"""Names of attributes and groups in the form that tracking stores accept in a metric's name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fairtune.errors import InputError

# Longest first: "<=" must be read before "<".
_WORDS = (
    ("<=", " le_"),
    (">=", " ge_"),
    ("≤", " le_"),
    ("≥", " ge_"),
    ("<", " lt_"),
    (">", " gt_"),
    ("=", " eq_"),
    ("+", "_plus "),
    ("%", "_pct "),
    ("&", " and "),
    ("*", " x "),
)


def slug(name: str) -> str:
    """Spell a name with letters, digits, `_` and `-` only.

    Comparison signs become words, so that groups which differ by a sign alone stay apart:
    ``<=60`` is ``le_60``, ``>60`` is ``gt_60``, ``80+`` is ``80_plus``, ``a*b`` is ``a_x_b``.

    Raises
    ------
    InputError
        When nothing is left of the name.
    """
    text = str(name)
    for sign, word in _WORDS:
        text = text.replace(sign, word)
    text = re.sub(r"[^\w-]+", "_", text)
    text = re.sub(r"_{2,}", "_", text).strip("_")
    if not text:
        raise InputError(f"the name {name!r} has no letter or digit: rename it in the data")
    return text


def slugs(kind: str, names: Iterable[str]) -> dict[str, str]:
    """Map every name to its slug; raises `InputError` when two names share one."""
    taken: dict[str, str] = {}
    for name in names:
        short = slug(name)
        if short in taken:
            raise InputError(
                f"{kind} {taken[short]!r} and {name!r} would both be logged as {short!r}: "
                "rename one of them in the data"
            )
        taken[short] = name
    return {name: short for short, name in taken.items()}
