"""Whole comparisons on a data set of seconds."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from comparison.conftest import METHODS, comparison_of
from mlflow.entities import Run
from search.samples import tiny_config

import fairtune.comparison.unit as unit_module
from fairtune.cli import main
from fairtune.comparison.compare import NothingRanError, check_same, compare, settings_of
from fairtune.comparison.unit import UnitRunner, overlap, random_bits, units
from fairtune.errors import InputError
from fairtune.interrupt import InterruptedSearchError, StopRequest
from fairtune.peft import bits_text, get_space
from fairtune.search.worker import worker_workspace
from fairtune.tracking.predictions import read_predictions
from fairtune.tracking.runs import RunLog, existing_run
from fairtune.training import DivergedError

STAGES = {"name": "stages", "space": "stages_norm_conv"}


def nested(run_id: str) -> dict[tuple[str, str], Run]:
    """The units of a comparison by method and seed."""
    runs = existing_run(run_id).children()
    return {(r.data.tags["fairtune.method"], r.data.tags["fairtune.seed"]): r for r in runs}


def only_comparison() -> RunLog:
    runs = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.`fairtune.kind` = 'compare'"
    )
    assert len(runs) == 1
    return existing_run(runs["run_id"][0])


def frame(log: RunLog, name: str) -> pd.DataFrame:
    from io import StringIO

    return pd.read_csv(StringIO(log.read_text(name)))


def test_every_method_has_its_trials_and_one_final_model(whole: tuple[str, RunLog]) -> None:
    _, log = whole
    runs = log.children()
    assert len(runs) == 8  # four methods that train, two seeds
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        trials = log.sibling(run.info.run_id).children("tags.`fairtune.kind` = 'trial'")
        assert len(trials) == 1
        assert not any(key.startswith("test/") for key in trials[0].data.metrics)
        assert 0 <= run.data.metrics["test/worst_group_auroc"] <= 1


def test_what_is_written(whole: tuple[str, RunLog]) -> None:
    table, log = whole
    names = {file.path for file in log.client.list_artifacts(log.run_id)}
    files = "table.md table.tex table.csv models.csv units.csv differences.csv claim.csv ranks.csv"
    more = "intervals.csv thresholds.csv thresholds.tex comparison.yaml figures"
    assert names >= {*files.split(), *more.split()}
    figures = {Path(f.path).name for f in log.client.list_artifacts(log.run_id, "figures")}
    expected = {"critical-difference", "trade-off-spots", "generalisation-gap-spots"}
    assert figures == {f"{name}.{ending}" for name in expected for ending in ("png", "svg")}
    assert "Complete seeds: spots: 2 of 2; 1 trials" in table
    assert "the claim about `searched+group_dro` is" in table
    assert "| searched+group_dro | 2 |" in table
    assert r"best\_fixed" in log.read_text("table.tex")
    decided = frame(log, "thresholds.csv").set_index("method")
    assert list(decided.index) == [*METHODS[:4], "random"]
    assert set(decided["n"]) == {2}
    models = frame(log, "models.csv").groupby("method")["by_group/accuracy"]
    assert decided.loc["full", "accuracy, by group"].startswith(f"{models.mean()['full']:.3f} ±")
    assert "| equalized odds difference, by group |" in table
    ranks = frame(log, "ranks.csv")
    assert set(ranks["method"]) == {"full", "linear", "searched+group_dro", "random"}
    assert set(ranks["block"]) == {"seed"}
    own = frame(log, "models.csv").set_index("method").loc["full", "val/auroc_gap"]
    shown = frame(log, "table.csv").set_index("method").loc["full", "gap, val"]
    assert shown.startswith(f"{own.mean():.3f} ±")
    assert all(f"& gap, {split} " in log.read_text("table.tex") for split in ("train", "val"))


def test_figures_are_those_of_the_runs(whole: tuple[str, RunLog]) -> None:
    _, log = whole
    models = frame(log, "models.csv").set_index(["method", "seed"])
    for run in log.children():
        tags = run.data.tags
        mine = models.loc[(tags["fairtune.method"], int(tags["fairtune.seed"]))]
        for key in ("test/worst_group_auroc", "val/auroc", "train/auroc_gap"):
            assert mine[key] == pytest.approx(run.data.metrics[key])
    apart = frame(log, "differences.csv")
    (row,) = apart[(apart["method"] == "linear") & (apart["metric"] == "auroc")].to_dict("records")
    own = models["test/auroc"]
    assert row["mean"] == pytest.approx((own["linear"] - own["full"]).mean())
    assert row["patient_estimate"] == pytest.approx(row["mean"])
    assert row["n"] == 2


def test_the_best_fixed_mask_is_chosen_on_validation(whole: tuple[str, RunLog]) -> None:
    _, log = whole
    models = frame(log, "models.csv")
    for _, rows in models.groupby("seed"):
        own = rows.set_index("method")
        fixed = own.loc[["full", "linear"], "val/worst_group_auroc"]
        assert own.loc["best_fixed", "chosen"] == fixed.idxmax()
        chosen = own.loc[fixed.idxmax(), "test/auroc"]
        assert own.loc["best_fixed", "test/auroc"] == chosen


def test_a_random_mask_has_the_size_of_the_searched_one(whole: tuple[str, RunLog]) -> None:
    _, log = whole
    models = frame(log, "models.csv").set_index(["method", "seed"])
    for seed in (1, 2):
        random, searched = models.loc[("random", seed)], models.loc[("searched+group_dro", seed)]
        assert random["mask"] != searched["mask"]
        assert random["share"] == pytest.approx(searched["share"], abs=0.2)
        assert 0 <= random["mask_overlap"] <= 1
        assert np.isnan(searched["mask_overlap"])
    assert frame(log, "table.csv").set_index("method")["overlap"].notna().to_dict() == {
        name: name == "random"
        for name in ("full", "linear", "best_fixed", "searched+group_dro", "random")
    }


@pytest.mark.parametrize("on", [1, 3])
def test_a_random_mask_may_have_as_many_parts_instead(source: str, on: int) -> None:
    workspace = worker_workspace(tiny_config(), source)
    parts = get_space(workspace.config.search.space).bits(workspace.base.model)
    bits = (1,) * on + (0,) * (len(parts) - on)
    other = workspace.mask(bits)
    drawn = [random_bits(workspace, other, seed, match="parts") for seed in range(5)]
    assert {sum(one) for one in drawn} == {on}
    assert bits not in drawn
    assert len(set(drawn)) > 1
    assert drawn == [random_bits(workspace, other, seed, match="parts") for seed in range(5)]


def test_the_draws_of_a_random_mask_stay_what_they_were(source: str) -> None:
    """A comparison of an earlier release is resumed to the masks that it would have had."""
    workspace = worker_workspace(tiny_config(), source)
    other = workspace.mask((1, 1, 0, 1, 0, 1))
    drawn = {
        match: [bits_text(random_bits(workspace, other, seed, match=match)) for seed in range(3)]
        for match in ("values", "parts")
    }
    assert drawn == {
        "values": ["101110", "100111", "111100"],
        "parts": ["011101", "101011", "110110"],
    }
    apart = [overlap(workspace, random_bits(workspace, other, seed), other) for seed in range(3)]
    assert apart == pytest.approx([0.013289, 0.506173, 0.215139], abs=1e-6)


def test_a_random_mask_of_adapters_has_their_size(source: str) -> None:
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    workspace = worker_workspace(tiny_config(search__space="lora"), source)
    nothing = workspace.mask((0,) * 6).trained
    for bits in ((16,) * 6, (4, 0, 8, 0, 16, 0), (4, 0, 0, 0, 0, 0)):
        other = workspace.mask(bits)
        drawn = [random_bits(workspace, other, seed) for seed in range(5)]
        assert bits not in drawn
        assert len(set(drawn)) > 1
        for one in drawn:
            size = workspace.mask(one).trained
            assert size - nothing == pytest.approx(other.trained - nothing, rel=0.1)
            assert overlap(workspace, one, other) < 1
    places = random_bits(workspace, workspace.mask((4, 0, 8, 0, 16, 0)), 0, match="parts")
    assert np.count_nonzero(places) == 3


def test_the_overlap_of_adapters_counts_the_lower_rank(source: str) -> None:
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    workspace = worker_workspace(tiny_config(search__space="lora"), source)
    low, high, elsewhere = (4, 0, 0, 0, 0, 0), (16, 0, 0, 0, 0, 0), (0, 0, 0, 4, 0, 0)
    assert overlap(workspace, low, workspace.mask(low)) == 1
    assert overlap(workspace, low, workspace.mask(high)) == 1 / 4
    assert overlap(workspace, low, workspace.mask(elsewhere)) == 0


def test_the_overlap_of_masks_leaves_out_what_always_trains(source: str) -> None:
    workspace = worker_workspace(tiny_config(), source)
    n = len(get_space(workspace.config.search.space).bits(workspace.base.model))
    nothing, everything = (0,) * n, (1,) * n
    first, second = (1, *nothing[1:]), (0, 1, *nothing[2:])
    assert overlap(workspace, first, workspace.mask(first)) == 1
    assert overlap(workspace, first, workspace.mask(second)) == 0
    assert overlap(workspace, nothing, workspace.mask(everything)) == 0
    assert overlap(workspace, nothing, workspace.mask(nothing)) == 1
    half = overlap(workspace, first, workspace.mask((1, 1, *nothing[2:])))
    assert half == overlap(workspace, (1, 1, *nothing[2:]), workspace.mask(first))
    assert 0 < half < 1


def test_a_method_may_repeat_its_best_trials_before_it_chooses(
    mlflow_store: str, source: str
) -> None:
    again = {"like": "searched", "name": "again", "trials": 3, "candidates": 2, "repeats": 2}
    comparison = comparison_of(
        ["full", "linear", "best_fixed", again], seeds=[1], candidate="again"
    )
    outcome = compare(comparison, source, StopRequest())
    run = nested(outcome.run_id)["again", "1"]
    runs = existing_run(run.info.run_id).children()
    of_kind: dict[str, list[Run]] = {}
    for one in runs:
        of_kind.setdefault(one.data.tags["fairtune.kind"], []).append(one)
    assert {kind: len(found) for kind, found in of_kind.items()} == {"trial": 3, "final": 4}
    best_two = sorted(of_kind["trial"], key=lambda r: -r.data.metrics["objective"])[:2]
    repeated = {r.data.tags["fairtune.candidate"] for r in of_kind["final"]}
    assert repeated == {f"trial-{int(r.data.tags['fairtune.number']):03d}" for r in best_two}
    assert f"trial-{int(run.data.metrics['best_trial']):03d}" in repeated
    assert not any(key.startswith("test/") for one in runs for key in one.data.metrics)
    rows = frame(existing_run(outcome.run_id), "table.csv").set_index("method")["trials"]
    assert rows.to_dict() == {"full": 1, "linear": 1, "best_fixed": 2, "again": 7}
    assert "trials of each method and seed: see the table" in outcome.table


class StopAt(StopRequest):
    """Asks to stop when it is asked for the n-th time."""

    def __init__(self, n: int) -> None:
        self.left = n
        self.reason = "stopped by Ctrl-C"

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("after", [9])
def test_a_stopped_comparison_goes_on_as_if_it_had_not_been(
    mlflow_store: str, source: str, whole: tuple[str, RunLog], after: int
) -> None:
    comparison = comparison_of(METHODS, candidate="searched+group_dro")
    with pytest.raises(InterruptedSearchError):
        compare(comparison, source, StopAt(after))
    log = only_comparison()
    assert log.data().info.status == "KILLED"
    outcome = compare(comparison, None, StopRequest(), resume=log.run_id)  # knows its source
    assert outcome.complete
    mine, theirs = frame(log, "models.csv"), frame(whole[1], "models.csv")
    pd.testing.assert_frame_equal(mine, theirs, check_exact=False, rtol=1e-6)
    assert log.data().info.status == "FINISHED"


def test_a_killed_process_leaves_nothing_that_is_lost_or_doubled(
    mlflow_store: str, source: str
) -> None:
    comparison = comparison_of(["full", "linear"], seeds=[1], candidate="linear")
    outcome = compare(comparison, source, StopRequest())
    log = existing_run(outcome.run_id)
    before = nested(outcome.run_id)
    log.client.update_run(log.run_id, status="RUNNING")  # as kill -9 leaves it
    log.client.update_run(before["linear", "1"].info.run_id, status="RUNNING")
    compare(comparison, source, StopRequest(), resume=log.run_id)
    after = nested(log.run_id)
    assert len(log.children()) == 2
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert after["full", "1"].info.end_time == before["full", "1"].info.end_time  # not run again
    for key, run in before.items():
        assert run.data.metrics["test/auroc"] == after[key].data.metrics["test/auroc"]
        looks = log.client.get_metric_history(run.info.run_id, "test/auroc")
        assert len(looks) == 1  # test is read once, whatever is killed


def test_a_method_that_fails_does_not_stop_the_others(
    mlflow_store: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = unit_module.run_study

    def fail(runner: object, *rest: object, **more: object) -> object:
        if runner.config.search.space == "linear_readout":  # type: ignore[attr-defined]
            raise DivergedError("the loss became nan")
        return real(runner, *rest, **more)  # type: ignore[arg-type]

    comparison = comparison_of(["full", "linear", "norms", STAGES], seeds=[1], candidate="linear")
    with monkeypatch.context() as patch:
        patch.setattr(unit_module, "run_study", fail)
        outcome = compare(comparison, source, StopRequest())
    assert (outcome.finished, outcome.failed, outcome.complete) == (2, 2, True)
    assert "Without a model by spots: linear, stages" in outcome.table
    assert outcome.table.startswith("Complete seeds: spots: 1 of 1;")
    assert "Failed: spots, linear, seed 1: the loss became nan." in outcome.table
    run = nested(outcome.run_id)["linear", "1"]
    assert run.info.status == "FAILED"
    assert run.data.tags["fairtune.error"] == "the loss became nan"
    assert "convolutional" in nested(outcome.run_id)["stages", "1"].data.tags["fairtune.error"]
    again = compare(comparison, source, StopRequest(), resume=outcome.run_id)
    assert (again.finished, again.failed) == (3, 1)  # tried again, and now it works


def test_without_a_complete_seed_nothing_is_compared(
    mlflow_store: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each method has a model of one seed alone, and of another than the other method."""
    real = unit_module.run_study

    def fail(runner: object, *rest: object, **more: object) -> object:
        config = runner.config  # type: ignore[attr-defined]
        if (config.search.space, config.seed) in (("fullft", 1), ("linear_readout", 2)):
            raise DivergedError("the loss became nan")
        return real(runner, *rest, **more)  # type: ignore[arg-type]

    comparison = comparison_of(["full", "linear"], candidate="linear")
    with monkeypatch.context() as patch:
        patch.setattr(unit_module, "run_study", fail)
        outcome = compare(comparison, source, StopRequest())
    assert (outcome.finished, outcome.failed, outcome.complete) == (2, 2, True)
    assert outcome.table.startswith("Complete seeds: spots: 0 of 2;")
    assert "Failed: spots, full, seed 1: the loss became nan." in outcome.table
    assert "Failed: spots, linear, seed 2: the loss became nan." in outcome.table
    assert outcome.table.endswith("No seed is complete: nothing is compared.\n")
    log = existing_run(outcome.run_id)
    assert log.data().info.status == "FINISHED"
    assert log.read_text("table.md") == outcome.table
    models = frame(log, "models.csv")
    assert models[["method", "seed"]].values.tolist() == [["linear", 1], ["full", 2]]
    assert models["one_threshold/accuracy"].notna().all()
    again = compare(comparison, source, StopRequest(), resume=outcome.run_id)
    assert "Complete seeds: spots: 2 of 2;" in again.table


