"""Whole searches of a tiny data set on a SQLite store."""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from search.conftest import children
from search.samples import tiny_config

import fairtune.search.winner as winner_module
from fairtune.errors import InputError
from fairtune.fairness import UndefinedObjectiveError, get_objective
from fairtune.interrupt import InterruptedSearchError, StopRequest, handle_signals
from fairtune.search.final import BASELINES
from fairtune.search.runner import result_of
from fairtune.search.search import SearchOutcome, search
from fairtune.search.study import NoTrialError
from fairtune.training import DivergedError, Split
from fairtune.workspace import Workspace

Runner = Callable[..., SearchOutcome]
ONE_FINAL = {"candidates": 1, "seeds": 1}
KNOWN = [f"auto_peft1:{bits}" for bits in ("111111", "000000", "100100", "010010")]


def figures(runs: list[Run]) -> list[tuple[str | None, dict[str, str]]]:
    """Names and metrics, NaN too, without what depends on the clock."""
    clock = {"seconds", "step_seconds", "validation_seconds", "train/images_per_second"}
    clock.add("peak_memory_bytes")
    return [
        (run.info.run_name, {k: repr(v) for k, v in run.data.metrics.items() if k not in clock})
        for run in runs
    ]


def point(run: Run) -> tuple[str, str]:
    return run.data.params["mask"], run.data.params["learning_rate"]


