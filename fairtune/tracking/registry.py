"""From a finished run to a version in the MLflow model registry, all or nothing.

The model is logged and checked by a real prediction *before* the registry hears of it, and whatever
fails takes back what was done: no version without a working model, no name without a version, no
champion without one.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fairtune.errors import InputError, without_password
from fairtune.serving import bundle
from fairtune.serving.predictor import Predictor, probability_columns
from fairtune.serving.safety import refuse_pickles
from fairtune.serving.spec import SPEC_FILE, WEIGHTS_FILE, ServingSpec, export_model
from fairtune.tracking.aliases import (
    CHAMPION,
    ChampionChangedError,
    alias_version,
    move_alias,
    replace_champion,
)
from fairtune.tracking.model_card import CARD_TAG
from fairtune.tracking.runs import COMMIT, PARENT, STORE_ERRORS

if TYPE_CHECKING:
    from mlflow.entities import Run
    from torch import nn

logger = logging.getLogger(__name__)

MODEL_NAME = "model"
TOLERANCE = 1e-5

KEY_METRICS = (
    "auroc",
    "worst_group_auroc",
    "auroc_gap",
    "balanced_accuracy",
    "equalized_odds_difference",
    "demographic_parity_difference",
    "fairness_generalization_gap",
)
_COUNTS = "n_by_group/"


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry: `uri` loads exactly this version."""

    name: str
    version: str
    run_id: str
    model_id: str

    @property
    def uri(self) -> str:
        """Return `models:/<name>/<version>`."""
        return f"models:/{self.name}/{self.version}"


def register_model(
    run_id: str,
    name: str,
    model: nn.Module,
    spec: ServingSpec,
    *,
    tags: Mapping[str, str] | None = None,
    description: str = "",
    alias: str | None = CHAMPION,
) -> RegisteredVersion:
    """Log `model` to a run, prove that it answers, and register it as a new version of `name`.

    Parameters
    ----------
    run_id : str
        The finished or active run that trained the model; it gets one model and no more.
    name : str
        Registered name; made when it is new.
    model : torch.nn.Module
        Base weights and delta merged, as evaluated.
    spec : ServingSpec
        Architecture, preprocessing, classes, threshold.
    tags : mapping, optional
        Further version tags; the run's key metrics become tags in any case, because MLflow's
        SQL stores cannot search the metrics of a version, and so does the commit of its code.
    description : str
        Shown on the version's page.
    alias : str or None
        Points to the new version from now on; None leaves all aliases as they are, which is
        what a candidate for `promote` wants.

    Raises
    ------
    InputError
        Unknown run, unusable name, or the run is registered under this name already.
    """
    client = MlflowClient()
    run = _find_run(client, run_id)
    _check_name(run_id, name)
    with tempfile.TemporaryDirectory(prefix="fairtune-register-") as scratch:
        folder = export_model(model, spec, Path(scratch, "exported"))
        with _undone(client) as done:
            # Made by hand, because MLflow would file it under whichever experiment is active.
            model_id = done.model_id = client.create_logged_model(
                run.info.experiment_id,
                MODEL_NAME,
                source_run_id=run_id,
                params=dict(run.data.params),
            ).model_id
            _log(run_id, model_id, spec, folder, Path(scratch, "code"))
            _check_prediction(model_id, spec, folder, Path(scratch, "answer.json"))
            done.name = name
            done.new_name = not _name_exists(client, name)
            made = mlflow.register_model(
                f"models:/{model_id}",
                name,
                tags={**key_metric_tags(run), **_commit_tag(client, run), **(tags or {})},
            )
            done.version = str(made.version)
            client.update_model_version(name, done.version, description=description)
            if alias:  # the last step: a version that has its alias is whole
                done.alias = alias
                move_alias(client, name, alias, done.version)
    logger.info("registered %s version %s", name, done.version)
    return RegisteredVersion(name, done.version, run_id, model_id)


def find_version(run_id: str, name: str) -> RegisteredVersion | None:
    """Return the version of a name that was made from a run, if there is one."""
    for found in MlflowClient().search_model_versions(f"run_id = '{run_id}'"):
        if found.name == name:
            return RegisteredVersion(name, str(found.version), run_id, found.model_id or "")
    return None


def has_card(version: RegisteredVersion) -> bool:
    """Say whether the version's model card was written, which is the last step of a registration."""
    found = MlflowClient().get_model_version(version.name, version.version)
    return CARD_TAG in found.tags


def already_registered(version: RegisteredVersion) -> InputError:
    """Return the error that says that a run is a version already."""
    return InputError(
        f"run {version.run_id} is version {version.version} of {version.name!r} already"
    )


def take_alias(version: RegisteredVersion, alias: str) -> bool:
    """Point an alias to a version; False, and nothing is moved, where another is the champion.

    The first version of a name is its champion. What comes after it has to pass the gate.
    """
    client = MlflowClient()
    if alias != CHAMPION:
        move_alias(client, version.name, alias, version.version)
        return True
    try:
        replace_champion(client, version.name, None, version.version)
    except ChampionChangedError as error:
        return error.found == version.version
    return True


