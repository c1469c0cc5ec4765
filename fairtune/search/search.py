"""The main job: search, choose, evaluate once, register. Reads from top to bottom like its story."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pandas as pd
import yaml
from mlflow.entities import Run
from torch import nn

from fairtune.config import Config, differing_keys, parse_config
from fairtune.data.references import common_window
from fairtune.errors import InputError
from fairtune.fairness import Objective, get_objective
from fairtune.interrupt import StopRequest
from fairtune.peft import Mask, merge_adapters
from fairtune.progress import progress_bar
from fairtune.search.examples import log_examples
from fairtune.search.executors import Executor, make_executor
from fairtune.search.final import (
    BASELINES,
    FinalRunner,
    baselines,
    choose_candidates,
    stored_standings,
)
from fairtune.search.runner import TrialRunner
from fairtune.search.settings import WORKER_KEYS, FinalSettings
from fairtune.search.standings import Standing, pick_winner, standings
from fairtune.search.study import FinishedTrial, run_study, search_space
from fairtune.search.summary import summarize
from fairtune.search.trial import check_validation, mask_params, mask_tags
from fairtune.search.winner import (
    COMPARED,
    GAP,
    FinalEvaluation,
    comparison,
    evaluate_finals,
    load_model,
)
from fairtune.serving.spec import ServingSpec
from fairtune.tracking.model_card import write_model_card
from fairtune.tracking.registry import (
    RegisteredVersion,
    find_version,
    has_card,
    register_model,
    take_alias,
)
from fairtune.tracking.runs import KIND, RunLog, existing_run, log_dataset, open_run, split_metrics
from fairtune.workspace import Workspace, open_workspace

logger = logging.getLogger(__name__)

BUDGET_KEYS = (
    *WORKER_KEYS,
    "device",
    "search.max_epochs",
    "search.max_minutes",
    "search.patience",
    "search.trials",
)
EXPERIMENT = "fairtune"
WINNER = "fairtune.winner"
"""Tag of a search: which candidate won. Where it stands, the test split may have been read."""
BEST_MASK = "fairtune.best_mask"
"""Tag of a search: the best candidate that is no baseline; it is judged on test beside the winner."""


@dataclass(frozen=True)
class SearchOutcome:
    """What a search came to."""

    run_id: str
    best_run_id: str
    mask: Mask
    learning_rate: float
    comparison: pd.DataFrame
    """One row per model, the winner first; see `winner.comparison`."""
    metrics: dict[str, float]
    """The winner's headline figures on validation and test."""
    version: RegisteredVersion | None
    alias: str | None = None
    """The alias of the version; None where another is the champion, whom it has to beat at the gate."""

    def summary(self) -> dict[str, Any]:
        """Return what a script needs next."""
        return {
            "run_id": self.run_id,
            "best_run_id": self.best_run_id,
            "mask": self.mask.text or self.mask.space,
            "mask_fingerprint": self.mask.fingerprint,
            "trained_share": self.mask.share,
            "learning_rate": self.learning_rate,
            "model_name": self.version.name if self.version else None,
            "model_version": self.version.version if self.version else None,
            "model_alias": self.alias,
            "metrics": self.metrics,
        }


def search(
    config: Config, source: str | None, stop: StopRequest, *, resume: str | None = None
) -> SearchOutcome:
    """Search for the mask, choose the winner, evaluate it on test once, and register it.

    Parameters
    ----------
    source
        Folder with the data set's official download; None for those that need none.
    resume
        Run id of an earlier search of the same configuration to continue.

    Raises
    ------
    InputError
        Anything the user can mend, before any training where that is possible.
    """
    if resume:
        check_resumable(existing_run(resume), config)
    workspace = open_workspace(config, source)
    if resume:
        check_same_data(existing_run(resume).data(), workspace)
    space = search_space(workspace)
    check_validation(workspace)
    workspace.check_splits()  # test as well: refused now, not when the winner is evaluated
    executor = make_executor(config.search, device=config.device)
    stop.check()
    with open_run("search", run_name(config), experiment=EXPERIMENT, resume=resume) as log:
        describe(log, workspace, source)
        runner = TrialRunner(config, source, space, log, stop)
        decided = WINNER in log.data().data.tags
        trials = run_study(runner, executor, workspace, propose=not decided)
        objective = get_objective(config.search.objective)
        if decided:
            finals = stored_standings(log, space)
        else:
            finals = run_finals(log, workspace, trials, executor, source, stop)
            summarize(log, trials, finals, space, objective, config.seed)
        winner, judged = choose(log, finals, objective, config.search.final)
        evaluations = evaluate_finals(workspace, log, judged)
        return conclude(log, workspace, winner, evaluations)


