"""The report in a real browser: axe-core finds nothing, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browser.conftest import Tracked

axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="no axe: pip install 'fairtune[dev]'"
)
LEAST = 95


def score(found: dict[str, Any]) -> float:
    """Share of the rules that apply and are kept, in percent."""
    passed, broken = len(found["passes"]), len(found["violations"])
    return 100 * passed / (passed + broken)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_nothing(
    tracked: Tracked, browser: Any, keep: Callable[..., None], scheme: str, width: int
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    page.goto(tracked.report.as_uri())
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    found = axe.Axe().run(page, options={"resultTypes": ["violations", "passes"]}).response
    keep(page, f"report-{scheme}-{width}", whole=True)
    broken = [(one["id"], one["nodes"][0]["html"][:120]) for one in found["violations"]]
    assert len(found["passes"]) > 15
    assert score(found) >= LEAST, broken
    assert broken == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # only tables scroll
    context.close()


def test_the_keyboard_reaches_what_scrolls(tracked: Tracked, page: Any) -> None:
    page.goto(tracked.report.as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the answer"
    page.keyboard.press("Enter")
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert any(str(name).startswith("Table of the groups") for name in seen)
    assert any(str(name).startswith("Figure: ROC") for name in seen)
