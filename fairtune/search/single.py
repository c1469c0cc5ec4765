"""One fine-tune outside a search, and what can be done with any run that has a model."""

from __future__ import annotations

import yaml
from mlflow import MlflowClient

from fairtune.config import Config, parse_config
from fairtune.errors import InputError
from fairtune.fairness import get_objective
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.peft import Mask
from fairtune.search.search import EXPERIMENT, check_same_data, describe, register_version
from fairtune.search.trial import check_validation, mask_params, mask_tags, run_trial
from fairtune.search.winner import SPLITS, evaluate_run, load_model
from fairtune.seeding import seed as named_seed
from fairtune.tracking.aliases import move_alias
from fairtune.tracking.model_card import write_model_card
from fairtune.tracking.registry import (
    RegisteredVersion,
    already_registered,
    find_version,
    has_card,
)
from fairtune.tracking.runs import PARENT, RunLog, existing_run, open_run
from fairtune.workspace import Workspace, open_workspace


def parse_bits(text: str) -> tuple[int, ...]:
    """Read bits as runs show them: ``auto_peft1:1011``, ``1011`` or, with larger values, ``4-0-16``."""
    text = text.rpartition(":")[2]
    parts = text.split("-") if "-" in text else list(text)
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise InputError(
            f"bits {text!r} must be digits like 1011, or numbers like 4-0-16"
        ) from None


def fine_tune_once(
    config: Config,
    source: str | None,
    bits: tuple[int, ...],
    stop: StopRequest,
    *,
    profile: bool = False,
) -> tuple[str, Mask, dict[str, float]]:
    """Fine-tune once under a mask of the configured space; judged on validation alone.

    With `profile` the run gets a table and a trace of where the time went.

    Returns
    -------
    (run id, mask, validation metrics)
    """
    workspace = open_workspace(config, source)
    stop.check()
    mask = workspace.mask(bits)
    objective = get_objective(config.search.objective)
    check_validation(workspace)
    name = f"finetune {config.data.name} {mask.space} {mask.short()}"
    with open_run("finetune", name, experiment=EXPERIMENT) as log:
        describe(log, workspace, source)
        rate = config.train.learning_rate
        log.log(params=mask_params(mask, rate), tags=mask_tags(mask, workspace))
        trial = run_trial(
            workspace,
            mask,
            rate,
            seed=named_seed(config.seed, "finetune"),
            objective=objective,
            log=log,
            should_stop=lambda: stop.requested,
            profile=profile,
        )
        if stop.requested and trial.epochs < config.train.epochs:
            raise InterruptedSearchError("stopped by Ctrl-C")
    return log.run_id, mask, trial.report.headline


def workspace_of(log: RunLog, source: str | None) -> Workspace:
    """Open the workspace that a run was made in, from its own or its parent's configuration."""
    run = log.data()
    owner = log
    if run.data.tags.get(PARENT) and run.data.tags.get("fairtune.kind") in ("trial", "final"):
        owner = log.sibling(run.data.tags[PARENT])
    text = owner.read_text("config.yaml")
    config = parse_config(yaml.safe_load(text), f"config.yaml of run {owner.run_id}")
    known = owner.data().data.tags.get("fairtune.source")
    return open_workspace(config, source or known)


def evaluate_once(run_id: str, source: str | None) -> dict[str, float]:
    """Evaluate a run's model on train, validation and test, unless that was done before.

    The threshold is fitted on validation. The test split is read once: asked again, the figures are
    those of the first time, from the store.
    """
    log = existing_run(run_id)
    run = log.data()
    if "test/auroc" not in run.data.metrics:
        workspace = workspace_of(log, source)
        check_same_data(run, workspace)
        evaluate_run(workspace, log, {name: workspace.split(name) for name in SPLITS})
        run = log.data()
    wanted = (*SPLITS, "threshold")
    return {k: v for k, v in run.data.metrics.items() if k.partition("/")[0] in wanted}


def register_run(
    run_id: str, name: str, source: str | None, *, alias: str | None
) -> RegisteredVersion:
    """Register the model of any finished run; it is evaluated first if it has not been.

    A version that was cut off before it had its model card gets it now.

    Raises
    ------
    InputError
        The run is a version of this name already; other data or base weights than its own.
    """
    log = existing_run(run_id)
    found = find_version(run_id, name)
    if found is not None:
        return _complete(found, alias)
    metrics = evaluate_once(run_id, source)
    workspace = workspace_of(log, source)
    check_same_data(log.data(), workspace)
    model, mask = load_model(workspace, log)
    return register_version(log, workspace, model, mask, metrics, name=name, alias=alias)


def _complete(version: RegisteredVersion, alias: str | None) -> RegisteredVersion:
    if has_card(version):
        raise already_registered(version)
    write_model_card(version.name, version.version)
    if alias:
        move_alias(MlflowClient(), version.name, alias, version.version)
    return version
