"""The report of a run: one HTML file that needs nothing beside it."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fairtune.errors import InputError
from fairtune.progress import progress_bar
from fairtune.report import sections
from fairtune.report.answer import SPLIT_WORDS, answer
from fairtune.report.comparison import comparison_page
from fairtune.report.description import describe
from fairtune.report.environment import environment
from fairtune.report.examples import example_tables
from fairtune.report.gate import decision_tables
from fairtune.report.group_figures import gap_drawing, group_drawings
from fairtune.report.mask_figure import mask_drawing
from fairtune.report.search_figures import search_drawings
from fairtune.report.story import Story, read_story
from fairtune.report.style import COLOURS, Drawing, look, save
from fairtune.tracking.runs import KIND, RunLog, existing_run

logger = logging.getLogger(__name__)

FILE = "report.html"
FIGURES = "figures"
COMPARISON = "compare"


def write_report(run_id: str, folder: str | Path | None = None, *, n_resamples: int = 2000) -> Path:
    """Write the report of a run, log it to the run with its figures, and describe the run.

    Parameters
    ----------
    run_id
        A search, fine-tune, trial, final run, cross-test, comparison or monitoring run; of a search
        that was cut off the trials are shown.
    folder
        Where to write ``report.html`` and ``figures/`` as well; None keeps them in the run alone.
    n_resamples
        Resamples of patients behind every interval.

    Returns
    -------
    Path
        The HTML file: in `folder`, else the run's artifact (a copy where the store is remote).

    Raises
    ------
    InputError
        No such run, a run of another kind, one that has no result yet, or a folder that cannot be made.
    """
    log = existing_run(run_id)
    if log.data().data.tags.get(KIND) == COMPARISON:
        return _write_comparison(log, folder)
    story = read_story(run_id, n_resamples=n_resamples)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(folder) if folder is not None else Path(scratch)
        _make(target / FIGURES)
        drawings = draw(story)
        pictures = [p for drawing in drawings.values() for p in save(drawing, target / FIGURES)]
        (target / FILE).write_text(render(story, drawings), encoding="utf-8")
        for picture in pictures:
            story.log.file(picture, FIGURES)
        story.log.file(target / FILE)
    describe(story)
    logger.info("report of run %s: artifact %s", run_id, FILE)
    if folder is not None:
        return target / FILE
    return Path(story.log.client.download_artifacts(run_id, FILE))


def _write_comparison(log: RunLog, folder: str | Path | None) -> Path:
    """Write the page of a comparison; its figures lie in the run already."""
    text = comparison_page(log)
    if folder is not None:
        _make(Path(folder))
    log.text(FILE, text)
    if folder is None:
        return Path(log.client.download_artifacts(log.run_id, FILE))
    path = Path(folder) / FILE
    path.write_text(text, encoding="utf-8")
    return path


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None


def draw(story: Story) -> dict[str, Drawing]:
    """Draw every figure that the story has, by name, in the order of the page."""
    with look():
        bar = progress_bar(_drawings(story), desc="report", unit="figure", leave=False)
        return {drawing.name: drawing for drawing in bar}


def _drawings(story: Story) -> Iterator[Drawing]:
    yield from group_drawings(story)
    gap = gap_drawing(story)
    if gap is not None:
        yield gap
    mask = mask_drawing(story.picture) if story.picture is not None else None
    if mask is not None:
        yield mask
    yield from search_drawings(story)


def render(story: Story, drawings: dict[str, Drawing]) -> str:
    """Return the page. Names from the data are escaped; no script, no address of another host."""
    own_versions, versions = sections.versions(story)
    return (
        environment()
        .get_template("report.html")
        .render(
            story=story,
            title=story.run.info.run_name or story.run.info.run_id,
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            split=SPLIT_WORDS.get(story.split, ""),
            answer=answer(story),
            tables=sections.group_tables(story),
            class_names=sections.class_names(story),
            comparison=sections.comparison_rows(story),
            folds=sections.fold_rows(story),
            counts=sections.counts(story),
            examples=example_tables(story),
            decisions=decision_tables(story),
            gate="Promotion" if story.watches is None else "Limits",
            undefined=sections.undefined(story),
            excluded=list(sections.excluded(story)),
            command=sections.command(story),
            not_in_command=sections.not_in_command(story),
            origins=sections.origins(story),
            versions=versions,
            own_versions=own_versions,
            trials=sections.trial_rows(story),
            group_figures=[d for d in drawings.values() if d.name.startswith(GROUP_PREFIXES)],
            gap=drawings.get("generalisation-gap"),
            mask=drawings.get("mask"),
            search_figures=[drawings[name] for name in SEARCH_NAMES if name in drawings],
            colours=COLOURS,
        )
    )


GROUP_PREFIXES = ("roc-", "calibration-", "rates-")
SEARCH_NAMES = ("search-history", "search-curves", "pareto", "bits", "parallel")
