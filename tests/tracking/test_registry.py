from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from serving.samples import encode, image_bytes, tiny_model, tiny_spec

from fairtune.errors import InputError
from fairtune.serving import bundle
from fairtune.serving.client import predict_files
from fairtune.serving.loading import download_model
from fairtune.serving.predictor import Predictor
from fairtune.serving.safety import find_pickles
from fairtune.tracking import registry
from fairtune.tracking.aliases import move_alias
from fairtune.tracking.registry import RegisteredVersion, register_model, take_alias

METRICS = {
    "test/auroc": 0.9,
    "test/worst_group_auroc": 0.8123456,
    "test/n_by_group/site.north": 41.0,
    "train/loss": 0.3,
}


@pytest.fixture
def store(mlflow_store: str, tmp_path: Path) -> MlflowClient:
    mlflow.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    return MlflowClient()


def finished_run(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name("e")
    run = client.create_run(experiment.experiment_id)
    for key, value in METRICS.items():
        client.log_metric(run.info.run_id, key, value)
    client.set_terminated(run.info.run_id)
    return run.info.run_id


def test_registered_version_has_all_it_needs(store: MlflowClient, tmp_path: Path) -> None:
    run_id = finished_run(store)
    made = register_model(
        run_id, "moles", tiny_model(), tiny_spec(), tags={"k": "v"}, description="A model."
    )
    version = store.get_model_version_by_alias("moles", "champion")
    assert (str(version.version), version.run_id) == ("1", run_id)
    assert version.description == "A model."
    assert version.tags["k"] == "v"
    assert version.tags["test/worst_group_auroc"] == "0.812346"
    assert version.tags["test/n_by_group/site.north"] == "41"
    assert "train/loss" not in version.tags
    assert store.get_run(run_id).info.status == "FINISHED"
    (output,) = store.get_run(run_id).outputs.model_outputs
    logged = store.get_logged_model(output.model_id)
    assert logged.model_id == made.model_id
    assert logged.experiment_id == store.get_run(run_id).info.experiment_id
    assert logged.artifact_location.startswith(f"{(tmp_path / 'artifacts').as_uri()}/")

    folder = download_model("moles", tmp_path / "copy")
    files = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert not files & {".pkl", ".pt", ".pth", ".pyc", ".bin"}
    assert find_pickles(folder) == []
    info = mlflow.models.get_model_info(made.uri)
    assert info.signature.inputs.input_names() == ["image"]
    assert "probability_malignant" in info.signature.outputs.input_names()
    pinned = (folder / "requirements.txt").read_text().splitlines()
    assert pinned == bundle.requirements()
    assert all("==" in line and "+" not in line for line in pinned)


def test_a_trial_has_the_commit_of_its_search(store: MlflowClient) -> None:
    search, trial = finished_run(store), finished_run(store)
    store.set_tag(trial, "mlflow.parentRunId", search)
    register_model(trial, "unknown", tiny_model(), tiny_spec())
    store.set_tag(search, "mlflow.source.git.commit", "c0ffee")
    register_model(trial, "known", tiny_model(), tiny_spec())
    commits = [
        store.get_model_version(name, "1").tags.get("mlflow.source.git.commit")
        for name in ("unknown", "known")
    ]
    assert commits == [None, "c0ffee"]


def test_prediction_from_the_registry_equals_the_model(store: MlflowClient, tmp_path: Path) -> None:
    register_model(finished_run(store), "moles", tiny_model(), tiny_spec())
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.jpg")
        paths[-1].write_bytes(image_bytes(seed))
    (tmp_path / "note.txt").write_text("no image")
    answers = predict_files("moles", [*paths, tmp_path / "note.txt"], batch_size=2)
    rows = [encode(path.read_bytes()) for path in paths]
    want = Predictor(tiny_model(), tiny_spec(), device="cpu").predict(rows)
    for got, row, path in zip(answers, want, paths, strict=False):
        assert got["image"] == str(path)
        assert got["label"] == row["label"]
        assert got["model_version"] == "moles/1"
        assert got["probability_malignant"] == pytest.approx(row["probability_malignant"], abs=1e-5)
    assert answers[3]["error"]


def test_the_model_serves_where_fairtune_was_never_installed(
    store: MlflowClient, tmp_path: Path
) -> None:
    register_model(finished_run(store), "moles", tiny_model(), tiny_spec())
    folder = download_model("moles", tmp_path / "copy")
    code = (
        "import sys\n"
        f"for name in {sorted(FORBIDDEN)!r}: sys.modules[name] = None\n"
        "import mlflow, pandas\n"
        f"model = mlflow.pyfunc.load_model({str(folder)!r})\n"
        "import fairtune\n"
        f"assert fairtune.__file__.startswith({str(folder)!r}), fairtune.__file__\n"
        f"rows = pandas.DataFrame({{'image': [{encode(image_bytes())!r}]}})\n"
        "print(model.predict(rows).to_json())"
    )
    bare = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=bare
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"error":{"0":null}' in done.stdout


# What training and tracking need and a server does not have.
FORBIDDEN = {
    "hyperopt",
    "sklearn",
    "fairlearn",
    "sqlalchemy",
    "pyarrow",
    "filelock",
    "platformdirs",
}


def test_the_bundle_holds_no_training_code() -> None:
    names = {path.parent.name + "/" + path.name for path in bundle.code_files()}
    assert {"fairtune/__init__.py", "data/images.py", "peft/models.py", "serving/model.py"} <= names
    assert not {name for name in names if name.startswith(("training", "search", "tracking"))}


def test_a_second_champion_keeps_the_way_back(store: MlflowClient) -> None:
    for seed in (0, 1):
        register_model(finished_run(store), "moles", tiny_model(seed=seed), tiny_spec())
    register_model(finished_run(store), "moles", tiny_model(seed=2), tiny_spec(), alias=None)
    assert aliases_of(store) == {"champion": "2", "previous": "1"}


def aliases_of(client: MlflowClient, name: str = "moles") -> dict[str, str]:
    return {k: str(v) for k, v in client.get_registered_model(name).aliases.items()}


def plain_version(client: MlflowClient, alias: str = "") -> RegisteredVersion:
    """Make a version without a model: these tests are about aliases."""
    if not client.search_registered_models():
        client.create_registered_model("moles")
    run_id = finished_run(client)
    number = str(client.create_model_version("moles", "nowhere", run_id).version)
    if alias:
        move_alias(client, "moles", alias, number)
    return RegisteredVersion("moles", number, run_id, "")


def two_champions(client: MlflowClient) -> None:
    """Make two versions the champion one after the other, so that there is a way back."""
    for _ in range(2):
        plain_version(client, "champion")
    assert aliases_of(client) == {"champion": "2", "previous": "1"}


def test_a_lock_that_cannot_be_given_back_does_not_cost_the_champion(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    two_champions(store)

    def fail(self: MlflowClient, name: str) -> None:
        raise MlflowException("503 for the lock")

    monkeypatch.setattr(MlflowClient, "delete_registered_model", fail)
    made = register_model(finished_run(store), "moles", tiny_model(), tiny_spec())
    assert made.version == "3"
    assert aliases_of(store) == {"champion": "3", "previous": "2"}
    assert "503 for the lock" in caplog.text


@pytest.mark.parametrize("alias", ["previous", "champion"])
@pytest.mark.parametrize("done", [False, True], ids=["refused", "answer lost"])
@pytest.mark.parametrize("error", [MlflowException("503"), KeyboardInterrupt()], ids=type)
def test_a_champion_is_replaced_wholly_or_not_at_all(
    store: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    alias: str,
    done: bool,
    error: BaseException,
) -> None:
    two_champions(store)
    third = plain_version(store)
    original, failed = MlflowClient.set_registered_model_alias, []

    def fail(self: MlflowClient, name: str, which: str, version: str) -> None:
        if which != alias or failed:
            return original(self, name, which, version)
        failed.append(version)
        if done:
            original(self, name, which, version)
        raise error

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", fail)
    with pytest.raises(type(error)):
        move_alias(store, "moles", "champion", third.version)
    assert aliases_of(store) == {"champion": "2", "previous": "1"}


def test_a_version_that_has_its_alias_stands_whatever_fails_then(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_champions(store)
    run_id = finished_run(store)

    def fail(*arguments: Any) -> None:
        move_alias(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "move_alias", fail)
    with pytest.raises(KeyboardInterrupt):
        register_model(run_id, "moles", tiny_model(), tiny_spec())
    assert aliases_of(store) == {"champion": "3", "previous": "2"}
    assert store.get_model_version("moles", "3").run_id == run_id


def test_only_the_first_version_is_taken_as_champion(store: MlflowClient) -> None:
    first, second = plain_version(store), plain_version(store)
    assert take_alias(first, "champion")
    assert not take_alias(second, "champion")
    assert take_alias(first, "champion")  # a resumed search asks again
    assert aliases_of(store) == {"champion": "1"}
    assert take_alias(first, "staging")
    assert take_alias(second, "staging")
    assert aliases_of(store) == {"champion": "1", "staging": "2"}


def nothing_registered(client: MlflowClient, run_id: str) -> bool:
    experiment = client.get_run(run_id).info.experiment_id
    return (
        not client.search_registered_models()
        and not client.search_model_versions()
        and not client.search_logged_models([experiment, "0"])
    )


def test_a_model_that_answers_otherwise_once_loaded_is_not_registered(store: MlflowClient) -> None:
    run_id = finished_run(store)
    spec = tiny_spec(max_image_bytes=10)  # the input example itself is refused by these limits
    with pytest.raises(RuntimeError, match="the logged model answers"):
        register_model(run_id, "moles", tiny_model(), spec)
    assert nothing_registered(store, run_id)


@pytest.mark.parametrize("step", ["register_model", "alias"])
def test_a_failure_late_leaves_nothing(
    store: MlflowClient, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    if step == "alias":
        monkeypatch.setattr(registry, "move_alias", fail)
    else:
        monkeypatch.setattr(mlflow, "register_model", fail)
    run_id = finished_run(store)
    with pytest.raises(KeyboardInterrupt):
        register_model(run_id, "moles", tiny_model(), tiny_spec())
    assert nothing_registered(store, run_id)


def test_a_failure_leaves_older_versions_alone(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_model(finished_run(store), "moles", tiny_model(), tiny_spec())
    monkeypatch.setattr(registry, "key_metric_tags", lambda run: {"bad\x00 key!": "x"})
    with pytest.raises(Exception, match="key"):
        register_model(finished_run(store), "moles", tiny_model(), tiny_spec())
    assert [str(found.version) for found in store.search_model_versions()] == ["1"]


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a'b"])
def test_unusable_names_are_refused_before_anything_happens(store: MlflowClient, name: str) -> None:
    run_id = finished_run(store)
    with pytest.raises(InputError, match="model name"):
        register_model(run_id, name, tiny_model(), tiny_spec())
    assert nothing_registered(store, run_id)


def test_unknown_run_and_second_time(store: MlflowClient) -> None:
    with pytest.raises(InputError, match="no run 'nope'"):
        register_model("nope", "moles", tiny_model(), tiny_spec())
    run_id = finished_run(store)
    register_model(run_id, "moles", tiny_model(), tiny_spec())
    with pytest.raises(InputError, match="version 1 of 'moles' already"):
        register_model(run_id, "moles", tiny_model(), tiny_spec())


def test_unknown_models_are_one_clear_line(store: MlflowClient, tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(image_bytes())
    for target in ("nobody", "nobody/3", "models:/nobody@champion", str(tmp_path)):
        with pytest.raises(InputError) as caught:
            predict_files(target, [image])
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"no image file .*b\.jpg"):
        predict_files("nobody", [tmp_path / "b.jpg"])
    with pytest.raises(InputError, match="no image files"):
        predict_files("nobody", [])
