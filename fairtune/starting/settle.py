"""From what was chosen to a configuration that was tried on the data, written with comments."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fairtune.config import parse_config
from fairtune.data import load_dataset
from fairtune.data.doctor import Finding, diagnose
from fairtune.data.manifest import Manifest
from fairtune.errors import InputError
from fairtune.fairness import UndefinedObjectiveError, check_groups, get_objective
from fairtune.starting.look import Sight, label_values

RATIOS = ((0.8, 0.1, 0.1), (0.7, 0.15, 0.15), (0.6, 0.2, 0.2))
"""Shares of train, validation and test; the first that leaves every group enough images wins."""
OBJECTIVES = ("worst_group_auroc", "worst_group_accuracy", "accuracy")
"""The first that every group of the validation split defines is written down."""


@dataclass(frozen=True)
class Choices:
    """What was decided, by questions or flags."""

    image: str
    label: str
    attributes: Mapping[str, Sequence[float]]
    """Columns with the edges of their bins; no edges where each value is a group."""
    patient: str | None = None
    split: str | None = None
    positive: tuple[str, ...] = ()
    name: str = "my-model"


@dataclass(frozen=True)
class Start:
    """A configuration that was tried on the data, and what was found on the way."""

    options: dict[str, Any]
    manifest: Manifest
    findings: list[Finding] = field(default_factory=list)
    image_size: int = 96
    ratios: tuple[float, float, float] = RATIOS[0]


def try_out(sight: Sight, choices: Choices) -> Start:
    """Read the data as the configuration will, with the split that leaves groups enough images.

    Raises
    ------
    InputError
        As the data set `folder`: a column, a label or an image is not as chosen.
    """
    best: Start | None = None
    for ratios in RATIOS:
        options = _options(sight, choices, ratios)
        manifest = load_dataset("folder", sight.root, **options)
        findings = diagnose(manifest, images=False, progress=False)
        found = Start(options, manifest, findings, image_size(sight.side), ratios)
        if best is None or _weight(findings) < _weight(best.findings):
            best = found
        if choices.split or not any(finding.check == "group" for finding in findings):
            break
    assert best is not None
    return best


def image_size(side: int) -> int:
    """Choose the side that the model sees: a multiple of 32 not far above the images', at most 96.

    96 pixels keep a search on a processor within minutes; the file says when to raise it.
    """
    return int(min(96, max(32, -(-side // 32) * 32)))


def _weight(findings: Sequence[Finding]) -> tuple[int, int]:
    return (
        sum(finding.level == "error" for finding in findings),
        sum(finding.check == "group" for finding in findings),
    )


def _options(sight: Sight, choices: Choices, ratios: tuple[float, float, float]) -> dict[str, Any]:
    table = os.path.relpath(sight.table.resolve(), sight.root.resolve())
    empty = any(sight.columns[name].n_empty for name in choices.attributes)
    options: dict[str, Any] = {
        "table": Path(table).as_posix(),
        "image_column": choices.image,
        "image_suffix": sight.suffix,
        "label_column": choices.label,
        **_labels(sight, choices),
        "patient_column": choices.patient,
        "split_column": choices.split,
        "ratios": None if choices.split else list(ratios),
        "attributes": {
            name: {"column": name, **({"bins": list(edges)} if edges else {})}
            for name, edges in choices.attributes.items()
        },
        "missing": "drop" if empty else None,
    }
    return {key: value for key, value in options.items() if value not in (None, [], "")}


def objective_for(manifest: Manifest) -> str:
    """Return the first of `OBJECTIVES` that the validation split defines in every group."""
    rows = manifest.rows("val")
    labels = manifest.table["label"].to_numpy()[rows]
    for name in OBJECTIVES[:-1]:
        try:
            check_groups(
                labels,
                manifest.groups("val"),
                get_objective(name),
                n_classes=len(manifest.classes),
            )
        except UndefinedObjectiveError:
            continue
        return name
    return OBJECTIVES[-1]


def config_text(choices: Choices, start: Start, command: str) -> str:
    """Write the configuration with a comment beside whatever may be changed.

    The text is parsed before it is returned, so that what is written is what a search reads.
    """
    train = len(start.manifest.rows("train"))
    attributes = ", ".join(map(_quoted, choices.attributes))
    options = yaml.safe_dump(start.options, sort_keys=False, allow_unicode=True)
    name = _quoted("".join(c if c.isalnum() or c in "-_." else "-" for c in choices.name))
    text = TEMPLATE.format(
        command=command,
        counts=", ".join(f"{s} {len(start.manifest.rows(s)):,}" for s in ("train", "val", "test")),
        classes=" / ".join(" ".join(name.split()) for name in start.manifest.classes),
        attributes=attributes,
        options="".join(f"    {line}\n" for line in options.splitlines()),
        image_size=start.image_size,
        batch_size=64 if train >= 1000 else 32 if train >= 200 else 16,
        objective=objective_for(start.manifest),
        name=name,
    )
    parse_config(yaml.safe_load(text), "the new configuration")
    return text


def write_new(path: Path, text: str, *, force: bool) -> None:
    """Write a file that must not be there yet, whole or not at all.

    Raises
    ------
    InputError
        It is there and `force` was not given, or it cannot be written.
    """
    if path.exists() and not force:
        raise InputError(f"{path} is there already: give --output another name, or --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from None


def _labels(sight: Sight, choices: Choices) -> dict[str, Any]:
    """Name the classes; of two the second is the positive one."""
    values = label_values(sight, choices.label)
    unknown = [value for value in choices.positive if value not in values]
    if unknown:
        raise InputError(
            f"{sight.table}: no row has {unknown[0]!r} in column {choices.label!r} (it has: "
            f"{', '.join(values[:20])})"
        )
    if len(values) == 2 and len(choices.positive) == 1:
        return {"classes": sorted(values, key=lambda value: value in choices.positive)}
    return {"positive": list(choices.positive)}


def _quoted(text: str) -> str:
    """Write a text as YAML that reads back as the same text, on one line."""
    return str(yaml.safe_dump([text], default_flow_style=True, width=10**6)).strip()[1:-1]


TEMPLATE = """\
# {command}
# Written by `fairtune init`: your images and table, as the data set `folder` reads them.
# Images: {counts}. Classes: {classes}.
seed: 0
data:
  name: folder
  # What fairness is judged by. `a*b` judges the intersections of two of them.
  attributes: [{attributes}]
  # Side in pixels that the model sees. 96 keeps a search on a processor short; use 224 with a GPU.
  image_size: {image_size}
  options:
{options}model:
  # Brings its ImageNet weights with the installation. With access to the hub, a vision transformer:
  #   architecture: vit_tiny_patch16_224    (and image_size: 224, space: auto_peft1)
  #   weights: pretrained
  architecture: tf_efficientnet_lite0
  weights: efficientnet_lite0
train:
  epochs: 5  # raise it while validation improves
  batch_size: {batch_size}
  learning_rate: 1.0e-3
  # How much of an image a random crop keeps at least; lower it where the label shows everywhere.
  augment: {{crop_scale: [0.5, 1.0]}}
search:
  space: stages_norm_conv  # what a mask's bits stand for; `fairtune spaces` lists them
  objective: {objective}  # what the search improves, on validation
  trials: 12  # more is better: at least two for each bit
  learning_rate: {{low: 2.0e-4, high: 5.0e-3}}
  final: {{candidates: 2, seeds: 3}}  # the best once more with fresh seeds, beside the baselines
register:
  name: {name}  # null: do not register the winner
"""