def run_name(config: Config) -> str:
    """Name a search for people."""
    groups = " ".join(config.data.attributes)
    return f"search {config.data.name} {groups} {config.search.space}"


def check_resumable(log: RunLog, config: Config) -> None:
    """Refuse to continue a search with another configuration, except for its budget.

    A search that has chosen its winner has read the test split: more trials now would be chosen
    with test figures in view.
    """
    run = log.data()
    if run.data.tags.get(KIND) != "search":
        raise InputError(f"run {log.run_id} is not a search; only a search can be resumed")
    if run.info.status == "FINISHED":
        raise InputError(f"run {log.run_id} is complete; start a new search for more trials")
    before = parse_config(yaml.safe_load(log.read_text("config.yaml")), f"run {log.run_id}")
    changed = [key for key in differing_keys(before, config) if key not in BUDGET_KEYS]
    if changed:
        raise InputError(
            f"run {log.run_id} was started with other values of {', '.join(changed)}; resume with "
            "its own config.yaml, or start a new search"
        )


def check_same_data(run: Run, workspace: Workspace) -> None:
    """Refuse to go on with a run on other data or another base model than it was made from."""
    have = {
        "fairtune.dataset_digest": ("data", workspace.manifest.digest),
        "fairtune.base_hash": ("base weights", workspace.base.hash),
    }
    for tag, (what, now) in have.items():
        before = run.data.tags.get(tag)
        if before and before != now:
            raise InputError(
                f"run {run.info.run_id} was made from {what} with digest {before}, now it is {now}: "
                "give the same --source and weights"
            )


def describe(log: RunLog, workspace: Workspace, source: str | None) -> None:
    """Write to a run what it is about: configuration, data set, base model."""
    config = workspace.config
    log.text("config.yaml", config.to_yaml())
    log.log(
        tags={
            "fairtune.space": workspace.space.name,
            "fairtune.objective": get_objective(config.search.objective).name,
            "fairtune.dataset": config.data.name,
            "fairtune.dataset_digest": workspace.manifest.digest,
            "fairtune.base_hash": workspace.base.hash,
            **({"fairtune.source": source} if source else {}),
        }
    )
    log.json("facts.json", _facts(workspace))
    if config.data.example_images:
        log_examples(log, workspace.split("train"), config.data.example_images, config.seed)
    log_dataset(
        log,
        workspace.manifest.table,
        name=config.data.name,
        digest=workspace.manifest.digest,
        context="training",
    )


def _facts(workspace: Workspace) -> dict[str, Any]:
    """Gather what a report needs and a run does not say: classes, what was left out, shapes."""
    libraries = ("fairtune", "torch", "timm", "mlflow", "hyperopt", "fairlearn", "scikit-learn")
    return {
        "classes": list(workspace.manifest.classes),
        "provenance": dict(workspace.manifest.provenance),
        "parameters": {
            name: list(value.shape) for name, value in workspace.base.model.named_parameters()
        },
        "versions": {name: metadata.version(name) for name in libraries},
    }


def run_finals(
    log: RunLog,
    workspace: Workspace,
    trials: list[FinishedTrial],
    executor: Executor,
    source: str | None,
    stop: StopRequest,
) -> list[Standing]:
    """Fine-tune the best trials and the baselines again, each with several fresh seeds."""
    config = workspace.config
    objective = get_objective(config.search.objective)
    masks = {trial.number: workspace.mask(trial.point.bits) for trial in trials}
    settings = config.search.final
    candidates = choose_candidates(trials, objective, settings.candidates, masks)
    candidates += baselines(workspace, trials, objective)
    jobs = [(candidate, index) for candidate in candidates for index in range(settings.seeds)]
    logger.info("fine-tuning %d candidates again, %d seeds each", len(candidates), settings.seeds)
    with progress_bar(total=len(jobs), desc="finals", unit="fine-tune") as bar:
        runs = executor.map(
            FinalRunner(config, source, log, stop),
            jobs,
            log,
            stop,
            on_done=lambda job, run: bar.update(),
        )
    stop.check()
    return standings(runs)


