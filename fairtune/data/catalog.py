"""The registry of data sets, and the one way to load them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

from fairtune.data.manifest import Manifest
from fairtune.errors import InputError
from fairtune.registry import Registry, unknown_name

DataSet = Callable[..., Manifest]
"""`f(source: Path | None, **options) -> Manifest`; the options are typed keywords with defaults."""

DATASETS: Registry[DataSet] = Registry("data set")


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """Return the options of a data set, by name, in the order of its signature."""
    parameters = list(inspect.signature(DATASETS[name]).parameters.values())
    return {parameter.name: parameter for parameter in parameters[1:]}


def load_dataset(name: str, source: Path | str | None = None, **options: Any) -> Manifest:
    """Read a data set as its owners ship it.

    Parameters
    ----------
    name
        A name of `DATASETS`.
    source
        The folder that holds the download; None for data sets that are generated.
    **options
        The data set's own options, checked against its signature.

    Returns
    -------
    Manifest
        With all attributes that the data set has; `Manifest.select` narrows them.

    Raises
    ------
    InputError
        For an unknown name or option, an option of the wrong type, or anything wrong in a file.
    """
    function = DATASETS[name]
    known = options_of(name)
    for option in options:
        if option not in known:
            raise unknown_name(f"option of data set {name!r}:", option, known)
    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)
    folder = None if source is None else Path(source).expanduser()
    try:
        return checked(folder, **options)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"data set {name!r}, option {option!r}: {first['msg']}, got {first['input']!r}"
        ) from None
