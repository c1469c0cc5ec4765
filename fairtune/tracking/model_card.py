"""The model card of a registered version: what it is for, what it was measured on, where it fails.

The headings follow Mitchell et al., "Model Cards for Model Reporting" (2019). Every figure carries an
interval over patients and its n; what could not be measured is named, not left out. Groups stand in
the order of the data: they are described, not ranked.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from mlflow import MlflowClient

from fairtune.errors import InputError
from fairtune.fairness import BootstrapReport, FairnessReport, bootstrap_report, evaluate
from fairtune.tracking.evidence import GATE_TAG, Evidence, evidence, model_version
from fairtune.tracking.predictions import groups_of, probabilities_of
from fairtune.tracking.runs import COMMIT, KIND, PARENT, RunLog

logger = logging.getLogger(__name__)

CARD_TAG = "fairtune.model_card"
"""Tag of a version: where its card is."""
TEMPLATES = Path(__file__).with_name("templates")
HEADLINE = {
    "auroc": "AUROC, all images",
    "worst_group_auroc": "AUROC of the worst group",
    "auroc_gap": "AUROC gap between groups",
    "balanced_accuracy": "Balanced accuracy",
    "equalized_odds_difference": "Equalized odds difference",
    "demographic_parity_difference": "Demographic parity difference",
}
INTENDED_USE = (
    "Research on image classification of the kind of image described below. A clinician may use the "
    "output as one piece of information among others; it has not been assessed as a medical device."
)
OUT_OF_SCOPE = (
    "Decisions without a human; images from other devices, sites or populations than those below; "
    "groups that are not in the table of groups."
)
CHOSEN = "The mask was chosen to mitigate differences between the groups of the table on validation data."
FITTED = (
    "The threshold was fitted on validation data and is the same for all groups. It should be fitted "
    "again where the prevalence differs."
)
LIMITS = (
    "The figures say nothing about groups that were not measured, about combinations of attributes "
    "that are not in the table, or about data that differ from these.",
    "A small interval around a small gap is evidence of similar performance; a wide interval is no "
    "evidence of anything. Read n and the interval before the figure.",
    "The worst of several groups looks worse than it is when the groups are small, because the "
    "smallest of noisy figures is chosen.",
)


@dataclass(frozen=True, kw_only=True)
class CardTexts:
    """What no run knows: a person says it, under `register.card`; the defaults promise little."""

    intended_use: str = INTENDED_USE
    out_of_scope: str = OUT_OF_SCOPE
    data: str = ""
    contact: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure with its interval; NaN where it is not defined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "not defined"
        if math.isnan(self.low):
            return f"{self.value:.3f} (no interval)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class GroupRow:
    """One group of one attribute."""

    attribute: str
    group: str
    n: int
    classes: str
    auroc: Figure
    accuracy: Figure


@dataclass(frozen=True)
class Card:
    """All that the templates show."""

    name: str
    version: str
    date: str
    split: str
    n: int
    n_patients: int
    level: float
    threshold: float | None
    texts: CardTexts
    limits: Sequence[str]
    headline: Mapping[str, Figure]
    groups: Sequence[GroupRow]
    undefined: Sequence[str]
    facts: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return the card as Markdown."""
        return _render("model_card.md.html", self, escape=False)

    def html(self) -> str:
        """Return the card as one HTML page without outside resources."""
        return _render("model_card.html", self, escape=True)


