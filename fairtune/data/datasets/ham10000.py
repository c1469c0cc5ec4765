"""HAM10000: dermoscopic images of pigmented skin lesions.

Task
    Benign or malignant; or the seven diagnoses.
Official page
    https://doi.org/10.7910/DVN/DBW86T
Files
    `HAM10000_images_part_1.zip` and `_part_2.zip` (or folders of these names, or one folder
    `HAM10000_images`), and `HAM10000_metadata` (`.csv`, `.tab` or no suffix).
Label rule
    `malignant_mel_akiec`, the rule of MEDFAIR and FairTune: akiec and mel are malignant, bcc is
    benign. `malignant_with_bcc` counts bcc as malignant. `seven_class` keeps the diagnoses.
Sensitive attributes
    `age_group` (<=60, >60), `age_band` (five of twenty years), `sex`, `localization`. Images
    without an age or with an unknown sex are left out.
Split rule
    80/10/10 by lesion, MEDFAIR's draw with seeds 0 and 0. No patients are named: two lesions of one
    person may stand in two splits, and what is "by patient" elsewhere is by lesion here.
Counts
    10,015 images of 7,470 lesions; 9,948 kept, 1,438 malignant; 7,967 / 969 / 1,012.
Licence
    CC BY-NC 4.0
Citation
    Tschandl, Rosendahl, Kittler, "The HAM10000 dataset, a large collection of multi-source
    dermatoscopic images of common pigmented skin lesions", Scientific Data 5, 180161 (2018).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from fairtune.data.catalog import DATASETS
from fairtune.data.datasets._common import OLDEST, SEX, age_band, age_group, assemble
from fairtune.data.layout import attach_images, download, find, find_all, image_references
from fairtune.data.manifest import Manifest
from fairtune.data.splits import split_by_key
from fairtune.data.tables import read_table

PAGE = "https://doi.org/10.7910/DVN/DBW86T"
DIAGNOSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
MALIGNANT = {
    "malignant_mel_akiec": ("akiec", "mel"),
    "malignant_with_bcc": ("akiec", "bcc", "mel"),
}
OFFICIAL = {"train": 7967, "val": 969, "test": 1012}


@DATASETS.register("ham10000")
def ham10000(
    source: Path | None,
    *,
    label: Literal["malignant_mel_akiec", "malignant_with_bcc", "seven_class"] = (
        "malignant_mel_akiec"
    ),
    allow_missing: bool = False,
) -> Manifest:
    """Read HAM10000; see the module for its rules.

    Parameters
    ----------
    source
        The folder of the download.
    label
        The label rule.
    allow_missing
        Whether rows whose image is not there are dropped.
    """
    root = download(source, "ham10000", PAGE)
    names = ("HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata")
    table = read_table(find(root, *names, what="metadata table", page=PAGE))
    diagnosis = table.choices("dx", values={name: name for name in DIAGNOSES})
    age = table.numbers("age", least=0, most=OLDEST)
    sex = table.choices("sex", values={**SEX, "unknown": None})
    if label == "seven_class":
        classes, code = list(DIAGNOSES), diagnosis.map(DIAGNOSES.index)
    else:
        classes, code = ["benign", "malignant"], diagnosis.isin(MALIGNANT[label])
    frame = pd.DataFrame(
        {
            "id": table.unique("image_id"),
            "label": code.astype(int),
            "patient": table.text("lesion_id"),
            "age_group": age_group(age),
            "age_band": age_band(age),
            "sex": sex.astype("category"),
            "localization": table.text("localization").astype("category"),
        }
    )
    dropped = {"no age": age.isna().sum(), "sex unknown": (age.notna() & sex.isna()).sum()}
    frame = frame[table.where(age.notna() & sex.notna())]
    # The draw is over all lesions, so that no image changes its split because another is missing.
    frame["split"] = split_by_key(frame["patient"])
    places = find_all(root, "HAM10000_images_part_?", "HAM10000_images_part_?.zip")
    places += find_all(root, "HAM10000_images", "HAM10000_images.zip")
    references = image_references(root, places or [root])
    frame, missing = attach_images(
        frame, references, "id", where=str(root), allow_missing=allow_missing
    )
    return assemble(
        "ham10000",
        root,
        frame,
        classes,
        options={"label": label, "allow_missing": allow_missing},
        dropped=dropped,
        official=OFFICIAL,
        notes=missing,
    )
