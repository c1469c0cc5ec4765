"""A run's description: what its page in the tracking UI says before anything is opened."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from fairtune.report.answer import SPLIT_WORDS, answer, words
from fairtune.report.sections import group_tables
from fairtune.report.story import Story, read_story

NOTE = "mlflow.note.content"
GAP = "&emsp;"
"""The tracking UI leaves no space between the columns of a table."""


def describe_run(run_id: str, *, n_resamples: int = 2000) -> str:
    """Write a run's Markdown description (tag ``mlflow.note.content``); returns it.

    Raises
    ------
    InputError
        As `write_report`.
    """
    return describe(read_story(run_id, n_resamples=n_resamples))


def describe(story: Story) -> str:
    """Describe a run from its story."""
    text = description(story)
    story.log.log(tags={NOTE: text})
    return text


def description(story: Story) -> str:
    """Return what was asked, the answer, the groups, and where to go from here, as Markdown."""
    judged_by = (story.config.get("data") or {}).get("attributes") or (
        story.report.groups if story.report else ()
    )
    attributes = ", ".join(judged_by) or "groups"
    parts = [
        f"**{plain(story.kind.capitalize())}** on **{plain(story.dataset)}**, judged by "
        f"{plain(attributes)}, for {plain(words(story.objective.name))}.",
        *(plain(sentence) for sentence in answer(story)),
        *_tables(story),
        _links(story),
    ]
    return "\n\n".join(part for part in parts if part)


def plain(text: object) -> str:
    """Return text that Markdown shows as it is: no markup, no HTML, no line break."""
    words = escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{c}" if c in "\\`*_{}[]#|~" else c for c in words)


def _tables(story: Story) -> list[str]:
    found = []
    for table in group_tables(story):
        title = f"AUROC ({SPLIT_WORDS[story.split]}, 95%)"
        head = f"| {plain(table.attribute)}{GAP} | n{GAP} | {title}{GAP} | to all |"
        rows = [
            f"| {plain(row.group)}{GAP} | {row.n:,}{GAP} | {row.auroc}{GAP} | {row.difference} |"
            for row in table.rows
        ]
        found.append("\n".join([head, "| --- | ---: | --- | ---: |", *rows]))
    return found


def _links(story: Story) -> str:
    """Link to what belongs to the run; addresses are those of the tracking UI itself."""
    runs = f"#/experiments/{story.log.experiment_id}/runs"
    links = [
        f"[{plain(v.name)} version {v.version}](#/models/{quote(v.name, safe='')}/versions/{v.version})"
        for v in story.versions
    ]
    tags = story.run.data.tags
    for title, key in (("winner's run", "fairtune.best_run_id"), ("search", "mlflow.parentRunId")):
        if key in tags:
            links.append(f"[{title}]({runs}/{quote(tags[key], safe='')})")
    links.append(f"[report]({runs}/{story.run.info.run_id}/artifacts/report.html)")
    return "See also: " + " · ".join(links)
