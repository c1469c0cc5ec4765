"""OASIS-1: cross-sectional T1 MRI of adults of all ages, some of them demented.

Task
    Dementia (clinical dementia rating above 0) or none.
Official page
    https://www.oasis-brains.org
Files
    `oasis_cross-sectional.csv` (or `.xlsx`) and the discs with, for each session,
    `PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.hdr` and `.img`.
Label rule
    `CDR` above 0; it is empty for the young controls, who count as not demented.
Sensitive attributes
    `sex` and `age_group` (<=60, >60).
Split rule
    80/10/10 by subject, stratified by label, sex and age group.
Counts
    436 sessions of 416 subjects; the 20 repeats (`_MR2`) are left out; 100 demented.
Licence
    OASIS Data Use Agreement
Citation
    Marcus et al., "Open Access Series of Imaging Studies (OASIS): Cross-sectional MRI Data in
    Young, Middle Aged, Nondemented, and Demented Older Adults", J. Cogn. Neurosci. 19 (2007).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

from fairtune.data.catalog import DATASETS
from fairtune.data.datasets._common import OLDEST, SEX, age_group, assemble
from fairtune.data.layout import attach_images, download, files_below, find
from fairtune.data.manifest import Manifest
from fairtune.data.references import MEMBER
from fairtune.data.splits import split_stratified, strata_of
from fairtune.data.tables import read_table

PAGE = "https://www.oasis-brains.org"
ATTRIBUTES = ["sex", "age_group"]
VOLUME = r"(OAS1_\d{4}_MR1)_mpr_n\d_anon_111_t88_%sgfc\.(?:hdr|nii|nii\.gz)$"


@DATASETS.register("oasis1")
def oasis1(
    source: Path | None,
    *,
    skull_stripped: bool = True,
    center: Annotated[int, Field(ge=1)] = 88,
    slices: Annotated[int, Field(ge=1, le=50)] = 1,
    seed: int = 0,
    allow_missing: bool = False,
) -> Manifest:
    """Read OASIS-1; see the module for its rules.

    Parameters
    ----------
    source
        The folder of the download.
    skull_stripped
        Whether the masked volumes are used, or those with the skull.
    center
        The axial slice (of 176) about which images are taken; its neighbours are the red and the
        blue channel.
    slices
        How many images a subject gives, three slices apart.
    seed
        Of the split.
    allow_missing
        Whether subjects whose volume is not there are dropped.
    """
    root = download(source, "oasis1", PAGE)
    names = ("oasis_cross-sectional.csv", "oasis_cross-sectional*.xlsx", "oasis_cross-sectional*")
    table = read_table(find(root, *names, what="table of sessions", page=PAGE))
    session = table.unique("ID")
    frame = pd.DataFrame(
        {
            "id": session,
            "patient": session.str.rsplit("_", n=1).str[0],
            "label": table.numbers("CDR", least=0, most=3).gt(0).astype(int),
            "sex": table.choices("M/F", "Sex", values=SEX).astype("category"),
            "age_group": age_group(table.numbers("Age", least=0, most=OLDEST)),
        }
    )
    first = session.str.endswith("_MR1") & frame["age_group"].notna()
    frame = frame[table.where(first)]
    strata = strata_of(frame["label"], frame[ATTRIBUTES])
    frame = frame.assign(split=split_stratified(frame["patient"], strata, seed=seed))
    pattern = re.compile(VOLUME % ("masked_" if skull_stripped else ""))
    matches = ((pattern.search(name), name) for name in files_below(root))
    volumes = {match[1]: name for match, name in matches if match}
    frame, missing = attach_images(
        frame, volumes, "id", where=str(root), allow_missing=allow_missing
    )
    centers = [center + 3 * (number - slices // 2) for number in range(slices)]
    images = [
        frame.assign(image=frame["image"] + f"{MEMBER}{middle - 1}-{middle + 1}")
        for middle in centers
    ]
    return assemble(
        "oasis1",
        root,
        pd.concat(images, ignore_index=True),
        ["not demented", "demented"],
        options={
            "skull_stripped": skull_stripped,
            "center": center,
            "slices": slices,
            "seed": seed,
        },
        dropped={"repeated session or no age": (~first).sum()},
        official={"all": 416} if slices == 1 else None,
        notes=missing,
    )
