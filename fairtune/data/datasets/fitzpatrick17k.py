"""Fitzpatrick17k: clinical photographs of skin conditions, with Fitzpatrick skin types.

Task
    Malignant or not.
Official page
    https://github.com/mattgroh/fitzpatrick17k
Files
    `fitzpatrick17k.csv`, and the images fetched from its links, `<md5hash>.jpg`, in any folder or
    zip archive.
Label rule
    `three_partition_label` is "malignant"; benign and non-neoplastic count as not.
Sensitive attributes
    `skin_type` (I to VI) and `skin_tone` (light: I to III, dark: IV to VI). Images without a skin
    type (-1) are left out.
Split rule
    80/10/10 by image, MEDFAIR's draw with seeds 5 and 6.
Counts
    16,577 rows; 16,012 kept, 2,160 malignant; 11,063 light, 4,949 dark.
Licence
    CC BY-NC-SA 3.0
Citation
    Groh et al., "Evaluating Deep Neural Networks Trained on Clinical Images in Dermatology with the
    Fitzpatrick 17k Dataset", CVPR ISIC workshop 2021.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fairtune.data.catalog import DATASETS
from fairtune.data.datasets._common import assemble, grouped
from fairtune.data.layout import attach_images, download, find, find_all, image_references
from fairtune.data.manifest import Manifest
from fairtune.data.splits import split_by_key
from fairtune.data.tables import read_table

PAGE = "https://github.com/mattgroh/fitzpatrick17k"
TYPES = ("I", "II", "III", "IV", "V", "VI")
TONES = ("light", "dark")
LABELS = {"malignant": 1, "benign": 0, "non-neoplastic": 0}


@DATASETS.register("fitzpatrick17k")
def fitzpatrick17k(source: Path | None, *, allow_missing: bool = False) -> Manifest:
    """Read Fitzpatrick17k; see the module for its rules.

    Parameters
    ----------
    source
        The folder of the download.
    allow_missing
        Whether rows whose image is not there are dropped; many of the links are dead.
    """
    root = download(source, "fitzpatrick17k", PAGE)
    table = read_table(find(root, "fitzpatrick17k.csv", what="metadata table", page=PAGE))
    scale = {"-1": None, **{str(number): name for number, name in enumerate(TYPES, 1)}}
    scale |= {f"{number}.0": name for number, name in scale.items()}
    skin_type = table.choices("fitzpatrick_scale", "fitzpatrick", values=scale)
    tone = skin_type.map(lambda name: TONES[TYPES.index(name) >= 3], na_action="ignore")
    frame = pd.DataFrame(
        {
            "id": table.unique("md5hash"),
            "label": table.choices("three_partition_label", values=LABELS).astype(int),
            "skin_type": grouped(skin_type, TYPES),
            "skin_tone": grouped(tone, TONES),
        }
    )
    frame = frame[table.where(skin_type.notna())]
    frame = frame.assign(patient=frame["id"], split=split_by_key(frame["id"], seeds=(5, 6)))
    references = image_references(root, [root, *find_all(root, "*.zip")])
    frame, missing = attach_images(
        frame, references, "id", where=str(root), allow_missing=allow_missing
    )
    return assemble(
        "fitzpatrick17k",
        root,
        frame,
        ["not malignant", "malignant"],
        options={"allow_missing": allow_missing},
        dropped={"no skin type": skin_type.isna().sum()},
        official={"all": 16012},
        notes=missing,
    )