def test_when_nothing_works_the_first_reason_is_told(mlflow_store: str, source: str) -> None:
    comparison = comparison_of([STAGES, "full"], seeds=[1], candidate="stages")
    tasks = comparison.model_dump(mode="json")["tasks"]
    tasks[0]["config"]["train"]["learning_rate"] = 1e30
    tasks[0]["config"]["search"]["known_learning_rates"] = [1e30]
    broken = comparison.model_copy(
        update={"tasks": tuple(comparison.tasks[0].model_validate(t) for t in tasks)}
    )
    with pytest.raises(NothingRanError, match="no method has a model: "):
        compare(broken, source, StopRequest())
    assert only_comparison().data().info.status == "FAILED"


def test_one_fold_alone_is_the_same_for_all_seeds(mlflow_store: str, source: str) -> None:
    comparison = comparison_of(
        ["full", "linear"], {"data__folds": 3, "data__fold": 0}, candidate="linear"
    )
    assert [(u.seed, u.fold) for u in units(comparison)] == [(1, 0), (1, 0), (2, 0), (2, 0)]
    outcome = compare(comparison, source, StopRequest())
    assert outcome.complete
    log = existing_run(outcome.run_id)
    tested = []
    for run in nested(outcome.run_id).values():
        path = log.client.download_artifacts(run.info.run_id, "predictions/test.parquet")
        tested.append(frozenset(read_predictions(Path(path))["image"]))
    assert len(tested) == 4
    assert len(set(tested)) == 1
    assert 40 < len(tested[0]) < 100  # a third of 200


