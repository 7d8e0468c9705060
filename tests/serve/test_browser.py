"""The page in a real browser: `make test-browser` runs these, and leaves screenshots in $MINDMERGER_SCREENSHOTS if that is set.

They need Chromium and the packages playwright and axe-playwright-python, which the other tests do not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import SECONDS, Served, serving

if not os.environ.get("MINDMERGER_BROWSER"):
    pytest.skip("make test-browser runs the page in Chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api")

QUESTIONS = {
    "es": ("¿Cuánto es 48 / 2?", "ltr"),
    "ar": ("كم يساوي 48 / 2؟", "rtl"),
    "bn": ("48 / 2 কত?", "ltr"),
}


class Tab:
    """A page of the service, which notes what it asks for and what goes wrong."""

    def __init__(self, browser: Any, served: Served, **context: Any) -> None:
        self.context = browser.new_context(locale="en-US", **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(SECONDS * 1000)
        self.requests: list[Any] = []
        self.problems: list[str] = []
        self.page.on("request", lambda one: self.requests.append(one))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda one: self.problems.append(one.text) if one.type == "error" else None)
        self.served = served
        self.page.goto(served.url)
        sync_api.expect(self.page.locator("#model")).to_contain_text("tiny")

    def ask(self, question: str) -> None:
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")

    def expect(self, selector: str) -> Any:
        return sync_api.expect(self.page.locator(selector))

    def asked(self) -> list[Any]:
        return [one.post_data_json for one in self.requests if one.url.endswith("/v1/chat/completions")]

    def picture(self, name: str) -> None:
        if folder := os.environ.get("MINDMERGER_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)

    def close(self) -> None:
        self.context.close()
        assert not self.problems
        assert all(one.url.startswith(self.served.url) for one in self.requests)


@pytest.fixture
def tab(browser: Any, served: Served) -> Iterator[Tab]:
    found = Tab(browser, served)
    yield found
    found.close()


@pytest.mark.parametrize("language", QUESTIONS)
def test_ask(tab: Tab, language: str) -> None:
    question, direction = QUESTIONS[language]
    tab.ask(question)
    tab.expect("#number").to_have_text("7")
    tab.expect("#asked").to_have_text(question)
    tab.expect(".step").to_have_text("48/2 = 24")
    tab.expect("#status").to_contain_text("7")
    tab.expect("#figures").to_contain_text("12 tokens")
    assert tab.page.evaluate("getComputedStyle(document.querySelector('#asked')).direction") == direction
    assert tab.page.evaluate("getComputedStyle(document.querySelector('#question')).direction") == direction
    tab.picture(f"ask-{language}")


def test_drag_a_weight(tab: Tab) -> None:
    tab.ask("hola")
    tab.expect("#number").to_have_text("7")
    box = tab.page.locator("#encoder").bounding_box()
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2, steps=5)
    tab.page.mouse.up()
    tab.expect("#encoder-value").to_contain_text("yours")
    tab.expect("#status").to_contain_text("7")
    tab.page.wait_for_timeout(600)
    weights = [body["mindmerger"].get("encoder_weight") for body in tab.asked()]
    assert weights[0] is None and 0.3 <= weights[-1] <= 0.7 and len(weights) < 6
    tab.page.focus("#llm")
    tab.page.keyboard.press("Home")  # to 0: the question is left out of the prompt
    tab.expect("#llm-value").to_contain_text("left out")
    tab.picture("weights")
    tab.page.click("#release")
    tab.expect("#llm-value").to_contain_text("own")
    tab.expect("#number").to_have_text("7")
    assert tab.asked()[-1]["mindmerger"] == {}


def test_cancel(browser: Any, endless: Path) -> None:
    with serving(endless, "--context", "20000") as served:
        tab = Tab(browser, served)
        for stop in (lambda: tab.page.click("#stop"), lambda: tab.page.keyboard.press("Escape")):
            # the bundle's own limit is beyond the context: an answer of many seconds
            tab.ask("hola")
            tab.expect("#text").to_contain_text(re.compile("(ab\\s+){10}"))
            stop()
            tab.expect("#status").to_have_text("Stopped.")
            served.until(lambda state: state["busy"] == 0)
        tab.close()


def test_reload(tab: Tab) -> None:
    tab.ask("¿Primero?")
    tab.expect("#number").to_have_text("7")
    tab.ask("<b>Segundo</b>")
    tab.expect("#history li").to_have_count(2)
    tab.page.reload()
    tab.expect("#history li").to_have_count(2)
    before = len(tab.asked())
    tab.page.click("#history li:first-child .open")
    tab.expect("#asked").to_have_text("<b>Segundo</b>")
    tab.expect("#number").to_have_text("7")
    assert len(tab.asked()) == before
    tab.page.click("#forget")
    tab.expect("#history li").to_have_count(0)
    assert tab.page.evaluate("JSON.parse(localStorage.getItem('mindmerger.history'))") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_sizes_colours_and_accessibility(browser: Any, served: Served, scheme: str, width: int) -> None:
    tab = Tab(browser, served, color_scheme=scheme, viewport={"width": width, "height": 800})
    tab.ask(QUESTIONS["ar"][0])
    tab.expect("#number").to_have_text("7")
    assert tab.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(ground.partition("(")[2].split(",")[0])
    assert (red < 64) == (scheme == "dark"), ground
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # axe is put into the page, whose policy allows no foreign script: Chromium is told so for this
    found = axe.run(tab.page).response["violations"]
    assert not [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    tab.picture(f"{scheme}-{width}")
    tab.close()


@pytest.mark.parametrize("language", ["en", "es", "fr", "hi", "sw"])
def test_its_own_language(tab: Tab, language: str) -> None:
    tab.page.select_option("#interface", language)
    assert tab.page.evaluate("document.documentElement.lang") == language
    words = tab.page.locator("[data-word]").all_text_contents()
    assert all(word.strip() for word in words)
    tab.page.reload()
    assert tab.page.evaluate("document.querySelector('#interface').value") == language
    tab.picture(f"language-{language}")


def test_keyboard_alone(tab: Tab) -> None:
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.className") == "skip"
    tab.page.keyboard.press("Enter")
    tab.page.keyboard.type("hola")
    tab.page.keyboard.press("Shift+Enter")
    tab.page.keyboard.type("amigo")
    tab.page.keyboard.press("Enter")
    tab.expect("#number").to_have_text("7")
    assert tab.asked()[-1]["messages"][0]["content"] == "hola\namigo"


def test_an_api_key(browser: Any, arithmetic: Path) -> None:
    with serving(arithmetic, MINDMERGER_API_KEY="k" * 24) as served:
        context = browser.new_context(locale="es-ES")
        page = context.new_page()
        page.goto(served.url)
        sync_api.expect(page.locator("#error")).to_contain_text("clave API")
        page.fill("#key", "k" * 24)
        page.press("#key", "Tab")
        sync_api.expect(page.locator("#model")).to_contain_text("tiny")
        page.fill("#question", "hola")
        page.press("#question", "Enter")
        sync_api.expect(page.locator("#number")).to_have_text("7")
        assert "k" * 24 not in page.evaluate("JSON.stringify(localStorage)")
        context.close()


def test_the_service_goes_away(browser: Any, arithmetic: Path) -> None:
    with serving(arithmetic) as served:
        tab = Tab(browser, served)
        served.process.kill()
        served.process.wait()
        tab.ask("hola")
        tab.expect("#error").to_contain_text("mm-serve")
        assert tab.page.is_enabled("#ask") and not tab.page.is_enabled("#stop")
        tab.context.close()
