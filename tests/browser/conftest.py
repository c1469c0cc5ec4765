"""A real browser on a real tracking server with a real search; skipped where there is no chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from search.samples import tiny_config, write_data
from search.servers import tracking_server
from stores import mlflow_at

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install 'fairtune[dev]'"
)
FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
]
ROOT = Path(__file__).parents[2]


class Tracked(NamedTuple):
    """A finished search and where the tracking UI shows it."""

    url: str
    run_id: str
    experiment: str
    report: Path


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracked]:
    """Run a tiny search against a tracking server; its winner is registered as `tiny`."""
    from fairtune.interrupt import StopRequest
    from fairtune.report import write_report
    from fairtune.search.search import search
    from fairtune.tracking.runs import existing_run

    folder = tmp_path_factory.mktemp("browser")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        pytest.MonkeyPatch.context() as patch,
        tracking_server(f"sqlite:///{folder}/mlflow.db", folder) as url,
        mlflow_at(url),
    ):
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        config = tiny_config(
            register={"name": "tiny"},
            train__epochs=1,
            search__trials=3,
            search__final={"candidates": 1, "seeds": 1, "resamples": 0},
        )
        outcome = search(config, str(write_data(folder)), StopRequest())
        path = write_report(outcome.run_id, folder / "report", n_resamples=40)
        experiment = existing_run(outcome.run_id).experiment_id
        yield Tracked(url, outcome.run_id, experiment, path)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start Debian's chromium, headless."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        yield running.chromium.launch(executable_path=program, args=FLAGS)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """Open a window of its own that counts what goes wrong in it."""
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Callable[[Any, str], None]:
    """Save a screenshot, for people to look at, where FAIRTUNE_SCREENSHOTS says or in screenshots/."""
    folder = Path(os.environ.get("FAIRTUNE_SCREENSHOTS", ROOT / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)

    def save(page: Any, name: str, *, whole: bool = False) -> None:
        page.screenshot(path=folder / f"{name}.png", full_page=whole)

    return save
