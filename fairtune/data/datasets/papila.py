"""PAPILA: fundus photographs of both eyes, with clinical data.

Task
    Glaucoma or healthy.
Official page
    https://doi.org/10.6084/m9.figshare.14798004
Files
    `FundusImages/RET002OD.jpg` and so on; `ClinicalData/patient_data_od.xlsx` and
    `patient_data_os.xlsx`, whose headers take three rows (some copies are CSV with one header).
Label rule
    Diagnosis 1 is glaucoma, 0 healthy; eyes that are suspect (2) are left out.
Sensitive attributes
    `sex` and `age_group` (<=60, >60).
Split rule
    70/10/20 by patient, MEDFAIR's draw: a rest of 0.3 with seed 5, 0.66 of it the test, seed 15.
Counts
    244 patients, 488 eyes; 420 kept, 87 glaucoma.
Licence
    As stated on the official page
Citation
    Kovalyk et al., "PAPILA: Dataset with fundus images and clinical data of both eyes of the same
    patient for glaucoma assessment", Scientific Data 9, 291 (2022).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fairtune.data.catalog import DATASETS
from fairtune.data.datasets._common import OLDEST, age_group, assemble
from fairtune.data.layout import attach_images, download, find, find_all, image_references
from fairtune.data.manifest import Manifest
from fairtune.data.splits import split_by_key
from fairtune.data.tables import read_table

PAGE = "https://doi.org/10.6084/m9.figshare.14798004"
COLUMNS = ("ID", "Age", "Gender", "Diagnosis")
SEX = {"0": "male", "1": "female", "0.0": "male", "1.0": "female"}
DIAGNOSES = {"0": 0, "1": 1, "2": None, "0.0": 0, "1.0": 1, "2.0": None}


@DATASETS.register("papila")
def papila(source: Path | None, *, allow_missing: bool = False) -> Manifest:
    """Read PAPILA; see the module for its rules.

    Parameters
    ----------
    source
        The folder of the download.
    allow_missing
        Whether rows whose image is not there are dropped.
    """
    root = download(source, "papila", PAGE)
    eyes = pd.concat([_eyes(root, "od"), _eyes(root, "os")], ignore_index=True)
    known = eyes["label"].notna() & eyes["age_group"].notna() & eyes["sex"].notna()
    dropped = {
        "suspect": eyes["label"].isna().sum(),
        "no age or sex": (eyes["label"].notna() & ~known).sum(),
    }
    frame = eyes[np.asarray(known)].astype({"label": int})
    # The draw is over patients of whom an eye is kept.
    split = split_by_key(frame["patient"], rest=0.3, test_of_rest=0.66, seeds=(5, 15))
    places = find_all(root, "FundusImages", "FundusImages.zip") or [root]
    frame, missing = attach_images(
        frame.assign(split=split),
        image_references(root, places),
        "id",
        where=str(root),
        allow_missing=allow_missing,
    )
    return assemble(
        "papila",
        root,
        frame.astype({"sex": "category"}),
        ["healthy", "glaucoma"],
        options={"allow_missing": allow_missing},
        dropped=dropped,
        official={"all": 420},
        notes=missing,
    )


def _eyes(root: Path, side: str) -> pd.DataFrame:
    """Read the table of the right (od) or the left (os) eyes."""
    names = (f"patient_data_{side}.xlsx", f"patient_data_{side}.csv")
    path = find(root, *names, what=f"clinical table of the {side.upper()} eyes", page=PAGE)
    headless = path.suffix.lower() == ".xlsx"
    table = read_table(path, sheet_header=COLUMNS, skip=3) if headless else read_table(path)
    patient = table.unique("ID").str.lstrip("#").str.zfill(3)
    return pd.DataFrame(
        {
            "id": "RET" + patient + side.upper(),
            "patient": patient,
            "label": table.choices("Diagnosis", values=DIAGNOSES),
            "sex": table.choices("Gender", values=SEX, required=False),
            "age_group": age_group(table.numbers("Age", least=0, most=OLDEST)),
        }
    )
