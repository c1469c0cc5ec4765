"""One trial of the published protocol: fairtune against a plain loop in ordinary PyTorch style.

    python -m benchmarks.trial [--source ../shared/data/ham10000] [--architecture vit_base_patch16_224]

Both fine-tune the same model from the same weights under the same mask (half of its bits set), on the
same JPEG files, in batches of one size, with random resized crops, flips and AdamW, and judge every
epoch on validation with metrics per group. The plain loop is what a script has: a `DataLoader` over the
files, 32-bit floats. Each runs in a process of its own, by turns, timed from the start of the process.
fairtune runs twice a round: the first time decodes the images, the second finds them decoded, as every
trial of a search but the first does. Without `--source` the images are generated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0
LOWEST = 0.01  # the schedule's end, as a share of its start
LOOPS = ("plain loop", "fairtune, first", "fairtune, again")


def arguments() -> argparse.ArgumentParser:
    """Return the options of a trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="", help="the download of HAM10000; else generated")
    parser.add_argument("--architecture", default="vit_tiny_patch16_224")
    parser.add_argument("--weights", default="none", help="as model.weights of a configuration")
    parser.add_argument("--space", default="auto_peft1")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=192, help="to train on")
    parser.add_argument("--val-images", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoader")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--device", default="auto")
    return parser


