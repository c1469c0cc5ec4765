"""The promotion gate: a version becomes the champion only if it is not worse where it matters.

Candidate and champion are compared on the same images by a bootstrap over patients, from the
predictions that each version's run logged; so no model is loaded and no image is read. "Not worse by
more than a margin" is a test of non-inferiority: the one-sided lower bound of the difference must lie
above minus the margin. On few patients the bound is wide, and the gate says no: not shown is not
passed.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient

from fairtune.errors import GateRefusedError, InputError
from fairtune.fairness import PairedDifference, evaluate, paired_bootstrap
from fairtune.tracking.aliases import (
    CHAMPION,
    PREVIOUS,
    ChampionChangedError,
    alias_lock,
    alias_version,
    replace_champion,
)
from fairtune.tracking.evidence import GATE_TAG, Evidence, aligned, evidence, model_version
from fairtune.tracking.model_card import CARD_TAG, write_model_card
from fairtune.tracking.predictions import groups_of, probabilities_of
from fairtune.tracking.runs import RunLog, existing_run

logger = logging.getLogger(__name__)

PROMOTED, REFUSED, ROLLED_BACK = "promoted", "refused", "rolled_back"


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """What the gate asks for.

    Attributes
    ----------
    worst_group_margin, auroc_margin
        How much lower than the champion's the AUROC of the worst group, and of all, may be.
    equalized_odds_limit
        Highest equalized odds difference; a candidate above it passes only if it is not above the
        champion either.
    min_auroc, min_worst_group_auroc
        For the first version, which has no champion to be compared with.
    """

    worst_group_margin: float = 0.01
    auroc_margin: float = 0.01
    equalized_odds_limit: float = 0.3
    min_auroc: float = 0.7
    min_worst_group_auroc: float = 0.6


@dataclass(frozen=True)
class Check:
    """One condition: the figures, the bound that is judged, and the limit it has to keep."""

    metric: str
    champion: float
    candidate: float
    judged: float
    """What is held against the limit: a figure, or the one-sided bound of a difference."""
    limit: float
    rule: str
    passed: bool


@dataclass(frozen=True)
class Decision:
    """What the gate decided about a version, and why; `champion` is None for the first one."""

    name: str
    version: str
    champion: str | None
    outcome: str
    checks: tuple[Check, ...] = ()
    note: str = ""
    split: str = ""
    n: int = 0
    n_patients: int = 0

    @property
    def table(self) -> pd.DataFrame:
        """Return a row per check."""
        return pd.DataFrame([asdict(check) for check in self.checks])

    @property
    def text(self) -> str:
        """Return a headline and the table, for people."""
        if self.outcome == ROLLED_BACK:
            return f"{self.name} version {self.version} is the champion again, was {self.champion}"
        against = f"version {self.champion}" if self.champion else "absolute limits"
        head = (
            f"{self.name} version {self.version} {self.outcome}: compared with {against} on "
            f"{self.split}, {self.n} images of {self.n_patients} patients"
        )
        parts = [head, self.note, self.table.round(4).to_string(index=False) if self.checks else ""]
        return "\n".join(part for part in parts if part)


def promote(
    name: str,
    version: str | int,
    *,
    limits: GateLimits | None = None,
    split: str = "test",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Decision:
    """Make a version the champion if it passes the gate; the old champion becomes `previous`.

    Parameters
    ----------
    name, version
        The candidate.
    limits : GateLimits, optional
        Margins and limits.
    split : str
        Whose logged predictions are compared.
    n_resamples, level, seed
        Of the bootstrap; each bound is one-sided at `level`.

    Raises
    ------
    GateRefusedError
        A check failed, or the champion changed meanwhile. The message holds the table, and the
        decision is recorded: as tags of the version and as an artifact of its run.
    InputError
        No such model or version, no logged predictions, or predictions of other images.
    """
    client, limits, version = MlflowClient(), limits or GateLimits(), str(version)
    champion = alias_version(client, name, CHAMPION)
    if champion == version:
        raise InputError(f"version {version} of {name!r} is the champion already")
    candidate = evidence(client, name, version, split)
    if champion is None:
        checks = _absolute(candidate, limits)
    else:
        held = evidence(client, name, champion, split)
        checks = _compare(candidate, held, limits, n_resamples, level, seed)
    passed, note = all(check.passed for check in checks), ""
    if passed:
        try:
            replace_champion(client, name, champion, version)
        except ChampionChangedError as error:
            passed, note = False, f"{error}, not {champion}: run the promotion again"
    decision = Decision(
        name=name,
        version=version,
        champion=champion,
        outcome=PROMOTED if passed else REFUSED,
        checks=checks,
        note=note,
        split=split,
        n=len(candidate.table),
        n_patients=int(candidate.table["patient"].nunique()),
    )
    _record(client, candidate.log, decision)
    if not passed:
        raise GateRefusedError(decision.text)
    logger.info("%s", decision.text)
    return decision


def rollback(name: str) -> Decision:
    """Make `previous` the champion again, and the champion `previous`, without a comparison.

    Raises
    ------
    InputError
        There is no `previous`.
    """
    client = MlflowClient()
    with alias_lock(client, name):
        champion = alias_version(client, name, CHAMPION)
        previous = alias_version(client, name, PREVIOUS)
        if previous is None:
            raise InputError(f"{name!r} has no version with the alias {PREVIOUS!r} to go back to")
        client.set_registered_model_alias(name, CHAMPION, previous)
        if champion is not None:
            client.set_registered_model_alias(name, PREVIOUS, champion)
    log = existing_run(str(model_version(client, name, previous).run_id))
    decision = Decision(name, previous, champion, ROLLED_BACK)
    _record(client, log, decision)
    logger.info("%s", decision.text)
    return decision


def _absolute(candidate: Evidence, limits: GateLimits) -> tuple[Check, ...]:
    table = candidate.table
    figures = evaluate(
        table["label"], probabilities_of(table), groups_of(table), threshold=candidate.threshold
    ).headline
    odds = "equalized_odds_difference"
    worst = "worst_group_auroc"
    return (
        _at_least(worst, figures[worst], limits.min_worst_group_auroc),
        _at_most(odds, figures[odds], limits.equalized_odds_limit),
        _at_least("auroc", figures["auroc"], limits.min_auroc),
    )


def _compare(
    candidate: Evidence,
    champion: Evidence,
    limits: GateLimits,
    n_resamples: int,
    level: float,
    seed: int,
) -> tuple[Check, ...]:
    other = aligned(champion, candidate)
    table = candidate.table
    report = paired_bootstrap(
        table["label"],
        probabilities_of(other),
        probabilities_of(table),
        groups_of(table),
        table["patient"],
        threshold_a=champion.threshold,
        threshold_b=candidate.threshold,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )
    odds = report["equalized_odds_difference"]
    # The limit gives way to a champion that breaks it itself: a better model must not be locked out.
    ceiling = limits.equalized_odds_limit
    ceiling = ceiling if math.isnan(odds.a) else max(ceiling, odds.a)
    return (
        _margin("worst_group_auroc", report["worst_group_auroc"], limits.worst_group_margin),
        _at_most("equalized_odds_difference", odds.b, ceiling, champion=odds.a),
        _margin("auroc", report["auroc"], limits.auroc_margin),
    )


# NaN, for want of positives say, keeps no limit: every comparison with it is False.


def _at_least(metric: str, value: float, limit: float) -> Check:
    rule = f"{metric} at least the limit"
    return Check(metric, math.nan, value, value, limit, rule, value >= limit)


def _at_most(metric: str, value: float, limit: float, champion: float = math.nan) -> Check:
    rule = f"{metric} at most the limit"
    return Check(metric, champion, value, value, limit, rule, value <= limit)


def _margin(metric: str, found: PairedDifference, margin: float) -> Check:
    rule = f"lower bound of the difference of {metric} at least the limit"
    passed = found.lower_bound >= -margin
    return Check(metric, found.a, found.b, found.lower_bound, -margin, rule, passed)


def _record(client: MlflowClient, log: RunLog, decision: Decision) -> None:
    """Write the decision to the version's tags and its run's artifacts."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    failed = [check.metric for check in decision.checks if not check.passed]
    tags = {
        GATE_TAG: decision.outcome,
        f"{GATE_TAG}.time": stamp,
        f"{GATE_TAG}.against": decision.champion or "absolute limits",
        f"{GATE_TAG}.failed": decision.note or ", ".join(failed) or "nothing",
    }
    for key, value in tags.items():
        client.set_model_version_tag(decision.name, decision.version, key, value)
    document = {"time": stamp, **asdict(decision)}
    for check in document["checks"]:  # NaN is no JSON
        check |= {k: None for k, v in check.items() if isinstance(v, float) and math.isnan(v)}
    log.json(f"gate/{decision.name}-v{decision.version}-{int(now * 1000)}.json", document)
    if CARD_TAG in model_version(client, decision.name, decision.version).tags:
        write_model_card(decision.name, decision.version)  # which names the decision


def decisions(name: str, version: str | int) -> list[Path]:
    """Download the recorded decisions about a version, oldest first."""
    client = MlflowClient()
    run_id = str(model_version(client, name, str(version)).run_id)
    listed = [item.path for item in client.list_artifacts(run_id, "gate")]
    wanted = sorted(path for path in listed if path.startswith(f"gate/{name}-v{version}-"))
    return [
        Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path))
        for path in wanted
    ]
