"""Small copies of each data set's official download: the real layout, generated images."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

LAYOUTS: dict[str, Callable[[Path], dict[str, Any]]] = {}
"""By data set: writes the download into a folder and returns the options to load it with."""


def layout(name: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def file(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
        LAYOUTS[name] = lambda folder: function(folder) or {}
        return function

    return file


def pixels(number: int, shape: tuple[int, ...] = (24, 32, 3)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def encoded(number: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(number)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def ham_table(n: int = 60) -> pd.DataFrame:
    dx = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    return pd.DataFrame(
        {
            "lesion_id": [f"HAM_{i // 2:07d}" for i in range(n)],
            "image_id": [f"ISIC_{i:07d}" for i in range(n)],
            "dx": [dx[i % 7] for i in range(n)],
            "dx_type": "histo",
            "age": [["45.0", "70.0", "15.0", ""][i % 4 if i == 3 else i % 3] for i in range(n)],
            "sex": ["unknown" if i == 4 else ["male", "female"][i % 2] for i in range(n)],
            "localization": [["back", "scalp"][i % 2] for i in range(n)],
        }
    )


@layout("ham10000")
def ham10000(folder: Path) -> None:
    table = ham_table()
    table.to_csv(folder / "HAM10000_metadata.csv", index=False)
    for part, rows in (("1", table[:30]), ("2", table[30:])):
        with zipfile.ZipFile(folder / f"HAM10000_images_part_{part}.zip", "w") as archive:
            for number, name in enumerate(rows["image_id"]):
                archive.writestr(f"{name}.jpg", encoded(number))


@layout("fitzpatrick17k")
def fitzpatrick17k(folder: Path) -> None:
    n = 60
    table = pd.DataFrame(
        {
            "md5hash": [f"{i:032x}" for i in range(n)],
            "fitzpatrick_scale": [-1 if i == 0 else i % 6 + 1 for i in range(n)],
            "fitzpatrick_centaur": 1,
            "label": "x",
            "nine_partition_label": "y",
            "three_partition_label": [
                ["malignant", "benign", "non-neoplastic"][i % 3] for i in range(n)
            ],
            "qc": "",
            "url": "",
            "url_alphanum": "",
        }
    )
    table.to_csv(folder / "fitzpatrick17k.csv", index=False)
    for number, name in enumerate(table["md5hash"]):
        write(folder / "images" / f"{name}.jpg", encoded(number))


@layout("papila")
def papila(folder: Path) -> None:
    base = folder / "PapilaDB-PAPILA-17f8fa7746adb20275b5b6a0d99dc9dfe3007e9f"
    (base / "ClinicalData").mkdir(parents=True)
    n = 20
    for side in ("od", "os"):
        header = [["ID", "Age", "Gender", "Diagnosis"], ["", "", "", ""], ["", "", "", ""]]
        rows = [[f"#{i:03d}", 40 + 2 * i, i % 2, i % 3] for i in range(1, n + 1)]
        frame = pd.DataFrame([row + [""] * 9 for row in header + rows])
        path = base / "ClinicalData" / f"patient_data_{side}.xlsx"
        frame.to_excel(path, header=False, index=False)
        for i in range(1, n + 1):
            write(base / "FundusImages" / f"RET{i:03d}{side.upper()}.jpg", encoded(i))


@layout("chexpert")
def chexpert(folder: Path) -> None:
    n, base = 48, folder / "CheXpert-v1.0-small"
    patients = [f"patient{i // 2:05d}" for i in range(n)]
    paths = [f"train/{p}/study1/view{i % 2 + 1}_frontal.jpg" for i, p in enumerate(patients)]
    table = pd.DataFrame(
        {
            "Path": [f"CheXpert-v1.0-small/{path}" for path in paths],
            "Sex": ["Unknown" if i == 5 else ["Male", "Female"][i // 2 % 2] for i in range(n)],
            "Age": [[55, 72][i // 4 % 2] for i in range(n)],
            "Frontal/Lateral": "Frontal",
            "AP/PA": "AP",
            "No Finding": [["1.0", "", "-1.0", "0.0"][i % 4] for i in range(n)],
            "Pneumonia": "",
        }
    )
    base.mkdir()
    table.to_csv(base / "train.csv", index=False)
    races = ["White, non-Hispanic", "Black or African American", "Asian", "Other", "Unknown"]
    races += ["White", "Pacific Islander", "Patient Refused"]
    demographics = pd.DataFrame(
        {
            "PATIENT": sorted(set(patients)),
            "GENDER": "Male",
            "AGE_AT_CXR": 60,
            "PRIMARY_RACE": [races[i % 8] for i in range(n // 2)],
            "ETHNICITY": "Unknown",
        }
    )
    demographics.iloc[1:].to_excel(folder / "CHEXPERT DEMO.xlsx", index=False)
    for number, path in enumerate(paths):
        write(base / path, encoded(number, mode="L"))


@layout("ol3i")
def ol3i(folder: Path) -> None:
    import h5py

    n = 40
    table = pd.DataFrame(
        {
            "anon_id": [f"exam{i:04d}" for i in range(n)],
            "label_1y": ["" if i == 0 else i % 2 for i in range(n)],
            "set_1y": [
                "" if i == 0 else ["train", "train", "val", "test"][i // 4 % 4] for i in range(n)
            ],
            "label_5y": [i % 2 for i in range(n)],
            "set_5y": [["train", "val", "test"][i // 4 % 3] for i in range(n)],
            "age": [50 + i % 21 for i in range(n)],
            "sex": [["male", "female"][i // 2 % 2] for i in range(n)],
            "bmi": 25.0,
        }
    )
    table.to_csv(folder / "clinical_data.csv", index=False)
    with h5py.File(folder / "l3_slices.h5", "w") as file:
        for number, name in enumerate(table["anon_id"]):
            file[name] = pixels(number, (16, 16)).astype(np.int16) * 8 - 1000


@layout("oasis1")
def oasis1(folder: Path) -> dict[str, Any]:
    import nibabel

    sessions = [f"OAS1_{i:04d}_MR1" for i in range(1, 41)] + ["OAS1_0003_MR2"]
    table = pd.DataFrame(
        {
            "ID": sessions,
            "M/F": [["M", "F"][i % 2] for i in range(len(sessions))],
            "Hand": "R",
            "Age": [25 + i % 4 * 20 for i in range(len(sessions))],
            "Educ": "",
            "SES": "",
            "MMSE": "",
            "CDR": [["", "0", "0.5", "1"][i // 2 % 4] for i in range(len(sessions))],
            "eTIV": 1400,
        }
    )
    table.to_csv(folder / "oasis_cross-sectional.csv", index=False)
    for number, name in enumerate(sessions):
        place = folder / f"disc{number % 3 + 1}" / name / "PROCESSED" / "MPRAGE" / "T88_111"
        place.mkdir(parents=True)
        volume = pixels(number, (12, 14, 8, 1)).astype(np.int16)
        image = nibabel.AnalyzeImage(volume, np.eye(4))
        for kind in ("masked_gfc", "gfc"):
            image.to_filename(place / f"{name}_mpr_n4_anon_111_t88_{kind}.hdr")
    return {"center": 4}


@layout("harvard_gf3300")
def harvard_gf3300(folder: Path) -> None:
    rows = []
    for i in range(1, 37):
        use = ["Training", "Training", "Validation", "Test"][i // 3 % 4]
        male, race, glaucoma, age = i % 2, i % 3, i // 2 % 2, 50.0 + i
        thickness = np.random.default_rng(i).uniform(-2, 350, (20, 20))
        path = folder / use / f"data_{i:04d}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, rnflt=thickness, glaucoma=glaucoma, md=-1.0, age=age, male=male, race=race)
        rows.append(
            {
                "filename": path.name,
                "age": age,
                "gender": ["female", "male"][male],
                "race": ["asian", "black", "white"][race],
                "ethnicity": "non-hispanic",
                "glaucoma": ["no", "yes"][glaucoma],
                "use": use.lower(),
            }
        )
    pd.DataFrame(rows).to_csv(folder / "data_summary.csv", index=False)


@layout("folder")
def own_folder(folder: Path) -> dict[str, Any]:
    n = 48
    table = pd.DataFrame(
        {
            "file": [f"pictures/{i}.png" for i in range(n)],
            "diagnosis": [["ill", "well"][i % 2] for i in range(n)],
            "person": [f"p{i // 2}" for i in range(n)],
            "years": [[30, 75][i // 2 % 2] for i in range(n)],
            "site": [["north", "south"][i // 4 % 2] for i in range(n)],
        }
    )
    table.to_csv(folder / "own.csv", index=False)
    for number, name in enumerate(table["file"]):
        write(folder / name, encoded(number, "PNG"))
    return {
        "table": "own.csv",
        "image_column": "file",
        "label_column": "diagnosis",
        "patient_column": "person",
        "positive": "ill",
        "attributes": {"site": "site", "years": {"column": "years", "bins": [60]}},
    }


@layout("synthetic")
def synthetic(folder: Path) -> None:
    """Nothing to download."""