def key_metric_tags(run: Run) -> dict[str, str]:
    """Version tags from a run's metrics: the headline figures of every split, and group counts."""
    kept = {
        key: value
        for key, value in run.data.metrics.items()
        if key.partition("/")[2] in KEY_METRICS or key.partition("/")[2].startswith(_COUNTS)
    }
    return {key: f"{value:.6g}" for key, value in sorted(kept.items())}


def _commit_tag(client: MlflowClient, run: Run) -> dict[str, str]:
    """Name the commit that a run was made with; of a nested run its parent knows."""
    parent = run.data.tags.get(PARENT)
    for tags in (run.data.tags, client.get_run(parent).data.tags if parent else {}):
        if COMMIT in tags:
            return {COMMIT: tags[COMMIT]}
    return {}


@dataclass
class _Done:
    """What has been made so far, so that a failure can unmake it."""

    model_id: str = ""
    name: str = ""
    version: str = ""
    new_name: bool = False
    alias: str = ""


@contextmanager
def _undone(client: MlflowClient) -> Iterator[_Done]:
    """Take back a logged model, a version and a fresh name when the block raises.

    But not where the version has its alias by then: it would be lost with the version.
    """
    done = _Done()
    try:
        yield done
    except BaseException:
        if _has_alias(client, done):
            raise
        for step in (_drop_version, _drop_name, _drop_logged_model):
            try:
                step(client, done)
            except MlflowException:  # the first error is the one that matters
                logger.warning("could not take back a failed registration", exc_info=True)
        raise


def _has_alias(client: MlflowClient, done: _Done) -> bool:
    if not (done.alias and done.version):
        return False
    try:
        return alias_version(client, done.name, done.alias) == done.version
    except (InputError, *STORE_ERRORS):  # rather a version too many than an alias that is lost
        logger.warning("cannot see whether %s has its alias", done.name, exc_info=True)
        return True


def _drop_version(client: MlflowClient, done: _Done) -> None:
    if done.version:
        client.delete_model_version(done.name, done.version)


def _drop_name(client: MlflowClient, done: _Done) -> None:
    if (
        done.new_name
        and _name_exists(client, done.name)
        and not client.search_model_versions(f"name = '{done.name}'")
    ):
        client.delete_registered_model(done.name)


def _drop_logged_model(client: MlflowClient, done: _Done) -> None:
    if done.model_id:
        client.delete_logged_model(done.model_id)


def _find_run(client: MlflowClient, run_id: str) -> Run:
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        raise InputError(
            f"no run {run_id!r} in {without_password(mlflow.get_tracking_uri())}; list the runs with "
            "`mlflow ui`, or set MLFLOW_TRACKING_URI to the store that has it"
        ) from error


def _check_name(run_id: str, name: str) -> None:
    if not name.strip() or set(name) & set("/:'\"\\"):
        raise InputError(f"model name {name!r} must be non-empty and without / : ' \" \\")
    if (found := find_version(run_id, name)) is not None:
        raise already_registered(found)


def _name_exists(client: MlflowClient, name: str) -> bool:
    return bool(client.search_registered_models(f"name = '{name}'"))


def _log(run_id: str, model_id: str, spec: ServingSpec, folder: Path, code: Path) -> None:
    """Log the pyfunc as the logged model of a run, active or ended."""
    mlflow.models.Model.log(
        artifact_path=None,
        flavor=mlflow.pyfunc,
        name=MODEL_NAME,
        model_id=model_id,
        run_id=run_id,  # mlflow.pyfunc.log_model would need the run to be active
        python_model=str(bundle.ENTRYPOINT),
        artifacts={"weights": str(folder / WEIGHTS_FILE), "spec": str(folder / SPEC_FILE)},
        code_paths=[str(bundle.copy_code(code))],
        pip_requirements=bundle.requirements(),
        signature=bundle.signature(spec),
        input_example=bundle.input_example(spec),
    )


def _check_prediction(model_id: str, spec: ServingSpec, folder: Path, answer: Path) -> None:
    """Ask the logged model, as a server would load it, and compare with the model in hand."""
    uri = f"models:/{model_id}"
    refuse_pickles(Path(mlflow.artifacts.download_artifacts(uri)), "the logged model")
    example = bundle.input_example(spec)
    mlflow.models.predict(  # type: ignore[no-untyped-call]
        uri, input_data=example, env_manager="local", output_path=str(answer)
    )
    (got,) = json.loads(answer.read_text(encoding="utf-8"))["predictions"]
    (want,) = Predictor.load(folder).predict(list(example.iloc[:, 0]))
    columns = probability_columns(spec.classes)
    apart = [abs(got[column] - want[column]) for column in columns if got[column] is not None]
    if len(apart) < len(columns) or max(apart) > TOLERANCE:
        raise RuntimeError(f"the logged model answers {got}, the model in hand {want}")
