"""OL3I: one axial CT slice at the third lumbar vertebra, with later ischemic heart disease.

Task
    Ischemic heart disease within one year, or five.
Official page
    https://stanfordaimi.azurewebsites.net/datasets/3263e34a-252e-460f-8f63-d585a9bfecfc
Files
    `clinical_data.csv` and `l3_slices.h5`, which has one 512 x 512 data set per `anon_id`.
Label rule
    `label_1y` (or `label_5y`) is 1; exams without it are left out.
Sensitive attributes
    `sex` and `age_group` (<=60, >60). Exams without them are left out.
Split rule
    The official one, `set_1y` (or `set_5y`).
Counts
    8,139 exams, 4.4 % positive within one year.
Licence
    Stanford University Dataset Research Use Agreement
Citation
    Zambrano Chaves et al., "Opportunistic assessment of ischemic heart disease risk using
    abdominopelvic computed tomography and medical record data: a multimodal explainable artificial
    intelligence approach", Scientific Reports 13, 21034 (2023).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from fairtune.data.catalog import DATASETS
from fairtune.data.datasets._common import OLDEST, SEX, age_group, assemble
from fairtune.data.layout import attach_images, download, find
from fairtune.data.manifest import Manifest
from fairtune.data.references import MEMBER
from fairtune.data.tables import NO_VALUE, read_table
from fairtune.errors import InputError

PAGE = "https://stanfordaimi.azurewebsites.net/datasets/3263e34a-252e-460f-8f63-d585a9bfecfc"
SETS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SOFT_TISSUE = (-160, 240)  # Hounsfield units: level 40, width 400
LOOKED_AT = 16  # slices that decide whether values are Hounsfield units


@DATASETS.register("ol3i")
def ol3i(
    source: Path | None,
    *,
    label: Literal["label_1y", "label_5y"] = "label_1y",
    allow_missing: bool = False,
) -> Manifest:
    """Read OL3I; see the module for its rules.

    Parameters
    ----------
    source
        The folder of the download.
    label
        The column of the label; the split is the one that belongs to it.
    allow_missing
        Whether rows whose slice is not there are dropped.
    """
    root = download(source, "ol3i", PAGE)
    table = read_table(
        find(root, "clinical_data.csv", what="clinical table", page=PAGE), empty=NO_VALUE
    )
    slices = find(root, "l3_slices.h5", "*.h5", what="file of slices", page=PAGE)
    binary = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
    sex = table.choices("sex", "gender", values=SEX, required=False)
    age = table.numbers("age", least=0, most=OLDEST)
    frame = pd.DataFrame(
        {
            "id": table.unique("anon_id"),
            "label": table.choices(label, values=binary, required=False),
            "split": table.choices(label.replace("label", "set"), values=SETS, required=False),
            "sex": sex.astype("category"),
            "age_group": age_group(age),
        }
    )
    labelled = frame["label"].notna() & frame["split"].notna()
    known = labelled & age.notna() & sex.notna()
    frame = frame[table.where(known)].astype({"label": int})
    frame, missing = attach_images(
        frame.assign(patient=frame["id"]),
        _references(root, slices),
        "id",
        where=str(slices),
        allow_missing=allow_missing,
    )
    return assemble(
        "ol3i",
        root,
        frame,
        ["no event", "event"],
        options={"label": label, "allow_missing": allow_missing},
        dropped={"no label": (~labelled).sum(), "no age or sex": (labelled & ~known).sum()},
        official={"all": 8139} if label == "label_1y" else None,
        notes=missing,
    )


def _references(root: Path, path: Path) -> dict[str, str]:
    """Map each exam to its slice, with a window if the slices hold Hounsfield units."""
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path} needs h5py: pip install 'fairtune[medical]'") from None
    try:
        with h5py.File(path, "r") as file:
            names = list(file)
            some = [np.asarray(file[name]) for name in names[:LOOKED_AT]]
    except OSError as error:
        raise InputError(f"{path}: no readable HDF5 file ({error})") from None
    raw = any(array.min() < 0 or array.max() > 255 for array in some)
    low, high = SOFT_TISSUE if raw else (0, 255)
    place = path.relative_to(root).as_posix()
    return {name: f"{place}{MEMBER}{name}?window={low},{high}" for name in names}
