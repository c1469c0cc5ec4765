"""Whether the fast path comes to the results of a plain loop: validation AUROC of both, seed by seed.

    python -m benchmarks.agreement [--source ../shared/data/ham10000] [--seeds 5]

The loops are those of `benchmarks.trial`: the plain one crops JPEG files and computes in 32-bit floats. Of
a seed they share model, weights, mask, classifier at the start, images and recipe; order and crops are
drawn by each for itself, so that the difference of one seed is mostly that of two draws. What counts is
the mean of the differences over its standard error. Without `--source` the images are generated.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.trial import arguments, make_files, ours, plain

FIGURES = {"auroc": "AUROC,", "worst": "worst group,"}


def main() -> None:
    parser = arguments()
    parser.description = __doc__.splitlines()[0]
    parser.set_defaults(
        architecture="tf_efficientnet_lite0",
        weights="efficientnet_lite0",
        space="stages_norm_conv",
        size=96,
        images=384,
        val_images=320,
        epochs=3,
        learning_rate=1e-3,
    )
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["FAIRTUNE_CACHE"] = str(folder / "cache")
        make_files(folder, options)
        for seed in range(options.seeds):
            for loop, run in (("fairtune", ours), ("plain loop", plain)):
                found = run(folder, seed, options)
                rows.append({"loop": loop, "seed": seed, **{key: found[key] for key in FIGURES}})
                sys.stderr.write(f"{rows[-1]}\n")
    print(
        f"{options.architecture}, weights {options.weights}, {options.size} px, {options.images} + "
        f"{options.val_images} {'HAM10000' if options.source else 'generated'} images, batch "
        f"{options.batch}, {options.epochs} epochs at {options.learning_rate:g}, {options.space} with "
        "half of its bits\n"
    )
    print(table(pd.DataFrame(rows)))


def table(rows: pd.DataFrame) -> str:
    """Return both loops and their difference by seed, then mean ± standard error over the seeds."""
    apart = rows.pivot(index="seed", columns="loop")
    columns = [
        column
        for key in FIGURES
        for fast, slow in [(apart[key, "fairtune"], apart[key, "plain loop"])]
        for column in (fast, slow, fast - slow)
    ]
    names = [
        f"{name} {what}"
        for name in FIGURES.values()
        for what in ("fairtune", "plain loop", "difference")
    ]
    lines = [("seed", *names), ("---",) * (len(names) + 1)]
    lines += [
        (str(seed), *(f"{column[seed]:{sign(i)}.3f}" for i, column in enumerate(columns)))
        for seed in apart.index
    ]
    means = (f"{c.mean():{sign(i)}.3f} ± {c.sem():.3f}" for i, c in enumerate(columns))
    lines.append(("mean ± standard error", *means))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sign(column: int) -> str:
    """Return the format of a column's sign: a difference, every third, always shows it."""
    return "+" if column % 3 == 2 else ""


if __name__ == "__main__":
    main()