def only_search() -> Run:
    """Return the one search of the store."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("fairtune")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`fairtune.kind` = 'search'")
    return run


def test_a_search_from_end_to_end(run_search: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    original = Split.of

    def spy(manifest: object, images: object, name: str) -> Split:
        if name == "test":
            reads.append(only_search().data.tags["fairtune.winner"])
        return original(manifest, images, name)  # type: ignore[arg-type]

    monkeypatch.setattr(Split, "of", staticmethod(spy))
    outcome = run_search(tiny_config())

    trials, finals = children(outcome.run_id, "trial"), children(outcome.run_id, "final")
    assert [run.data.params["mask"] for run in trials[:4]] == KNOWN  # the known masks come first
    assert len({point(run) for run in trials}) == len(trials) == 6
    assert len(finals) == (2 + len(BASELINES)) * 2
    everything = children(outcome.run_id)
    assert len(everything) == len(trials) + len(finals)
    assert {run.info.status for run in everything} == {"FINISHED"}

    parent = only_search()
    assert parent.info.run_id == outcome.run_id
    assert parent.info.status == "FINISHED"
    assert reads == [parent.data.tags["fairtune.winner"]]  # once, after the winner was fixed
    assert not any(key.startswith("test/") for run in trials for key in run.data.metrics)
    for run in trials:
        assert run.data.metrics["objective"] == run.data.metrics["val/worst_group_auroc"]
        assert run.data.metrics["epochs"] == 2
    # The winner of the search is at no disadvantage against anything it knew before.
    best = max(run.data.metrics["objective"] for run in trials)
    assert best >= max(run.data.metrics["objective"] for run in trials[:4])
    table = outcome.comparison.set_index("model")
    bound = table["val/worst_group_auroc"] - table["val/worst_group_auroc_se"]
    assert outcome.comparison["model"][0].endswith("(winner)")
    assert set(BASELINES) <= {name.removesuffix(" (winner)") for name in table.index}
    assert outcome.summary()["metrics"].keys() >= {"val/auroc", "test/worst_group_auroc"}
    assert not bound.isna().any()


def test_the_same_seed_gives_the_same_search_bit_for_bit(run_search: Runner) -> None:
    config = tiny_config(search__trials=7, search__final=ONE_FINAL)
    first, second = run_search(config), run_search(config)
    assert first.run_id != second.run_id
    assert figures(children(first.run_id)) == figures(children(second.run_id))
    pd.testing.assert_frame_equal(first.comparison, second.comparison, check_exact=True)
    assert first.metrics == second.metrics
    other = run_search(tiny_config(search__trials=5, search__final=ONE_FINAL, seed=4))
    assert figures(children(other.run_id)) != figures(children(first.run_id))


def fail_where(
    monkeypatch: pytest.MonkeyPatch, error: Exception, where: Callable[[str], bool]
) -> None:
    """Make fine-tunes under masks with these bits raise, from within their forward pass."""
    original = Workspace.model

    def model(self: Workspace, mask: object, seed: int) -> torch.nn.Module:
        built = original(self, mask, seed)  # type: ignore[arg-type]
        if where(mask.text):  # type: ignore[attr-defined]

            def raises(*_: object) -> None:
                if built.training:
                    raise error

            built.register_forward_pre_hook(raises)
        return built

    monkeypatch.setattr(Workspace, "model", model)


def test_a_failing_trial_is_written_down_and_the_search_goes_on(
    run_search: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_where(monkeypatch, ValueError("odd\nshape"), lambda bits: bits == "100100")
    outcome = run_search(tiny_config(search__final=ONE_FINAL))
    trials = children(outcome.run_id, "trial")
    assert [run.info.status for run in trials].count("FAILED") == 1
    (failed,) = [run for run in trials if run.info.status == "FAILED"]
    assert failed.data.params["mask"] == "auto_peft1:100100"
    assert failed.data.tags["fairtune.error"] == "odd shape"
    assert len(trials) == 6
    assert only_search().info.status == "FINISHED"


def test_a_loss_that_is_no_number_fails_its_trial_alone(run_search: Runner) -> None:
    outcome = run_search(
        tiny_config(
            search__learning_rate={"low": 1e-3, "high": 1e30},
            search__trials=8,
            search__final=ONE_FINAL,
            seed=5,
        )
    )
    trials = children(outcome.run_id, "trial")
    failed = [run for run in trials if run.info.status == "FAILED"]
    assert failed  # such learning rates do not end well
    assert all(
        "not" in r.data.tags["fairtune.error"] or "nan" in r.data.tags["fairtune.error"]
        for r in failed
    )
    assert not any("objective" in run.data.metrics for run in failed)
    assert len(trials) == 8


def test_when_all_fail_the_search_ends_early_and_names_the_reason(
    run_search: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_where(monkeypatch, DivergedError("loss became nan"), lambda bits: True)
    with pytest.raises(NoTrialError, match="loss became nan"):
        run_search(tiny_config(search__trials=50))
    parent = only_search()
    assert parent.info.status == "FAILED"
    assert "loss became nan" in parent.data.tags["fairtune.error"]
    assert 0 < len(children(parent.info.run_id)) < 10
    assert {run.info.status for run in children(parent.info.run_id)} == {"FAILED"}


def test_a_final_run_that_fails_costs_its_candidate_alone(
    run_search: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_where(monkeypatch, RuntimeError("bad luck"), lambda bits: bits == "")
    # Baselines have no bits: both fail, the candidates of the search remain.
    outcome = run_search(tiny_config())
    assert outcome.mask.text != ""
    finals = children(outcome.run_id, "final")
    assert [run.info.status for run in finals].count("FAILED") == 4


class StopAt(StopRequest):
    """Asks to stop once it has been asked this often."""

    reason = "stopped by Ctrl-C"

    def __init__(self, after: int) -> None:
        self.left = after

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0


def assert_closed_as_killed() -> Run:
    parent = only_search()
    assert parent.info.status == "KILLED"
    statuses = [run.info.status for run in children(parent.info.run_id)]
    assert "RUNNING" not in statuses
    assert set(statuses) <= {"FINISHED", "KILLED"}
    return parent


def test_a_stop_request_before_the_run_opens_none(store: str, source: str) -> None:
    with pytest.raises(InterruptedSearchError):
        search(tiny_config(), source, StopAt(0))
    assert MlflowClient().get_experiment_by_name("fairtune") is None


@pytest.mark.parametrize("after", [2, 3, 6, 9, 30])
def test_a_stop_request_closes_everything_as_killed(store: str, source: str, after: int) -> None:
    with pytest.raises(InterruptedSearchError):
        search(tiny_config(), source, StopAt(after))
    assert_closed_as_killed()


def test_sigterm_in_the_middle_of_a_trial_closes_everything(
    store: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Workspace.model

    def model(self: Workspace, mask: object, seed: int) -> torch.nn.Module:
        built = original(self, mask, seed)  # type: ignore[arg-type]
        if mask.text == "100100":  # type: ignore[attr-defined]
            built.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        return built

    monkeypatch.setattr(Workspace, "model", model)
    with pytest.raises(InterruptedSearchError), handle_signals() as stop:
        search(tiny_config(), source, stop)
    parent = assert_closed_as_killed()
    assert [r.info.status for r in children(parent.info.run_id)] == ["FINISHED"] * 2 + ["KILLED"]


@pytest.mark.parametrize(
    ("rule", "objective"),
    [("halving", "worst_group_auroc"), ("median", "auroc_gap"), ("asha", "worst_group_auroc")],
)
def test_pruned_trials_are_finished_runs_whose_values_count(
    run_search: Runner, rule: str, objective: str
) -> None:
    pruning = {"rule": rule, "rungs": [1, 2], "reduction": 2, "min_trials": 2}
    judge = get_objective(objective)
    outcome = run_search(
        tiny_config(
            train__epochs=3,
            search__pruning=pruning,
            search__objective=objective,
            search__trials=9,
            search__final=ONE_FINAL,
        )
    )
    trials = children(outcome.run_id, "trial")
    pruned = [run for run in trials if "fairtune.pruned_at" in run.data.tags]
    assert pruned
    for run in pruned:
        at = int(run.data.tags["fairtune.pruned_at"])
        assert run.info.status == "FINISHED"
        assert run.data.metrics["epochs"] == at < 3
        oriented = -judge.loss(run.data.metrics["objective"])
        assert run.data.metrics[f"rung/{at:03d}"] == oriented
        result = result_of(run, judge)  # what the algorithm is told
        assert result["status"] == "ok"
        assert result["loss"] == judge.loss(run.data.metrics["objective"])
        there = [r.data.metrics.get(f"rung/{at:03d}") for r in trials]
        assert oriented < max(value for value in there if value is not None)  # the best goes on
    spent = sum(run.data.metrics["epochs"] for run in trials)
    assert spent == 9 * 3 - sum(3 - int(r.data.tags["fairtune.pruned_at"]) for r in pruned)
    finals = {point(r) for r in children(outcome.run_id, "final")}
    assert not finals & {point(run) for run in pruned}


@pytest.mark.parametrize(
    ("budget", "most"),
    [
        ({"search__max_epochs": 5}, 3),
        ({"search__patience": 2}, 20),
        ({"search__max_minutes": 1e-4}, 1),
    ],
)
def test_budgets_end_a_search(run_search: Runner, budget: dict[str, object], most: int) -> None:
    outcome = run_search(tiny_config(search__trials=20, search__final=ONE_FINAL, **budget))
    assert 1 <= len(children(outcome.run_id, "trial")) <= most < 21
    assert math.isnan(outcome.comparison["val/auroc_se"][0])  # one seed has no spread


def test_a_group_of_one_class_is_refused_before_any_training(
    store: str, source: str, tmp_path: Path
) -> None:
    table = pd.read_csv(Path(source) / "manifest.csv")
    table.loc[(table.split == "val") & (table.ward == "b"), "label"] = "well"
    folder = tmp_path / "one-class"
    folder.mkdir()
    table.to_csv(folder / "manifest.csv", index=False)
    shutil.copy(Path(source) / "images.npy", folder)
    with pytest.raises(UndefinedObjectiveError, match="'b' of 'ward'"):
        search(tiny_config(), str(folder), StopRequest())
    assert MlflowClient().get_experiment_by_name("fairtune") is None  # no run was opened


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search__space": "stages_norm_conv"}, "stages_norm_conv"),
        ({"search__objective": "worst_auroc"}, "worst_group_auroc"),
        ({"train__optimizer": "adamm"}, "adamm"),
    ],
)
def test_what_does_not_fit_is_named(
    run_search: Runner, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_search(tiny_config(**change))


def test_the_run_that_mlflow_run_gave_becomes_the_parent(
    store: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = MlflowClient().create_experiment("mine")
    run = MlflowClient().create_run(experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    config = tiny_config(search__trials=2, search__final=ONE_FINAL)
    outcome = search(config, source, StopRequest())
    assert outcome.run_id == run.info.run_id
    assert len(children(run.info.run_id, "trial")) == 2
    assert "MLFLOW_RUN_ID" not in os.environ  # a child process would write into the parent
    assert mlflow.active_run() is None


def test_evaluation_is_the_only_reader_of_the_test_split() -> None:
    readers = [
        path.name
        for path in Path(winner_module.__file__).parent.glob("*.py")
        if '"test"' in path.read_text()
    ]
    assert set(readers) <= {"winner.py", "search.py"}
