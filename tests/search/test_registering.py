"""What a search and `fairtune register` leave in the registry, cut off or not."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image
from search.conftest import children
from search.samples import tiny_config, write_data
from search.test_whole_search import ONE_FINAL, only_search

import fairtune.search.search as search_module
import fairtune.search.single as single_module
from fairtune.cli.running import registered
from fairtune.errors import InputError
from fairtune.interrupt import StopRequest
from fairtune.search.search import SearchOutcome, search
from fairtune.search.single import register_run
from fairtune.workspace import open_outline

Runner = Callable[..., SearchOutcome]
CONFIG = tiny_config(search__trials=1, search__final=ONE_FINAL, register={"name": "tiny"})


def aliases(name: str = "tiny") -> dict[str, str]:
    found = MlflowClient().get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


def versions(name: str = "tiny") -> list[str]:
    found = MlflowClient().search_model_versions(f"name = '{name}'")
    return sorted(str(version.version) for version in found)


def has_card(number: str, name: str = "tiny") -> bool:
    return "fairtune.model_card" in MlflowClient().get_model_version(name, number).tags


def failing_once(
    monkeypatch: pytest.MonkeyPatch, modules: list[Any], name: str, error: BaseException
) -> None:
    original, failed = getattr(modules[0], name), []

    def fail(*arguments: Any, **options: Any) -> Any:
        if failed:
            return original(*arguments, **options)
        failed.append(arguments)
        raise error

    for module in modules:
        monkeypatch.setattr(module, name, fail)


def test_the_first_winner_is_the_champion_and_the_next_waits_for_the_gate(
    run_search: Runner,
) -> None:
    first, second = run_search(CONFIG), run_search(CONFIG)
    assert versions() == ["1", "2"]
    assert aliases() == {"champion": "1"}
    assert (first.alias, second.alias) == ("champion", None)
    assert second.summary()["model_alias"] is None
    assert has_card("2")
    said = registered(first)
    assert said[0].split() == ["registered", "tiny", "version", "1,", "champion"]
    assert "-m models:/tiny@champion " in said[1]
    assert len(said) == 2
    said = registered(second)
    assert "tiny version 2, not the champion" in said[0]
    assert said[1].endswith("fairtune promote tiny --version 2")
    assert "-m models:/tiny/2 " in said[2]


@pytest.mark.parametrize("step", ["write_model_card", "take_alias"])
@pytest.mark.parametrize(
    "error", [MemoryError("too many resamples"), KeyboardInterrupt()], ids=type
)
def test_a_search_cut_off_after_its_version_was_made_completes_it(
    run_search: Runner, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    failing_once(monkeypatch, [search_module], step, error)
    with pytest.raises(type(error)):
        run_search(CONFIG)
    assert versions() == ["1"]
    assert aliases() == {}
    run_id = only_search().info.run_id
    outcome = run_search(CONFIG, resume=run_id)
    assert outcome.version is not None
    assert (outcome.version.version, outcome.alias) == ("1", "champion")
    assert versions() == ["1"]
    assert aliases() == {"champion": "1"}
    assert has_card("1")
    assert only_search().info.status == "FINISHED"


def test_a_run_is_registered_once_on_its_own_data_with_its_card(
    run_search: Runner, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tiny_config(search__trials=1, search__final=ONE_FINAL)
    (trial,) = children(run_search(config).run_id, "trial")
    run_id = trial.info.run_id
    failing_once(monkeypatch, [search_module, single_module], "write_model_card", MemoryError("no"))
    with pytest.raises(MemoryError):
        register_run(run_id, "mine", None, alias="staging")
    assert versions("mine") == ["1"]
    assert not has_card("1", "mine")
    # Evaluated by now, so that nothing but the workspace would read the data.
    other = str(write_data(tmp_path, seed=1))
    with pytest.raises(InputError, match="was made from data with digest"):
        register_run(run_id, "other", other, alias=None)
    assert register_run(run_id, "mine", source, alias="staging").version == "1"
    assert versions("mine") == ["1"]
    assert has_card("1", "mine")
    assert aliases("mine") == {"staging": "1"}
    with pytest.raises(InputError, match=r"is version 1 of 'mine' already"):
        register_run(run_id, "mine", source, alias=None)


def test_a_registered_model_reads_images_through_the_window_of_training(
    store: str, tmp_path: Path
) -> None:
    write_data(tmp_path)
    pixels = np.load(tmp_path / "images.npy")
    table = pd.read_csv(tmp_path / "manifest.csv")
    for position, image in enumerate(pixels):
        deep = image[..., 0].astype(np.uint16) * 4  # of 16 bits, of which ten are used
        Image.fromarray(deep).save(tmp_path / f"{position}.png")
    table["image"] = [f"{position}.png?window=200,900" for position in range(len(table))]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    outcome = search(CONFIG, str(tmp_path), StopRequest())
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    kept = MlflowClient().download_artifacts(outcome.run_id, "predictions/test.parquet")
    logged = pd.read_parquet(kept).head(4)
    files = [(tmp_path / name.partition("?")[0]).read_bytes() for name in logged["image"]]
    told = model.predict(pd.DataFrame({"image": [b64encode(data).decode() for data in files]}))
    assert told["error"].isna().all(), told
    (_, positive) = [name for name in told.columns if name.startswith("probability_")]
    np.testing.assert_allclose(told[positive].astype(float), logged["probability_1"], atol=1e-4)
    table.loc[3, "image"] = "3.png?window=0,900"
    table.to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(InputError, match=r"several windows \(0,900, 200,900\)"):
        open_outline(CONFIG, str(tmp_path))