def test_folds_test_every_image_once(mlflow_store: str, source: str, tmp_path: Path) -> None:
    comparison = comparison_of(
        ["full", "linear"], {"data__folds": 3}, seeds=[1], candidate="linear"
    )
    assert len(units(comparison)) == 6
    outcome = compare(comparison, source, StopRequest())
    log = existing_run(outcome.run_id)
    runs = [r for r in log.children() if r.data.tags["fairtune.method"] == "full"]
    tables = [
        read_predictions(log.sibling(r.info.run_id).download("predictions/test.parquet", tmp_path / f"{i}"))
        for i, r in enumerate(runs)
        if (tmp_path / f"{i}").mkdir() is None
    ]  # fmt: skip
    images = pd.concat(tables)["image"]
    assert len(images) == 200
    assert images.is_unique
    row = frame(log, "models.csv").iloc[0]
    assert np.isfinite(row["test/worst_group_auroc_fold_mean"])
    assert "AUROC, fold mean" in outcome.table


def test_other_settings_are_refused(whole: tuple[str, RunLog]) -> None:
    _, log = whole
    same = comparison_of(METHODS, candidate="searched+group_dro")
    assert settings_of(log) == same
    check_same(log, same)
    with pytest.raises(InputError, match="started with other settings"):
        check_same(log, same.model_copy(update={"trials": 2}))
    unit = log.sibling(log.children()[0].info.run_id)
    with pytest.raises(InputError, match="is no comparison"):
        check_same(unit, same)


