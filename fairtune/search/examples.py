"""Example images of every group, for the report: only where the configuration asks for them.

Images of people go into the tracking store this way, where others see them. So nothing is shown unless
``data.example_images`` says that the licence and the people's consent allow it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fairtune.fairness import slug
from fairtune.seeding import seed as named_seed
from fairtune.tracking.runs import RunLog
from fairtune.training import Split

FOLDER = "examples"
INDEX = f"{FOLDER}/index.json"
SIDE = 64


def log_examples(log: RunLog, split: Split, n: int, seed: int) -> None:
    """Log a strip of up to `n` images of each class in each group as JPEG, and an index of them.

    Parameters
    ----------
    split
        The training split: nobody chooses anything by looking at these.
    n
        Images in a strip; the report shows them at 64 pixels.
    seed
        Of the draw.
    """
    index = []
    with tempfile.TemporaryDirectory() as folder:
        for attribute in split.groups.columns:
            groups = split.groups[attribute]
            for group in groups.cat.categories:
                for label, name in enumerate(split.classes):
                    rows = np.flatnonzero((groups == group).to_numpy() & (split.labels == label))
                    draw = np.random.default_rng(
                        named_seed(seed, "examples", attribute, group, label)
                    )
                    chosen = draw.permutation(rows)[:n]
                    if not len(chosen):
                        continue
                    path = Path(folder) / f"{slug(attribute)}-{slug(str(group))}-{label}.jpg"
                    _strip(split, chosen).save(path, quality=85)
                    log.file(path, FOLDER)
                    index.append(
                        {
                            "attribute": attribute,
                            "group": str(group),
                            "class": name,
                            "n": len(chosen),
                            "file": path.name,
                        }
                    )
    log.json(INDEX, index)


def _strip(split: Split, chosen: np.ndarray) -> Image.Image:
    strip = Image.new("RGB", (SIDE * len(chosen), SIDE))
    for place, row in enumerate(chosen):
        picture = Image.fromarray(np.asarray(split.images[split.rows[row]]))
        strip.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (place * SIDE, 0))
    return strip
