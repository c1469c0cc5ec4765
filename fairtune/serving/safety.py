"""Find out whether a model folder holds data that would run code when loaded.

Safetensors, JSON and YAML cannot. A pickle can, under any name, and PyTorch, joblib and NumPy all
write pickles; so names and first bytes are both looked at.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from fairtune.errors import InputError

PICKLE_SUFFIXES = frozenset(
    {".bin", ".cloudpickle", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth", ".npy"}
)
# A pickle of protocol 2 or later opens with the PROTO opcode and the protocol's number.
_PICKLE_STARTS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


def find_pickles(folder: Path) -> list[str]:
    """Return the files below `folder`, as relative paths, that are or may hold pickles."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in files if _may_be_pickle(path)]


def refuse_pickles(folder: Path, what: str) -> None:
    """Raise `InputError`, naming the files, when `folder` may hold pickles; `what` names it."""
    found = find_pickles(folder)
    if found:
        raise InputError(
            f"{what} holds pickled data ({', '.join(found[:3])}), which runs code when it is "
            "loaded; register the model again with `fairtune register`"
        )


def _may_be_pickle(path: Path) -> bool:
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    with path.open("rb") as stream:
        start = stream.read(4)
    if start[:2] in _PICKLE_STARTS:
        # Safetensors begin with their header's length, which can be any number, and so these bytes.
        return path.suffix.lower() != ".safetensors"
    if start == b"PK\x03\x04" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith((".pkl", ".npy")) for name in archive.namelist())
    return False
