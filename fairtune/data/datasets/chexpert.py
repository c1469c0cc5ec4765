"""CheXpert: chest radiographs, with the demographics that were published later.

Task
    No finding, or any.
Official page
    https://stanfordaimi.azurewebsites.net
Files
    `CheXpert-v1.0-small/train.csv` (or `CheXpert-v1.0`) and the images that its `Path` names;
    `CHEXPERT DEMO.xlsx` (or `.csv`, which is read faster).
Label rule
    `No Finding` is 1; empty and uncertain (-1) count as 0.
Sensitive attributes
    `sex`, `age_group` (<=60, >60), `race` (White, Black, Asian, other, unknown) and `race_binary`
    (White, non-White, unknown). Images of patients without demographics, without an age or with an
    unknown sex are left out.
Split rule
    80/10/10 by patient, MEDFAIR's draw with seeds 0 and 0.
Counts
    223,414 rows, of which the paper uses 222,793.
Licence
    Stanford University Dataset Research Use Agreement
Citation
    Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert
    Comparison", AAAI 2019.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from fairtune.data.catalog import DATASETS
from fairtune.data.datasets._common import OLDEST, SEX, age_group, assemble, grouped
from fairtune.data.layout import check_references, download, find
from fairtune.data.manifest import Manifest
from fairtune.data.splits import split_by_key
from fairtune.data.tables import Table, read_table

PAGE = "https://stanfordaimi.azurewebsites.net"
RACES = ("White", "Black", "Asian", "other", "unknown")
UNKNOWN = "unknown|refused|decline"


@DATASETS.register("chexpert")
def chexpert(
    source: Path | None,
    *,
    unknown_race: Literal["keep", "drop"] = "keep",
    allow_missing: bool = False,
) -> Manifest:
    """Read CheXpert; see the module for its rules.

    Parameters
    ----------
    source
        The folder of the download.
    unknown_race
        Whether patients of unknown race are a group of their own or left out.
    allow_missing
        Whether rows whose image is not there are dropped.
    """
    root = download(source, "chexpert", PAGE)
    path = find(root, "train.csv", what="table of the training images", page=PAGE)
    table = read_table(path, only=("Path", "Sex", "Age", "No Finding"))
    names = ("CHEXPERT DEMO.xlsx", "CHEXPERT DEMO.csv", "CHEXPERT_DEMO.xlsx", "CHEXPERT_DEMO.csv")
    demographics = read_table(find(root, *names, what="table of demographics", page=PAGE))
    # "CheXpert-v1.0-small/train/patient00001/...": the first part is the folder of train.csv.
    whole = table.unique("Path")
    if not (fits := whole.str.match(r"[^/]+/[^/]+/[^/]+/.")).all():
        what = "is not like CheXpert-v1.0/train/patient00001/..."
        raise table.error(int(np.argmin(fits)), "Path", what)
    inside = whole.str.replace(r"^[^/]+/", "", regex=True)
    folder = path.parent.relative_to(root).as_posix()
    patient = inside.str.replace(r"^[^/]+/([^/]+)/.*$", r"\1", regex=True)
    sex = table.choices("Sex", values={**SEX, "unknown": None})
    age = table.numbers("Age", least=0, most=OLDEST)
    race = patient.map(_races(demographics))
    frame = pd.DataFrame(
        {
            "image": inside if folder == "." else f"{folder}/" + inside,
            "label": table.numbers("No Finding", least=-1, most=1).eq(1).astype(int),
            "patient": patient,
            "sex": sex.astype("category"),
            "age_group": age_group(age),
            "race": grouped(race, RACES),
            "race_binary": grouped(_binary(race), ("White", "non-White", "unknown")),
        }
    )
    unusable = {
        "no demographics": race.isna(),
        "no age or sex": race.notna() & (age.isna() | sex.isna()),
        "race unknown": race.eq("unknown") & (unknown_race == "drop") & age.notna() & sex.notna(),
    }
    frame = frame[~np.logical_or.reduce(list(unusable.values()))]
    frame, missing = check_references(
        frame.assign(split=split_by_key(frame["patient"])), root, allow_missing=allow_missing
    )
    return assemble(
        "chexpert",
        root,
        frame,
        ["finding", "no finding"],
        options={"unknown_race": unknown_race, "allow_missing": allow_missing},
        dropped={reason: mask.sum() for reason, mask in unusable.items()},
        official={"all": 222793} if unknown_race == "keep" else None,
        notes=missing,
    )


def _races(demographics: Table) -> pd.Series:
    """Map each patient to a race; the first word that fits decides, in the order of `RACES`."""
    text = demographics.text("PRIMARY_RACE", required=False).fillna("unknown").str.lower()
    race = pd.Series("other", index=text.index).mask(text.str.contains(UNKNOWN), "unknown")
    for name in reversed(RACES[:3]):
        race = race.mask(text.str.contains(name.lower()), name)
    return race.set_axis(demographics.unique("PATIENT"))


def _binary(race: pd.Series) -> pd.Series:
    return race.where(race.isin(["White", "unknown"]) | race.isna(), "non-White")
