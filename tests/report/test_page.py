"""The page of a run: complete, self-contained, escaped, accessible."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from report.conftest import FEW, GROUPS, HOSTILE
from report.pages import Page
from report.samples import make_finetune, make_search

from fairtune.errors import InputError
from fairtune.report import describe_run, write_report
from fairtune.report.sections import excluded
from fairtune.report.story import read_story
from fairtune.search.examples import log_examples
from fairtune.tracking.gate import Check, Decision
from fairtune.tracking.runs import existing_run, open_run
from fairtune.training import Split

SECTIONS = ["answer", "groups", "gap", "mask-section", "search", "data", "excluded", "reproduce"]


def page_of(path: Path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def artifacts(run_id: str, folder: str | None = None) -> set[str]:
    return {file.path for file in MlflowClient().list_artifacts(run_id, folder)}


def note(run_id: str) -> str:
    return str(MlflowClient().get_run(run_id).data.tags["mlflow.note.content"])


def test_a_real_search_has_its_report(real_search: str, written: Path) -> None:
    path = written
    _, page = page_of(path)
    assert path.name == "report.html"
    assert path.stat().st_size < 5_000_000
    assert page.problems == []
    sections = [attrs["id"] for attrs in page.all("section")]
    assert sections == SECTIONS
    comparison = pd.read_csv(MlflowClient().download_artifacts(real_search, "comparison.csv"))
    first = comparison.iloc[0]
    for key in ("test/worst_group_auroc", "test/auroc", "test/fairness_generalization_gap"):
        assert f"{first[key]:.3f}" in page.text.split("Groups on test")[0]
    assert "tiny version 1" in page.text
    assert "[tiny version 1](#/models/tiny/versions/1)" in note(real_search)


def test_figures_are_artifacts_in_both_formats(real_search: str, written: Path) -> None:
    _, page = page_of(written)
    files = artifacts(real_search, "figures")
    names = {
        "roc-ward",
        "calibration-ward",
        "rates-ward",
        "generalisation-gap",
        "mask",
        "search-history",
        "search-curves",
        "pareto",
        "bits",
        "parallel",
    }
    assert {f"figures/{n}.{e}" for n in names for e in ("png", "svg")} <= files
    assert len(page.all("figure")) == len(names)
    assert "report.html" in artifacts(real_search)


def test_the_page_needs_nothing_beside_it(written: Path) -> None:
    text, page = page_of(written)
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("img")
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"https?://|//[a-z]", without_namespaces)
    assert "@import" not in text
    assert all(not url.startswith("http") for url in re.findall(r"url\(([^)]*)\)", text))


def test_ids_are_unique_and_links_lead_somewhere(written: Path) -> None:
    text, page = page_of(written)
    assert len(page.ids) == len(set(page.ids))
    targets = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert targets
    assert set(targets) <= set(page.ids)
    named = [i for attrs in page.all("section") for i in str(attrs["aria-labelledby"]).split()]
    assert set(named) <= set(page.ids)


def test_every_figure_says_what_it_shows(written: Path) -> None:
    text, page = page_of(written)
    pictures = [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(pictures) == len(page.all("figure"))
    for attrs in pictures:
        for name in str(attrs["aria-labelledby"]).split():
            assert name in page.ids
    alts = re.findall(r'<desc id="[^"]+-alt">([^<]+)</desc>', text)
    assert len(alts) == len(pictures)
    assert all(re.search(r"\d", alt) for alt in alts)  # an alternative without figures says nothing
    assert all(
        attrs.get("tabindex") == "0" for attrs in page.all("div") if attrs.get("class") == "scroll"
    )


def test_names_from_the_data_are_text(mlflow_store: str, tmp_path: Path) -> None:
    run_id = make_search(tmp_path, HOSTILE)
    _, page = page_of(write_report(run_id, tmp_path / "out", n_resamples=FEW))
    assert page.problems == []
    assert not page.all("script")
    assert not page.all("i")
    assert not page.all("b")
    ((attribute, groups),) = HOSTILE.items()
    for group in groups:
        assert " ".join(group.split()) in page.text
    assert attribute in page.text
    assert "the loss is not finite <b>at all</b>" in page.text
    assert "49" not in re.findall(r"\$x_1\$ and (\S+)", page.text)
    described = note(run_id)
    assert "<script" not in described
    assert "\\_hidden \\| \\`code\\`" in described
    rows = [line for line in described.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {5}


def test_colours_follow_the_readers_scheme(written: Path) -> None:
    text, _ = page_of(written)
    body = text[text.index("<body>") :]
    assert not re.findall(r"(?:fill|stroke|color): ?#[0-9a-fA-F]{3,6}", body)
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", text))
    light, dark = text.split("prefers-color-scheme: dark", 1)
    defined = set(re.findall(r"--([a-z0-9-]+):", light))
    assert used <= defined
    assert defined == set(re.findall(r"--([a-z0-9-]+):", dark.split("}", 1)[0]))


def test_what_was_left_out_is_named(mlflow_store: str, tmp_path: Path) -> None:
    facts = {
        "classes": ["well", "ill"],
        "provenance": {"dropped": {"no birth year": 12}},
        "versions": {"torch": "9.9"},
    }
    run_id = make_search(tmp_path, GROUPS, facts=facts)
    _, page = page_of(write_report(run_id, tmp_path / "out", n_resamples=FEW))
    assert "12 images left out: no birth year." in page.text
    assert "Trial 2 failed: the loss is not finite" in page.text
    assert "1 trial was stopped at a rung" in page.text
    assert "ill (positive)" in page.text
    assert "Versions of the run" in page.text


def test_a_group_without_a_figure_says_so(mlflow_store: str, tmp_path: Path) -> None:
    run_id = make_finetune(tmp_path, {"ward": ["a", "b", "nobody"]}, empty="nobody")
    text, page = page_of(write_report(run_id, tmp_path / "out", n_resamples=FEW))
    row = re.findall(r'<th scope="row">nobody</th>.*?</tr>', text, re.DOTALL)[0]
    assert row.count("not defined") >= 2
    assert "validation, ward nobody: auroc" in page.text
    assert "no row" in page.text
    assert "No curve (one class only): nobody." in page.text


@pytest.mark.parametrize("kind", ["finetune", "trial"])
def test_one_fine_tune_is_judged_on_validation(
    mlflow_store: str, tmp_path: Path, kind: str
) -> None:
    run_id = make_finetune(tmp_path, GROUPS, kind=kind)
    _, page = page_of(write_report(run_id, tmp_path / "out", n_resamples=FEW))
    assert "On the validation split" in page.text
    assert "judged on validation alone" in page.text
    assert "search" not in {attrs["id"] for attrs in page.all("section")}
    assert "--bits 101000" in page.text


def test_what_a_trial_drew_is_part_of_its_command(mlflow_store: str, tmp_path: Path) -> None:
    drawn = {"weight_decay": 0.12, "strategy.step_size": 0.05, "drop_path": 0.2}
    run_id = make_finetune(tmp_path, GROUPS, kind="trial", drawn=drawn)
    _, page = page_of(write_report(run_id, tmp_path / "out", n_resamples=FEW))
    for given in ("-o train.weight_decay=0.12 ", "-o train.strategy_options.step_size=0.05 "):
        assert given in page.text
    assert "(drop_path) of 0.2" in page.text
    run_id = make_finetune(tmp_path, GROUPS, kind="trial", drawn={"drop_path": 0.0})
    _, page = page_of(write_report(run_id, tmp_path / "out", n_resamples=FEW))
    assert "drop_path" not in page.text.split("config.yaml")[1].split("What the figures")[0]


def test_runs_that_a_search_repeated_are_not_counted(mlflow_store: str, tmp_path: Path) -> None:
    run_id, client = make_search(tmp_path, GROUPS), MlflowClient()
    before = read_story(run_id).finals
    experiment = client.get_run(run_id).info.experiment_id
    about = {"mlflow.parentRunId": run_id, "fairtune.kind": "final"}
    for started, status in ((1, "FAILED"), (None, "KILLED")):
        tags = {**about, "fairtune.candidate": "linear probe"}
        tags |= {"fairtune.error": "bad luck"} if status == "FAILED" else {}
        run = client.create_run(experiment, started, tags)
        client.log_param(run.info.run_id, "seed_index", 0)
        client.log_metric(run.info.run_id, "val/auroc", 0.0)
        client.set_terminated(run.info.run_id, status)
    story = read_story(run_id)
    assert {name: len(runs) for name, runs in story.finals.items()} == dict.fromkeys(before, 2)
    assert {r.info.status for runs in story.finals.values() for r in runs} == {"FINISHED"}
    assert not any("linear probe is no candidate" in line for line in excluded(story))


def test_a_folder_that_cannot_be_made_is_one_line(mlflow_store: str, tmp_path: Path) -> None:
    run_id = make_finetune(tmp_path, GROUPS)
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(InputError, match="cannot make the folder .*file.*: Not a directory"):
            write_report(run_id, output, n_resamples=FEW)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_search_that_was_cut_off_shows_its_trials(mlflow_store: str, tmp_path: Path) -> None:
    run_id = make_search(tmp_path, GROUPS, finish=False)
    _, page = page_of(write_report(run_id, tmp_path / "out", n_resamples=FEW))
    assert "no winner yet" in page.text
    assert "the best on validation is trial" in page.text
    assert f"--resume {run_id}" in page.text


def test_more_than_two_classes_have_no_curves(mlflow_store: str, tmp_path: Path) -> None:
    run_id = make_search(tmp_path, GROUPS, n_classes=3)
    _, page = page_of(write_report(run_id, tmp_path / "out", n_resamples=FEW))
    assert "class 2" in page.text
    names = {f for f in artifacts(run_id, "figures") if f.startswith("figures/roc")}
    assert names == set()


def test_the_same_run_gives_the_same_page(real_search: str, written: Path) -> None:
    again = write_report(real_search, written.parent / "again", n_resamples=FEW)
    assert again.read_bytes() == written.read_bytes()


def test_wrong_runs_are_refused_in_one_line(mlflow_store: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run 'nonsense'") as unknown:
        write_report("nonsense", tmp_path)
    assert "\n" not in str(unknown.value)
    with open_run("other", "other", experiment="fairtune") as other:
        pass
    with pytest.raises(InputError, match="of kind 'other'.*search, finetune, trial, final"):
        write_report(other.run_id, tmp_path)
    with open_run("compare", "nothing yet", experiment="fairtune") as compared:
        pass
    with pytest.raises(InputError, match="no result to report yet.*fairtune compare --resume"):
        write_report(compared.run_id, tmp_path)
    with mlflow.start_run() as foreign:
        pass
    with pytest.raises(InputError, match="not one of fairtune's"):
        describe_run(foreign.info.run_id)
    with open_run("search", "empty", experiment="fairtune") as empty:
        pass
    with pytest.raises(InputError, match="no result to report yet: its status is FINISHED"):
        write_report(empty.run_id, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_example_images_and_decisions_of_the_gate_are_shown(
    mlflow_store: str, tmp_path: Path
) -> None:
    run_id = make_search(tmp_path, GROUPS)
    n = 40
    groups = pd.DataFrame({"ward": pd.Categorical(["a", "b"] * (n // 2))})
    labels = np.array([0] * (n - 1) + [1])
    split = Split(
        name="train",
        images=np.random.default_rng(0).integers(0, 255, (n, 20, 20, 3), dtype=np.uint8),
        rows=np.arange(n),
        labels=labels,
        groups=groups,
        patients=np.arange(n),
        references=np.arange(n),
        classes=("well", "ill"),
    )
    log_examples(existing_run(run_id), split, 3, seed=0)
    decision = Decision(
        name="tiny",
        version="2",
        champion="1",
        outcome="refused",
        checks=(Check("auroc", 0.9, 0.8, -0.12, -0.01, "lower bound of auroc", False),),
        split="test",
        n=160,
        n_patients=80,
    )
    document = {"time": "2026-01-02T03:04:05Z", **asdict(decision)}
    existing_run(run_id).json("gate/tiny-v2-1.json", document)
    back = Decision(name="tiny", version="1", champion="2", outcome="rolled_back")
    document = {"time": "2026-01-03T03:04:05Z", **asdict(back)}
    existing_run(run_id).json("gate/tiny-v1-2.json", document)
    _, page = page_of(write_report(run_id, tmp_path / "out", n_resamples=FEW))
    assert page.problems == []
    alts = [str(image["alt"]) for image in page.all("img")]
    assert alts == [
        "3 images of well, ward a",
        "3 images of well, ward b",
        "1 images of ill, ward b",
    ]
    sources = [str(image["src"]) for image in page.all("img")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert len(set(sources)) == 3
    assert "tiny version 2 was refused, compared with version 1 on 160 images" in page.text
    assert "0.900 0.800 -0.120 -0.010 broken" in page.text
    assert "tiny version 1 is the champion again, was version 2." in page.text