def test_a_unit_can_run_in_a_worker(whole: tuple[str, RunLog]) -> None:
    """What an executor elsewhere is given survives pickling, and finds what is done."""
    _, log = whole
    comparison = settings_of(log)
    job = (UnitRunner(comparison, None, log, StopRequest()), units(comparison)[0])
    runner, unit = pickle.loads(pickle.dumps(job))
    assert runner(unit) is None
    assert len(log.children()) == 8  # none is run again


def test_the_command_stops_by_the_clock_and_goes_on(
    mlflow_store: str, source: str, tiny_file: Callable[..., Path]
) -> None:
    path = str(tiny_file("[full, linear]", "references: [linear]\ncandidate: full\n"))
    run = CliRunner().invoke
    first = run(main, ["compare", "--config", path, "--source", source, "--max-minutes", "1e-9"])
    assert first.exit_code == 0, first.output
    said = json.loads(first.stdout.splitlines()[-1])
    assert (said["finished"], said["total"], said["complete"]) == (0, 2, False)
    second = run(main, ["compare", "--resume", said["run_id"]])
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout.splitlines()[-1])["complete"] is True
    assert "the claim about `full` is not decided" in second.stdout
    third = run(main, ["compare", "--resume", said["run_id"], "-o", "train.epochs=3"])
    assert third.exit_code == 2
    assert "was started with other settings: give no --config and of -o only" in third.stderr
    fourth = run(main, ["compare", "--resume", said["run_id"], "-o", "search.parallelism=3"])
    assert fourth.exit_code == 0, fourth.output
    kept = settings_of(existing_run(said["run_id"])).tasks[0].config
    assert kept["search"]["parallelism"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --config configs/compare/demo.yaml, say, or --resume RUN_ID"),
        (["--config", "nowhere.yaml"], "no configuration file nowhere.yaml"),
        (["--folds", "2"], "data.folds: Input should be greater than or equal to 3"),
        (["-o", "train.epoch=3"], "unknown key 'train.epoch'; did you mean 'epochs'?"),
        (["--seeds", "3"], "No such option"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], message: str, tiny_file: Callable[..., Path]
) -> None:
    path = str(tiny_file("[full, searched]"))
    given = (
        arguments if not arguments or "--config" in arguments else ["--config", path, *arguments]
    )
    result = CliRunner().invoke(main, ["compare", *given])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
