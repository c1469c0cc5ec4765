"""What people see of a search in the tracking UI, in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from browser.conftest import Tracked
from mlflow import MlflowClient

pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'fairtune[dev]'")
Keep = Callable[..., None]


def trials(tracked: Tracked) -> list[str]:
    condition = f"tags.`mlflow.parentRunId` = '{tracked.run_id}' and tags.`fairtune.kind` = 'trial'"
    runs = MlflowClient(tracked.url).search_runs([tracked.experiment], condition)
    return [run.info.run_id for run in runs]


def test_nested_runs_expand(tracked: Tracked, page: Any, keep: Keep) -> None:
    page.goto(f"{tracked.url}/#/experiments/{tracked.experiment}/runs")
    parent = page.get_by_role("gridcell").filter(has_text="search folder ward auto_peft1")
    parent.wait_for()
    assert page.get_by_text("trial-000").count() == 0
    parent.get_by_role("button").first.click()
    for number in range(3):
        page.get_by_text(re.compile(rf"^trial-00{number}")).first.wait_for()
    page.get_by_text("final linear probe seed-0").first.wait_for()
    keep(page, "nested-runs")


def test_a_run_tells_its_story(tracked: Tracked, page: Any, keep: Keep) -> None:
    page.goto(f"{tracked.url}/#/experiments/{tracked.experiment}/runs/{tracked.run_id}")
    page.get_by_text("See also:").first.scroll_into_view_if_needed()
    keep(page, "run-description")
    body = page.inner_text("body")
    assert "Search on folder, judged by ward, for worst group AUROC." in body
    assert page.get_by_role("cell", name="all images").count() >= 1  # the table is a table
    for name, address in (
        ("tiny version 1", "#/models/tiny/versions/1"),
        ("winner's run", f"#/experiments/{tracked.experiment}/runs/"),
        ("report", f"{tracked.run_id}/artifacts/report.html"),
    ):
        link = page.get_by_role("link", name=name, exact=True).first
        assert address in str(link.get_attribute("href"))
    assert "folder (" in body  # the data set is an input of the run
    winner = page.get_by_role("link", name="winner's run", exact=True).first.get_attribute("href")
    page.goto(f"{tracked.url}/{winner}")
    page.get_by_role("heading", name=re.compile("^final ")).wait_for()


def test_the_report_is_shown_as_a_page(tracked: Tracked, page: Any, keep: Keep) -> None:
    page.goto(
        f"{tracked.url}/#/experiments/{tracked.experiment}/runs/{tracked.run_id}"
        "/artifacts/report.html"
    )
    inside = page.frame_locator("iframe").first
    inside.get_by_role("heading", name="The answer").wait_for()
    assert inside.locator("figure svg[role=img]").count() >= 8
    curve = inside.locator("svg path").first.bounding_box()
    assert curve is not None
    assert curve["width"] > 0
    keep(page, "report-artifact")


def test_trials_are_compared_by_mask_and_metric(tracked: Tracked, page: Any, keep: Keep) -> None:
    found = trials(tracked)
    runs, experiments = quote(json.dumps(found)), quote(json.dumps([tracked.experiment]))
    page.goto(f"{tracked.url}/#/compare-runs?runs={runs}&experiments={experiments}")
    page.get_by_text(f"Comparing {len(found)} Runs").wait_for()
    axes = page.locator(".parcoords .axis-title, .plotly .axis-title")
    axes.first.wait_for()
    metrics = page.get_by_role("combobox").nth(1)
    metrics.click()
    page.keyboard.type("val/auroc_gap")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    axes.filter(has_text="val/auroc_gap").first.wait_for()
    titles = axes.all_text_contents()
    assert any(title.startswith("mask.blocks.00") for title in titles)
    keep(page, "compare-parallel-coordinates")
    body = page.inner_text("body")
    for name in ("mask.blocks.00.attn", "mask.blocks.01.mlp", "learning_rate"):
        assert name in body
    assert "val/auroc_by_group/ward.b" in body


def test_the_model_version_shows_its_figures(tracked: Tracked, page: Any, keep: Keep) -> None:
    page.goto(f"{tracked.url}/#/models/tiny/versions/1")
    page.get_by_text("test/worst_group_auroc", exact=True).wait_for()
    body = page.inner_text("body")
    keep(page, "model-version", whole=True)
    tags = MlflowClient(tracked.url).get_model_version("tiny", "1").tags
    for name in ("test/auroc", "test/worst_group_auroc", "test/auroc_gap", "fairtune.mask"):
        assert name in body
        assert tags[name] in body
    assert "champion" in body
