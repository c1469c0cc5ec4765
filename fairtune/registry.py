"""One way to find things by name: a registry filled by decorator."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from fairtune.errors import InputError

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Build the error for a name nobody knows: the nearest name first, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")


class Registry(Generic[T]):
    """Objects of one kind by name; a duplicate raises, an unknown name lists the known ones.

    Examples
    --------
    >>> SPACES: Registry[type] = Registry("space")
    >>> @SPACES.register("auto_peft1")
    ... class AutoPeft1: ...
    >>> SPACES["auto_peft1"] is AutoPeft1
    True
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str, *aliases: str) -> Callable[[T], T]:
        """Return a decorator that files an object under `name` and any `aliases`."""

        def file(item: T) -> T:
            for key in (name, *aliases):
                if key in self._items:
                    raise ValueError(f"{self.kind} {key!r} is registered twice")
                self._items[key] = item
            return item

        return file

    def __getitem__(self, name: str) -> T:
        """Return the object; raises `InputError` for an unknown name."""
        try:
            return self._items[name]
        except KeyError:
            raise unknown_name(self.kind, name, self._items) from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
