"""Runs made by hand, as a search would log them, from made-up predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from safetensors.numpy import save_file

from fairtune.fairness import FairnessReport, evaluate
from fairtune.peft import Mask
from fairtune.tracking.predictions import groups_of, probabilities_of
from fairtune.tracking.runs import KIND, RunLog, open_run, split_metrics

PARTS = {"norms": ("norm1", "norm2"), "attn": ("attn",), "mlp": ("mlp",)}
SIZES = {"norm1": (8,), "norm2": (8,), "attn": (8, 24), "mlp": (8, 32)}
N = {"train": 240, "val": 120, "test": 160}


def predictions(
    split: str,
    groups: Mapping[str, Sequence[str]],
    *,
    skill: float = 1.0,
    n_classes: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Make predictions whose skill falls from group to group of the first attribute."""
    rng = np.random.default_rng([seed, list(N).index(split)])
    n = N[split]
    table = pd.DataFrame(
        {
            "image": [f"{split}-{i}.png" for i in range(n)],
            "patient": [f"p{i // 2}" for i in range(n)],
            "label": np.random.default_rng(list(N).index(split)).integers(0, n_classes, n),
        }
    )
    columns = {
        attribute: pd.Categorical.from_codes(
            np.random.default_rng([7, k, n]).integers(0, len(names), n), list(names)
        )
        for k, (attribute, names) in enumerate(groups.items())
    }
    first = next(iter(columns.values())).codes
    strength = skill * (2.0 - first / max(first.max(), 1))[:, None]
    logits = rng.normal(size=(n, n_classes)) + strength * np.eye(n_classes)[table["label"]]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for c in range(n_classes):
        table[f"probability_{c}"] = scores[:, c]
    return pd.concat([table, pd.DataFrame(columns)], axis=1)


def report_of(table: pd.DataFrame, threshold: float | None = None) -> FairnessReport:
    scores = probabilities_of(table)
    threshold = None if scores.shape[1] > 2 else threshold
    return evaluate(table["label"], scores, groups_of(table), threshold=threshold)


def shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 8), "head.weight": (2, 8)}
    for i in range(blocks):
        found |= {f"blocks.{i}.{part}.weight": shape for part, shape in SIZES.items()}
    return found


def mask_of(bits: Sequence[int], blocks: int, space: str = "auto_peft1") -> Mask:
    names = [f"blocks.{i:02d}.{part}" for i in range(blocks) for part in PARTS]
    sizes = {name: math.prod(shape) for name, shape in shapes(blocks).items()}
    on = {"head.weight"}
    for name, bit in zip(names, bits, strict=False):
        _, i, part = name.split(".")
        on |= {f"blocks.{int(i)}.{p}.weight" for p in PARTS[part] if bit}
    if space == "fullft":
        names, bits, on = [], [], set(sizes)
    return Mask(
        space=space,
        architecture="vit_made_up",
        names=tuple(names),
        bits=tuple(bits),
        parameters=tuple(sorted(on)),
        trained=sum(sizes[name] for name in on),
        total=sum(sizes.values()),
    )


def write_model(log: RunLog, mask: Mask, blocks: int, folder: Path) -> None:
    """Log a mask and a weight file with what it trains."""
    log.text("mask.json", mask.to_json())
    tensors = {
        n: np.zeros(s, np.float32) for n, s in shapes(blocks).items() if n in mask.parameters
    }
    save_file(tensors, folder / "delta.safetensors")
    log.file(folder / "delta.safetensors")


