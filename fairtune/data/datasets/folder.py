"""Your own data: a folder of images and a table.

Task
    Any classification.
Official page
    None: the data is yours.
Files
    A CSV, Excel or Parquet table, and the images that it names, as any reference that
    `fairtune.data.references` knows.
Label rule
    Each value of the label column is a class; or `positive` names the values that are the positive
    class of two; or `classes` fixes the values and their order.
Sensitive attributes
    The columns named in `attributes`; numbers fall into `bins`.
Split rule
    A column of the table, if one is named; else by patient, stratified by label and attributes.
Counts
    None are published.
Licence
    As you have it.
Citation
    As you have it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fairtune.data.catalog import DATASETS
from fairtune.data.columns import Attribute, Missing, as_groups, as_labels
from fairtune.data.datasets._common import assemble
from fairtune.data.layout import check_references, download
from fairtune.data.manifest import Manifest
from fairtune.data.splits import patients_in_several, split_stratified, strata_of
from fairtune.data.tables import Table, read_table
from fairtune.errors import InputError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val"}
SPLITS |= {"validation": "val", "dev": "val", "test": "test", "testing": "test"}


@DATASETS.register("folder")
def folder(
    source: Path | None,
    *,
    table: str = "manifest.csv",
    image_column: str = "image",
    label_column: str = "label",
    patient_column: str | None = None,
    split_column: str | None = None,
    attributes: Mapping[str, Attribute | str] | Sequence[str] = (),
    positive: Sequence[str | int] | str | int | None = None,
    classes: Sequence[str | int] | None = None,
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    image_suffix: str = "",
    missing: Missing = "fail",
    allow_missing: bool = False,
    name: str = "folder",
) -> Manifest:
    """Read your own data.

    Parameters
    ----------
    source
        The folder that image references are relative to.
    table
        The table, relative to `source` or absolute.
    image_column, label_column, patient_column, split_column
        Names of columns. Without one of patients each image is a patient of its own; without one of
        splits the images are split by `ratios` and `seed`.
    attributes
        Columns; or names, each with its column or with `column`, `bins`, `names`, `values`.
    positive
        The label value or values of the positive class; all others are the negative one.
    classes
        The label values in the order of their numbers; others are refused.
    ratios, seed
        Shares of train, val and test, and the seed of that split.
    image_suffix
        What to append to the image column, such as ".jpg".
    missing
        What an empty attribute does: "fail", "drop" its row, or be a group "unknown".
    allow_missing
        Whether rows whose image is not there are dropped.
    name
        What to call the data set.
    """
    root = download(source, name, "the folder of your images")
    read = read_table(root / table)
    frame = pd.DataFrame({"image": read.unique(image_column) + image_suffix})
    frame["label"], names = as_labels(read, label_column, positive, classes)
    frame["patient"] = read.text(patient_column) if patient_column else frame["image"]
    specs = attributes if isinstance(attributes, Mapping) else {name: name for name in attributes}
    if not specs:
        raise InputError(f"{read.path}: name an attribute (columns: {', '.join(read.columns)})")
    keep = np.ones(len(frame), bool)
    for attribute, spec in specs.items():
        spec = Attribute(column=spec) if isinstance(spec, str) else spec
        frame[attribute] = as_groups(read, spec, missing)
        keep &= frame[attribute].notna().to_numpy()
    if split_column:
        frame["split"] = read.choices(split_column, values=SPLITS)
        _refuse_shared(read, frame, patient_column or image_column)
    frame = frame[keep].reset_index(drop=True)
    if not split_column and len(frame):
        strata = strata_of(frame["label"], frame[list(specs)])
        frame["split"] = split_stratified(frame["patient"], strata, ratios=ratios, seed=seed)
    frame, note = check_references(frame, root, allow_missing=allow_missing)
    options = {"table": os.path.basename(table), "ratios": list(ratios), "seed": seed}
    dropped = {"attribute missing": int((~keep).sum())}
    return assemble(name, root, frame, names, options=options, dropped=dropped, notes=note)


def _refuse_shared(read: Table, frame: pd.DataFrame, column: str) -> None:
    shared = patients_in_several(frame)
    if shared:
        row = int(np.flatnonzero(frame["patient"] == shared[0])[0])
        told = f"patient {shared[0]!r} is in several splits ({len(shared)} such patients)"
        raise read.error(row, column, told)
