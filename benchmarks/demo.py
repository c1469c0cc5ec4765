"""The demo over several seeds: the fairness gap, and what the searched mask makes of it.

Each seed draws other people and lesions, and runs a whole search as configs/demo.yaml says. The searched
mask is the best by validation; the test split of each seed is read once.

    python -m benchmarks.demo --seeds 5
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

SPLITS = ("train", "val", "test")
MODELS = ("full fine-tuning", "linear probe", "searched mask")
METRICS = {"worst_group_auroc": "worst group", "auroc_gap": "gap"}
CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


def one_seed(seed: int) -> pd.DataFrame:
    """Search on one draw of the data; a row per model, figures are means over its fine-tunes."""
    from fairtune.config import load_config
    from fairtune.interrupt import StopRequest
    from fairtune.search.search import search

    overrides = [f"seed={seed}", f"data.options.seed={seed}", "register.name=null"]
    table = search(load_config(CONFIG, overrides), None, StopRequest()).comparison
    name = table["model"].str.removesuffix(" (winner)")
    table["model"] = name.where(~name.str.startswith("trial-"), "searched mask")
    return table.assign(seed=seed)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean ± standard error over seeds of worst-group AUROC and AUROC gap on every split."""
    found = []
    for model in MODELS:
        mine = rows[rows["model"] == model]
        row: dict[str, object] = {"model": model, "n": len(mine)}
        for metric, title in METRICS.items():
            for split in SPLITS:
                values = mine[f"{split}/{metric}"]
                row[f"{split} {title}"] = f"{values.mean():.3f} ± {values.sem():.3f}"
        found.append(row)
    return pd.DataFrame(found)


def differences(rows: pd.DataFrame) -> list[str]:
    """Compare the searched mask with each baseline on test, paired over seeds."""
    by_model = {model: rows[rows["model"] == model].set_index("seed") for model in MODELS}
    lines = []
    for baseline in MODELS[:2]:
        for metric in ("worst_group_auroc", "auroc_gap", "auroc"):
            key = f"test/{metric}"
            apart = by_model["searched mask"][key] - by_model[baseline][key]
            lines.append(
                f"searched mask - {baseline}, {key}: {apart.mean():+.3f} ± {apart.sem():.3f} "
                f"(n = {len(apart)} seeds, better in "
                f"{int(((apart < 0) if metric == 'auroc_gap' else (apart > 0)).sum())})"
            )
    return lines


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Draw worst-group AUROC and AUROC gap from train to test, mean ± standard error over seeds."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for place, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for shift, (model, marker) in enumerate(zip(MODELS, "os^", strict=True)):
            columns = [f"{split}/{metric}" for split in SPLITS]
            values = rows[rows["model"] == model][columns]
            at = np.arange(len(SPLITS)) + 0.08 * (shift - 1)
            place.errorbar(
                at,
                values.mean(),
                values.sem(),
                marker=marker,
                capsize=3,
                linewidth=1.2,
                label=model,
            )
        place.set_xticks(range(len(SPLITS)), ["train", "validation", "test"])
        place.set_title(f"{title}, {rows['seed'].nunique()} draws", fontsize=10)
        place.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("AUROC")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main() -> None:
    """Run the seeds that are asked for and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many (default 5)")
    parser.add_argument("--first", type=int, default=1000, help="the first seed (default 1000)")
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="CSV files to add")
    parser.add_argument("--save", type=Path, help="CSV file to write the rows to")
    parser.add_argument("--figure", type=Path, help="SVG or PNG file to draw them into")
    arguments = parser.parse_args()
    known = [pd.read_csv(path) for path in arguments.rows]
    save = arguments.save and arguments.save.resolve()
    figure = arguments.figure and arguments.figure.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        os.chdir(folder)
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        rows = pd.concat([*known, *(one_seed(seed) for seed in seeds)])
        os.chdir(Path(__file__).parent)
    if save:
        rows.to_csv(save, index=False)
    if figure:
        draw(rows, figure)
    print(summary(rows).to_string(index=False))
    print()
    print("\n".join(differences(rows)))


if __name__ == "__main__":
    main()