def write_evaluation(log: RunLog, tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Log reports and predictions of these splits, as the final evaluation does."""
    reports = {split: report_of(table, 0.5) for split, table in tables.items()}
    for split, report in reports.items():
        log.log(metrics=split_metrics(split, report))
        tables[split].to_parquet(folder / f"{split}.parquet")
        log.file(folder / f"{split}.parquet", "predictions")
    log.json("reports.json", {split: json.loads(r.to_json()) for split, r in reports.items()})


def config(groups: Mapping[str, Sequence[str]], **search: Any) -> str:
    return yaml.safe_dump(
        {
            "seed": 4,
            "data": {"name": "made up", "attributes": list(groups)},
            "model": {"architecture": "vit_made_up"},
            "search": {"objective": "worst_group_auroc", "space": "auto_peft1", **search},
        }
    )


def add_trial(
    search: RunLog,
    number: int,
    bits: Sequence[int],
    blocks: int,
    value: float,
    *,
    status: str = "FINISHED",
    tags: Mapping[str, str] | None = None,
    epochs: int = 3,
) -> None:
    mask = mask_of(bits, blocks)
    log = search.child(
        f"trial-{number:03d}",
        "trial",
        params={
            "mask": mask.text,
            "learning_rate": f"{10 ** (-4 + number % 5 / 2):.1e}",
            "trained_share": f"{mask.share:.4g}",
            **{f"mask.{name}": bit for name, bit in mask.named_bits().items()},
        },
        tags={"fairtune.number": str(number), **(tags or {})},
    )
    if not math.isnan(value):
        for epoch in range(1, epochs + 1):
            log.log(metrics={"objective": value - 0.05 * (epochs - epoch)}, step=epoch)
        log.log(
            metrics={
                "val/worst_group_auroc": value,
                "val/auroc": value + 0.04 + 0.01 * math.sin(number),
                "epochs": epochs,
                "seconds": 2.0,
            }
        )
    log.end(status)


def make_search(
    folder: Path,
    groups: Mapping[str, Sequence[str]],
    *,
    blocks: int = 2,
    trials: int = 6,
    winner: str = "trial-001",
    n_classes: int = 2,
    finish: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Log a whole search; returns its run id. Without `finish` it is cut off before the finals."""
    rng = np.random.default_rng(0)
    bits = [rng.integers(0, 2, 3 * blocks).tolist() for _ in range(trials)]
    try:
        with open_run("search", "search made up", experiment="fairtune") as log:
            log.text("config.yaml", config(groups, pruning={"rule": "halving"}))
            log.log(tags={"fairtune.objective": "worst_group_auroc", "fairtune.dataset": "made up"})
            if facts:
                log.json("facts.json", facts)
            for number in range(trials):
                fate: dict[str, Any] = {}
                value = 0.7 + 0.02 * sum(bits[number]) / blocks
                if number == 2:
                    value, fate = math.nan, {"status": "FAILED"}
                    fate["tags"] = {"fairtune.error": "the loss is not finite <b>at all</b>"}
                if number == 3:
                    fate = {"tags": {"fairtune.pruned_at": "1"}, "epochs": 1}
                add_trial(log, number, bits[number], blocks, value, **fate)
                log.log(metrics={"rung/001": value}, step=number)
            if not finish:
                raise KeyboardInterrupt
            _finish(log, folder, groups, bits, blocks, winner, n_classes)
    except KeyboardInterrupt:
        pass
    return log.run_id


def _finish(
    log: RunLog,
    folder: Path,
    groups: Mapping[str, Sequence[str]],
    bits: list[list[int]],
    blocks: int,
    winner: str,
    n_classes: int,
) -> None:
    skills = {"trial-001": 1.2, "full fine-tuning": 1.0, "linear probe": 0.3}
    rows = []
    for name in sorted(skills, key=lambda name: name != winner):
        mask = mask_of(
            {"trial-001": bits[1], "full fine-tuning": [1] * 3 * blocks}.get(
                name, [0] * 3 * blocks
            ),
            blocks,
            "fullft" if name == "full fine-tuning" else "auto_peft1",
        )
        reports = []
        for index in range(2):
            run = log.child(
                f"final {name} seed-{index}",
                "final",
                params={"seed_index": index, "learning_rate": 1e-3},
                tags={"fairtune.candidate": name},
            )
            tables = {
                split: predictions(
                    split, groups, skill=skills[name], n_classes=n_classes, seed=10 + index
                )
                for split in N
            }
            write_evaluation(run, tables, folder)
            write_model(run, mask, blocks, folder)
            reports.append({split: report_of(table, 0.5) for split, table in tables.items()})
            run.log(metrics={"objective": reports[-1]["val"].headline["worst_group_auroc"]})
            run.end()
        if name == winner:
            log.log(tags={"fairtune.best_run_id": run.run_id, "fairtune.winner": name})
            write_evaluation(log, tables, folder)
            write_model(log, mask, blocks, folder)
        rows.append(_comparison_row(name, winner, reports))
    log.text("comparison.csv", pd.DataFrame(rows).to_csv(index=False))


def _comparison_row(
    name: str, winner: str, reports: list[dict[str, FairnessReport]]
) -> dict[str, object]:
    row: dict[str, object] = {"model": f"{name} (winner)" if name == winner else name, "n": 2}
    for split in N:
        for metric in ("auroc", "worst_group_auroc", "auroc_gap"):
            values = [found[split].headline[metric] for found in reports]
            row[f"{split}/{metric}"] = np.mean(values)
            row[f"{split}/{metric}_se"] = np.std(values, ddof=1) / math.sqrt(2)
    gaps = [f["test"].headline["auroc_gap"] - f["train"].headline["auroc_gap"] for f in reports]
    row["test/fairness_generalization_gap"] = np.mean(gaps)
    row["test/fairness_generalization_gap_se"] = np.std(gaps, ddof=1) / math.sqrt(2)
    return row


def make_finetune(
    folder: Path,
    groups: Mapping[str, Sequence[str]],
    *,
    kind: str = "finetune",
    empty: str | None = None,
    drawn: Mapping[str, object] | None = None,
) -> str:
    """Log one fine-tune that was judged on validation alone; no row is of the group `empty`.

    What was `drawn` beside mask and learning rate is searched by the configuration.
    """
    with open_run("finetune", "finetune made up", experiment="fairtune") as log:
        params = {"learning_rate": 0.001, "mask": "101000", **(drawn or {})}
        log.log(tags={KIND: kind}, params=params)
        extra = {name: {"choices": [value, value]} for name, value in (drawn or {}).items()}
        log.text("config.yaml", config(groups, extra=extra))
        table = predictions("val", groups)
        if empty is not None:
            table = table[(table[list(groups)] != empty).all(axis=1)].reset_index(drop=True)
        report = report_of(table)
        log.log(metrics=split_metrics("val", report))
        log.text("report.json", report.to_json())
        table.to_parquet(folder / "val.parquet")
        log.file(folder / "val.parquet", "predictions")
        write_model(log, mask_of([1, 0, 1, 0, 0, 0], 2), 2, folder)
    return log.run_id
