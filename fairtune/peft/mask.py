"""A mask: the bits of a space for one model, as a value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from fairtune.errors import InputError

_SEQUENCES = ("names", "bits", "parameters")


@dataclass(frozen=True)
class Mask:
    """What trains in one model, and the bits of the space that say so.

    Made by ``get_space(name).mask(model, bits)``; applied by ``apply_mask(model, mask)``.
    """

    space: str
    """Name of the space."""
    architecture: str
    """timm's name of the model; a mask fits no other."""
    names: tuple[str, ...]
    """Name of every bit, zero-padded so that they sort: ``blocks.03.attn``."""
    bits: tuple[int, ...]
    """One value per name: 0 or 1, or a rank where the space has ranks."""
    parameters: tuple[str, ...]
    """Sorted names of all parameters that train, the head's among them."""
    trained: int
    """Number of values in those parameters."""
    total: int
    """Number of values in all parameters of the model."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.bits):
            raise InputError(f"mask has {len(self.names)} names but {len(self.bits)} bits")
        if list(self.parameters) != sorted(set(self.parameters)):
            raise InputError("the mask's parameters must be sorted and named once each")
        if not 0 <= self.trained <= self.total:
            raise InputError(f"mask trains {self.trained} of {self.total} values")

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits: equal for the same trained set of one space and architecture.

        Bits that differ but train the same parameters share it; so a search can look a mask up
        before training it again. Values beyond 0 and 1 (ranks) do change what trains, and count.
        """
        ranks = [bit for bit in self.bits if bit > 1]
        what: list[object] = [self.space, self.architecture, list(self.parameters)]
        if ranks:
            what.append(list(self.bits))
        text = json.dumps(what, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def share(self) -> float:
        """Trained share of the model's parameters, in [0, 1]."""
        return self.trained / self.total if self.total else 0.0

    @property
    def text(self) -> str:
        """The bits in one word: ``101100``; ``4-0-16`` where any has more than one digit."""
        return bits_text(self.bits)

    @property
    def label(self) -> str:
        """Space and bits: ``auto_peft1:101100``. A run shows this, which no plot takes for a number."""
        return f"{self.space}:{self.text}" if self.text else self.space

    def short(self, length: int = 12) -> str:
        """Return `text`, cut after `length` characters with an ellipsis: for names of runs."""
        return self.text if len(self.text) <= length else f"{self.text[:length]}…"

    def named_bits(self) -> dict[str, int]:
        """Return the bits by name, in order: the parameters ``mask.<name>`` of a run."""
        return dict(zip(self.names, self.bits, strict=True))

    def to_json(self) -> str:
        """Return the mask as indented JSON, with its fingerprint."""
        return json.dumps({**asdict(self), "fingerprint": self.fingerprint}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Mask:
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            Not JSON, a key missing, unknown or of the wrong type, or a fingerprint that is not
            the mask's: the file was edited or cut.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise InputError(f"mask is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise InputError("mask must be a JSON object")
        fingerprint = content.pop("fingerprint", None)
        mask = cls(**_checked(content))
        if mask.fingerprint != fingerprint:
            raise InputError(
                f"mask has fingerprint {fingerprint!r} but its content gives {mask.fingerprint!r}: "
                "it was edited; make it again with get_space(name).mask(model, bits)"
            )
        return mask


def bits_text(bits: Sequence[int]) -> str:
    """Write bits in one word: ``101100``; ``4-0-16`` where any has more than one digit."""
    joint = "-" if any(bit > 9 for bit in bits) else ""
    return joint.join(str(bit) for bit in bits)


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a mask read from JSON; raises `InputError` for a wrong one."""
    known = {field.name for field in fields(Mask)}
    if set(content) != known:
        missing, unknown = sorted(known - set(content)), sorted(set(content) - known)
        raise InputError(f"mask lacks the keys {missing} and has the unknown keys {unknown}")
    kinds = {"space": str, "architecture": str, "trained": int, "total": int}
    for key, kind in kinds.items():
        if type(content[key]) is not kind:
            raise InputError(f"mask: {key} must be {kind.__name__}, not {content[key]!r:.60}")
    for key in _SEQUENCES:
        item = int if key == "bits" else str
        if not isinstance(content[key], list) or any(type(x) is not item for x in content[key]):
            raise InputError(f"mask: {key} must be a list of {item.__name__}")
    return {key: tuple(value) if key in _SEQUENCES else value for key, value in content.items()}
