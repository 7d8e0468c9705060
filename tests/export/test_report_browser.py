"""The report in a real browser: `make test-browser` runs these. What is looked at is the published default's own report.

They need Chromium and the packages playwright and axe-playwright-python, which the other tests do not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mindmerger_export.report_html import page as report_page

if not os.environ.get("MINDMERGER_BROWSER"):
    pytest.skip("make test-browser opens the report in Chromium", allow_module_level=True)
pytest.importorskip("playwright.sync_api")

REPORT = Path(__file__).resolve().parents[2] / "models" / "mindmerger" / "bundle" / "report.json"
# Texts of a chart that lie on a bar of their own row, with what they say.
COVERED = """() => [...document.querySelectorAll("svg")].flatMap(svg => {
    const bars = [...svg.querySelectorAll("rect")].map(bar => bar.getBoundingClientRect())
    return [...svg.querySelectorAll("text")].filter(text => {
        const box = text.getBoundingClientRect()
        return bars.some(bar => bar.width && bar.top < box.bottom - 4 && bar.bottom > box.top + 4
            && bar.left < box.right && bar.right > box.left)
    }).map(text => text.textContent)
})"""


def large() -> dict[str, Any]:
    """The default's report with figures as long as they come: times of a large LLM, long names."""
    document: dict[str, Any] = json.loads(REPORT.read_text(encoding="utf-8"))
    for one in (document["measured"]["merged"], document["measured"]["llm_alone"]):
        one.update({key: 123.4 * value for key, value in one.items()})
    document["bundle"]["llm"]["name"] = "A-Rather-Long-Name-Of-An-LLM-7B-Instruct-v0.3"
    return document


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 1000])
def test_it_reads_on_a_phone_and_a_desk(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(report_page(large()), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    page = context.new_page()
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    page.on("console", lambda one: problems.append(one.text))
    page.goto(path.as_uri())
    try:
        assert asked == [path.as_uri()] and problems == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(COVERED) == []
        page.click("summary")
        assert page.locator("details table tr").count() == 51
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        found = axe.Axe().run(page).response["violations"]
        assert [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found] == []
        if folder := os.environ.get("MINDMERGER_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"report-{width}-{scheme}.png", full_page=True)
    finally:
        context.close()
