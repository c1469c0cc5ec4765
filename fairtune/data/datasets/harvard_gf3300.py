"""Harvard-GF3300: maps of the retinal nerve fibre layer's thickness from OCT, for three races.

Task
    Glaucoma or not.
Official page
    https://ophai.hms.harvard.edu/datasets/harvard-gf3300
Files
    `Training/`, `Validation/` and `Test/` (or one folder) with `data_0001.npz` to `data_3300.npz`,
    and `data_summary.csv`; where it is absent, the facts are read from the files themselves.
Label rule
    `glaucoma` is yes (or 1).
Sensitive attributes
    `race` (Asian, Black, White), `sex`, `age_group` (<=60, >60) and, with the summary, `ethnicity`.
Split rule
    The official one: `use` in the summary, else the folder.
Counts
    3,300 patients, 1,100 of each race; 2,100 / 300 / 900.
Licence
    CC BY-NC-ND 4.0
Citation
    Luo et al., "Harvard Glaucoma Fairness: A Retinal Nerve Disease Dataset for Fairness Learning
    and Fair Identity Normalization", IEEE Transactions on Medical Imaging 43 (2024).
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from fairtune.data.catalog import DATASETS
from fairtune.data.datasets._common import OLDEST, SEX, age_group, assemble, grouped
from fairtune.data.layout import attach_images, download, find_all, image_references
from fairtune.data.manifest import Manifest
from fairtune.data.references import ImageReader
from fairtune.data.tables import NO_VALUE, Table, read_table
from fairtune.errors import InputError

PAGE = "https://ophai.hms.harvard.edu/datasets/harvard-gf3300"
MAP = "::rnflt?window=-2,350"  # micrometres; -2 marks pixels that are not valid
RACES = ("Asian", "Black", "White")
RACE = {
    **{name: name for name in RACES},
    **{f"{number}{end}": name for number, name in enumerate(RACES) for end in ("", ".0")},
    "black or african american": "Black",
    "white or caucasian": "White",
}
YES_NO = {"yes": 1, "no": 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}
MALE = {"1": "male", "0": "female", "1.0": "male", "0.0": "female"}
USES = {"training": "train", "validation": "val", "test": "test", "train": "train", "val": "val"}
OFFICIAL = {"train": 2100, "val": 300, "test": 900}


@DATASETS.register("harvard_gf3300")
def harvard_gf3300(source: Path | None, *, allow_missing: bool = False) -> Manifest:
    """Read Harvard-GF3300; see the module for its rules.

    Parameters
    ----------
    source
        The folder of the download.
    allow_missing
        Whether rows of the summary whose map is not there are dropped.
    """
    root = download(source, "harvard_gf3300", PAGE)
    files = image_references(root, [root, *find_all(root, "*.zip")], suffixes=(".npz",))
    if not files:
        raise InputError(f"{root}: no maps (looked for data_*.npz); {PAGE}")
    summaries = find_all(root, "data_summary*.csv")
    table = read_table(summaries[0], empty=NO_VALUE) if summaries else _facts_of(root, files)
    age = table.numbers("age", least=0, most=OLDEST)
    frame = pd.DataFrame(
        {
            "id": table.unique("filename").str.removesuffix(".npz"),
            "label": table.choices("glaucoma", values=YES_NO).astype(int),
            "split": table.choices("use", values=USES),
            "race": grouped(table.choices("race", values=RACE), RACES),
            "sex": table.choices("gender", values={**SEX, **MALE}).astype("category"),
            "age_group": age_group(age),
        }
    )
    if table.has("ethnicity"):
        ethnicity = table.text("ethnicity", required=False).fillna("unknown")
        frame["ethnicity"] = ethnicity.str.lower().astype("category")
    frame = frame[table.where(age.notna())]
    references = {stem: f"{reference}{MAP}" for stem, reference in files.items()}
    frame, missing = attach_images(
        frame.assign(patient=frame["id"]),
        references,
        "id",
        where=str(root),
        allow_missing=allow_missing,
    )
    return assemble(
        "harvard_gf3300",
        root,
        frame,
        ["no glaucoma", "glaucoma"],
        options={"allow_missing": allow_missing},
        dropped={"no age": age.isna().sum()},
        official=OFFICIAL,
        notes=missing,
    )


def _facts_of(root: Path, files: dict[str, str]) -> Table:
    """Read from the files what the summary would say; the folder says the split."""
    keys = {"age": "age", "male": "gender", "race": "race", "glaucoma": "glaucoma"}
    rows = []
    with ImageReader(root) as reader:
        for stem, reference in sorted(files.items()):
            parts = re.split(r"/|(?:\.zip)?::", reference.lower())
            use = next((part for part in parts if part in USES), None)
            if use is None:
                raise InputError(
                    f"{root}: {reference} is in none of Training, Validation, Test, and there is no "
                    f"data_summary.csv that says its split; {PAGE}"
                )
            values = reader.npz_values(reference, tuple(keys))
            rows.append({"filename": stem, "use": use, **{keys[k]: v for k, v in values.items()}})
    return Table(pd.DataFrame(rows), root, empty=NO_VALUE)