def main() -> None:
    parser = arguments()
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--prepare-only", metavar="FOLDER", help="leave files and table there")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        loop, seed, folder = options.child
        run = plain if loop == LOOPS[0] else ours
        print(json.dumps(run(Path(folder), int(seed), options)))
        return
    if options.prepare_only:
        make_files(Path(options.prepare_only), options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_files(folder, options)
        given = sys.argv[1:]
        rows = [one(loop, s, folder, given) for s in range(options.seeds) for loop in LOOPS]
    show(rows, options)


def make_files(folder: Path, options: argparse.Namespace, *, test: int = 0) -> None:
    """Write the JPEG files and their table."""
    (folder / "jpeg").mkdir(parents=True)
    wanted = {"train": options.images, "val": options.val_images, "test": test}
    table = real(folder, options.source, wanted) if options.source else generated(folder, wanted)
    table.to_csv(folder / "table.csv", index=False)


def real(folder: Path, source: str, wanted: dict[str, int]) -> Any:
    """Unpack some of HAM10000's images of each split, drawn at random."""
    import pandas as pd

    from fairtune.data import load_dataset
    from fairtune.data.references import ImageReader

    manifest = load_dataset("ham10000", Path(source)).select(["age_group"])
    parts = [
        manifest.table[manifest.table["split"] == split].sample(n, random_state=SEED)
        for split, n in wanted.items()
    ]
    table = pd.concat(parts)
    names = [f"jpeg/{Path(reference.split('::')[-1]).name}" for reference in table["image"]]
    with ImageReader(manifest.root) as reader:
        for name, reference in zip(names, table["image"], strict=True):
            (folder / name).write_bytes(reader.raw(reference))
    return table.assign(image=names)


def generated(folder: Path, wanted: dict[str, int]) -> Any:
    """Write noisy images of 600 by 450 pixels, most of them brighter where the label is 1."""
    import pandas as pd
    from PIL import Image

    rng = np.random.default_rng(SEED)
    rows = []
    for split, n in wanted.items():
        for i in range(n):
            label, name = int(rng.random() < 0.5), f"jpeg/{split}_{i}.jpg"
            level = rng.normal(110 + 25 * label, 25)
            rough = rng.normal(level, 40, (45, 60, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(rough).resize((600, 450), Image.Resampling.BICUBIC).save(folder / name)
            group = ("young", "old")[int(rng.random() < 0.5)]
            rows.append((name, label, f"{split}_{i}", split, group))
    return pd.DataFrame(rows, columns=["image", "label", "patient", "split", "age_group"])


def one(loop: str, seed: int, folder: Path, given: list[str]) -> dict[str, Any]:
    """Run one loop in a process of its own, timed from before its start to after its end."""
    if loop == LOOPS[1]:  # no decoded images yet
        os.environ["FAIRTUNE_CACHE"] = str(folder / f"cache-{seed}")
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.trial", *given]
    done = subprocess.run(
        [*command, "--child", loop, str(seed), str(folder)], stdout=subprocess.PIPE, check=True
    )
    return {
        "loop": loop,
        "seed": seed,
        "total": time.perf_counter() - started,
        **json.loads(done.stdout.splitlines()[-1]),
    }


def configuration(options: argparse.Namespace, **search: Any) -> Any:
    """Return the configuration of both loops."""
    from fairtune.config import parse_config

    columns = {f"{name}_column": name for name in ("image", "label", "patient", "split")}
    return parse_config(
        {
            "seed": SEED,
            "device": options.device,
            "data": {
                "name": "folder",
                "options": {"table": "table.csv", "attributes": ["age_group"], **columns},
                "attributes": ["age_group"],
                "image_size": options.size,
                "store_size": options.size * 8 // 7,
            },
            "model": {"architecture": options.architecture, "weights": options.weights},
            "train": {
                "epochs": options.epochs,
                "batch_size": options.batch,
                "learning_rate": options.learning_rate,
                "warmup": 0.0,
            },
            "search": {"space": options.space, **search},
        },
        "benchmark",
    )


def half(space: Any, model: Any, seed: int) -> Any:
    """Return a mask with half of the bits set, drawn from the seed."""
    n = len(space.bit_names(model))
    bits = np.random.default_rng(seed).permutation(np.arange(n) % 2)
    return space.mask(model, tuple(int(bit) for bit in bits))


def summary(report: Any, begun: float, epochs: list[tuple[float, float]]) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "setup": begun,
        "train": [train for train, _ in epochs],
        "val": [val for _, val in epochs],
        "auroc": report.headline["auroc"],
        "worst": report.headline["worst_group_auroc"],
        "peak_mb": peak
        / (1 if sys.platform == "darwin" else 1024)
        / (1e3 if sys.platform == "darwin" else 1),
    }


def ours(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune with fairtune."""
    start = time.perf_counter()
    from fairtune.training import fine_tune
    from fairtune.workspace import open_workspace

    space = open_workspace(configuration(options), str(folder))
    model = space.model(half(space.space, space.base.model, seed), seed)
    train, val = space.split("train"), space.split("val")
    begun = time.perf_counter() - start
    ends = [time.perf_counter()]
    result = fine_tune(
        model,
        train,
        val,
        space.spec,
        space.config.train,
        seed=seed,
        device=space.device,
        on_epoch=lambda epoch: ends.append(time.perf_counter()) or True,
    )
    whole = np.diff(ends)
    epochs = [(e.seconds, float(w - e.seconds)) for e, w in zip(result.epochs, whole, strict=True)]
    return summary(result.report, begun, epochs)


def plain(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune as a script would."""
    start = time.perf_counter()
    import pandas as pd
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from fairtune.fairness import evaluate
    from fairtune.peft import BaseModel, apply_mask, get_space, set_train_mode
    from fairtune.training import choose_device

    class Jpegs(Dataset):
        def __init__(self, rows: pd.DataFrame, transform: transforms.Compose) -> None:
            self.files = [folder / name for name in rows["image"]]
            self.labels, self.transform = rows["label"].tolist(), transform

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            image = Image.open(self.files[index]).convert("RGB")
            return self.transform(image), self.labels[index]

    torch.manual_seed(seed)
    device = choose_device(options.device)
    base = BaseModel(options.architecture, num_classes=2, weights=options.weights, seed=SEED)
    model = base.fresh(seed)
    apply_mask(model, half(get_space(options.space), model, seed))
    model.to(device)
    table = pd.read_csv(folder / "table.csv")
    train, val = (table[table["split"] == s].reset_index(drop=True) for s in ("train", "val"))
    end = [transforms.ToTensor(), transforms.Normalize(*base.normalization)]
    crop = [transforms.RandomResizedCrop(options.size), transforms.RandomHorizontalFlip()]
    batches = DataLoader(
        Jpegs(train, transforms.Compose([*crop, *end])),
        batch_size=options.batch,
        shuffle=True,
        num_workers=options.workers,
    )
    whole = transforms.Resize((options.size, options.size))
    val_batches = DataLoader(
        Jpegs(val, transforms.Compose([whole, *end])),
        batch_size=options.batch,
        num_workers=options.workers,
    )
    counts = np.bincount(train["label"])
    weight = torch.tensor(len(train) / (2 * counts), dtype=torch.float32, device=device)
    criterion = torch.nn.CrossEntropyLoss(weight=weight)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, options.epochs * len(batches), eta_min=options.learning_rate * LOWEST
    )
    begun, epochs = time.perf_counter() - start, []
    for _ in range(options.epochs):
        started = time.perf_counter()
        set_train_mode(model)
        for x, y in batches:
            loss = criterion(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        trained_at = time.perf_counter()
        model.eval()
        with torch.no_grad():
            scores = torch.cat([model(x.to(device)).softmax(1).cpu() for x, _ in val_batches])
        report = evaluate(
            val["label"].to_numpy(), scores.double().numpy(), val[["age_group"]].astype("category")
        )
        epochs.append((trained_at - started, time.perf_counter() - trained_at))
    return summary(report, begun, epochs)


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the median of the seeds, and each ratio's smallest and largest."""
    print(
        f"{options.architecture}, {options.size} px, {options.images} + {options.val_images} "
        f"{'HAM10000' if options.source else 'generated'} images, batch {options.batch}, "
        f"{options.epochs} epochs, {options.space} with half of its bits, {options.seeds} seed(s)\n"
    )
    print(
        "| loop | from process start, s | of it set-up | train, images/s | validation, images/s "
        "| an epoch, s | peak memory, MB | AUROC of each seed | worst group |"
    )
    print("| --- |" + " --- |" * 8)
    for loop in LOOPS:
        of = [row for row in rows if row["loop"] == loop]
        median = {
            key: float(np.median([row[key] for row in of])) for key in ("total", "setup", "peak_mb")
        }
        train, val = (np.median([row[key] for row in of]) for key in ("train", "val"))
        aurocs = ", ".join(f"{row['auroc']:.3f}" for row in of)
        worst = ", ".join(f"{row['worst']:.3f}" for row in of)
        print(
            f"| {loop} | {median['total']:.1f} | {median['setup']:.1f} | {options.images / train:.1f} "
            f"| {options.val_images / val:.1f} | {train + val:.1f} | {median['peak_mb']:,.0f} "
            f"| {aurocs} | {worst} |"
        )
    print()
    for name, time_of in (
        ("the whole process, first trial", lambda row: row["total"]),
        ("the whole process, later trials", lambda row: row["total"]),
        ("an epoch", lambda row: sum(row["train"]) + sum(row["val"])),
    ):
        against = LOOPS[1] if "first" in name else LOOPS[2]
        times = {loop: [time_of(row) for row in rows if row["loop"] == loop] for loop in LOOPS}
        ratio = np.array(times[LOOPS[0]]) / np.array(times[against])
        print(
            f"{name}: {np.median(ratio):.1f} times as fast ({ratio.min():.1f} to {ratio.max():.1f})"
        )


if __name__ == "__main__":
    main()