def model_card(
    name: str,
    version: str | int,
    *,
    split: str = "test",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Card:
    """Gather a version's card from its run and its logged predictions.

    Raises
    ------
    InputError
        No such version, or its run has no predictions of the split.
    """
    client, version = MlflowClient(), str(version)
    found = evidence(client, name, version, split)
    config = _config(found.log)
    arguments = (
        found.table["label"],
        probabilities_of(found.table),
        groups_of(found.table),
    )
    report = evaluate(*arguments, threshold=found.threshold)
    spread = bootstrap_report(
        *arguments,
        found.table["patient"],
        threshold=found.threshold,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )
    return Card(
        name=name,
        version=version,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        split=split,
        n=len(found.table),
        n_patients=spread.n_clusters,
        level=level,
        threshold=found.threshold,
        texts=_texts(config),
        limits=tuple(_limits(found)),
        headline={title: _figure(spread, metric) for metric, title in HEADLINE.items()},
        groups=_group_rows(report, spread),
        undefined=[_say(item) for item in report.undefined],
        facts=_facts(client, found, config, name, version),
    )


def write_model_card(name: str, version: str | int, **options: Any) -> Card:
    """Make the card as `model_card` does, and log it to the version's run in both forms."""
    card = model_card(name, version, **options)
    client = MlflowClient()
    run_id = str(model_version(client, name, card.version).run_id)
    for ending, text in (("md", card.markdown()), ("html", card.html())):
        client.log_text(run_id, text, f"model_card.{ending}")
    uri = f"{client.get_run(run_id).info.artifact_uri}/model_card.html"
    client.set_model_version_tag(name, card.version, CARD_TAG, uri)
    logger.info("model card of %s version %s: %s", name, card.version, uri)
    return card


def _figure(spread: BootstrapReport, metric: str) -> Figure:
    if metric not in spread.intervals:
        return Figure(math.nan)
    found = spread[metric]
    return Figure(found.estimate, found.low, found.high)


def _group_rows(report: FairnessReport, spread: BootstrapReport) -> list[GroupRow]:
    """Join the report's counts and the bootstrap's intervals, which name the groups in one order."""
    cells = [(a, g, cell) for a, groups in report.groups.items() for g, cell in groups.items()]
    kinds = {
        kind: [name for name in spread.intervals if name.startswith(f"{kind}_by_group/")]
        for kind in ("auroc", "accuracy")
    }
    return [
        GroupRow(
            attribute,
            group,
            cell.n,
            " / ".join(str(count) for count in cell.n_by_class),
            _figure(spread, auroc),
            _figure(spread, accuracy),
        )
        for (attribute, group, cell), auroc, accuracy in zip(
            cells, kinds["auroc"], kinds["accuracy"], strict=True
        )
    ]


def _say(item: Any) -> str:
    where = " ".join(part for part in (item.attribute, item.group) if part) or "all images"
    return f"{item.metric} of {where}: {item.reason} (n = {item.n})"


def _texts(config: Mapping[str, Any]) -> CardTexts:
    given = config.get("register", {}).get("card") or {}
    return CardTexts(**{key: text for key, text in given.items() if text})


def _limits(found: Evidence) -> Iterator[str]:
    if _searched(found.log):
        yield CHOSEN
    yield from LIMITS
    if found.threshold is not None:
        yield FITTED


def _searched(log: RunLog) -> bool:
    """Say whether a run is a search, or part of one."""
    tags = log.data().data.tags
    if tags.get(KIND) == "search":
        return True
    return PARENT in tags and _searched(log.sibling(tags[PARENT]))


def _facts(
    client: MlflowClient, found: Evidence, config: Mapping[str, Any], name: str, version: str
) -> dict[str, str]:
    """Name what the model was made from, as far as the run knows it."""
    run = found.log.data()
    tags, params = run.data.tags, run.data.params
    registered = model_version(client, name, version).tags
    facts = {
        "Architecture": config.get("model", {}).get("architecture"),
        "Data set": config.get("data", {}).get("name"),
        "Data digest": tags.get("fairtune.dataset_digest"),
        "Mask": params.get("mask") or tags.get("fairtune.mask"),
        "Space": tags.get("fairtune.space"),
        "Learning rate": params.get("learning_rate"),
        "Base weights": tags.get("fairtune.base_hash"),
        "Code": registered.get(COMMIT),
        "Run": run.info.run_id,
        "Gate": registered.get(GATE_TAG)
        and f"{registered[GATE_TAG]} {registered.get(f'{GATE_TAG}.time', '')}",
    }
    return {key: str(value) for key, value in facts.items() if value}


def _config(log: RunLog) -> dict[str, Any]:
    parent = log.data().data.tags.get(PARENT)
    for owner in (log, log.sibling(parent) if parent else None):
        try:
            read = yaml.safe_load(owner.read_text("config.yaml")) if owner else {}
        except InputError:  # a run registered by hand has none
            continue
        return read if isinstance(read, dict) else {}
    return {}


def _render(template: str, card: Card, *, escape: bool) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda value: " ".join(str(value).replace("|", r"\|").split())
    return environment.get_template(template).render(card=card)