def choose(
    log: RunLog, finals: list[Standing], objective: Objective, settings: FinalSettings
) -> tuple[Standing, list[Standing]]:
    """Return the winner, and who is judged on test: it, the best mask and the baselines.

    What a run has once chosen stands: a resumed search has read the test split.
    """
    tags = log.data().data.tags
    by_name = {standing.candidate.name: standing for standing in finals}

    def pick(tag: str, among: list[Standing]) -> Standing:
        if tag not in tags:
            return pick_winner(among, objective, settings)
        if tags[tag] not in by_name:
            raise InputError(
                f"run {log.run_id} lacks a final run of {tags[tag]}, which {tag} names"
            )
        return by_name[tags[tag]]

    winner = pick(WINNER, finals)
    searched = [s for s in finals if s.candidate.name not in BASELINES]
    best_mask = pick(BEST_MASK, searched or finals)
    chosen = {WINNER: winner.candidate.name, BEST_MASK: best_mask.candidate.name}
    log.log(tags=chosen)  # from here on the choice stands
    keep = {*chosen.values(), *BASELINES}
    return winner, [standing for standing in finals if standing.candidate.name in keep]


def conclude(
    log: RunLog,
    workspace: Workspace,
    winner: Standing,
    evaluations: dict[str, list[FinalEvaluation]],
) -> SearchOutcome:
    """Copy the winner to the parent run, tabulate it beside the baselines, and register it."""
    typical = next(
        e for e in evaluations[winner.candidate.name] if e.run_id == winner.typical.run_id
    )
    best = log.sibling(typical.run_id)
    model, mask = load_model(workspace, best)
    table = comparison(evaluations, winner.candidate.name)
    judged = {
        key for name, report in typical.reports.items() for key in split_metrics(name, report)
    }
    judged |= {f"{name}/{GAP}" for name in typical.reports} | {"threshold"}
    metrics = {key: value for key, value in best.data().data.metrics.items() if key in judged}
    rate = winner.candidate.learning_rate
    params = mask_params(mask, rate, winner.candidate.extras)
    log.log(
        metrics=metrics,
        params={**params, "trial": winner.candidate.name},
        tags={**mask_tags(mask, workspace), "fairtune.best_run_id": best.run_id},
    )
    log.text("comparison.csv", table.to_csv(index=False))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mask.json", "reports.json", "groups.csv", "delta.safetensors", "predictions"):
            path = best.download(name, folder)
            log.client.log_artifacts(log.run_id, str(path), name) if path.is_dir() else log.file(
                path
            )
    version = alias = None
    register_as = workspace.config.register_as
    if register_as.name is not None:
        version = register_version(log, workspace, model, mask, metrics, name=register_as.name)
        if take_alias(version, register_as.alias):
            alias = register_as.alias
        else:
            logger.info(
                "%s has a champion: version %s goes past the gate with fairtune promote",
                version.name,
                version.version,
            )
    headline = {
        f"{split}/{name}": metrics[f"{split}/{name}"]
        for split in ("val", "test")
        for name in COMPARED
    }
    return SearchOutcome(log.run_id, best.run_id, mask, rate, table, headline, version, alias)


def register_version(
    log: RunLog,
    workspace: Workspace,
    model: nn.Module,
    mask: Mask,
    metrics: dict[str, float],
    *,
    name: str,
    alias: str | None = None,
) -> RegisteredVersion:
    """Register an evaluated model with its figures and its card; what is there already is completed.

    With `alias` a new version takes it, whoever has it.
    """
    config = workspace.config
    spec = ServingSpec(
        architecture=config.model.architecture,
        options=config.model.options,
        image_size=workspace.spec.size,
        store_size=config.data.store_size,
        mean=workspace.spec.mean,
        std=workspace.spec.std,
        classes=workspace.manifest.classes,
        threshold=metrics.get("threshold"),
        window=common_window(workspace.manifest.table["image"]),
        name=name,
    )
    description = (
        f"{config.model.architecture} fine-tuned on {config.data.name} under mask "
        f"`{mask.text or mask.space}` ({mask.share:.1%} of the parameters). Test AUROC "
        f"{metrics['test/auroc']:.3f}, worst group {metrics['test/worst_group_auroc']:.3f}."
    )
    tags = {key: str(value) for key, value in mask_tags(mask, workspace).items()}
    version = find_version(log.run_id, name)
    if version is None:
        merge_adapters(model)
        version = register_model(
            log.run_id, name, model.cpu(), spec, tags=tags, description=description, alias=alias
        )
    if not has_card(version):
        write_model_card(name, version.version)
    return version
