"""All tests read sentences in English, whatever the locale of the machine, and may interrupt their children."""

import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

os.environ["MINDMERGER_LANG"] = "en"
# In the background of a shell without job control Ctrl-C is ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, so that a red run is about the change at hand; HYPOTHESIS=explore looks for new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS", "same"))


@pytest.fixture(autouse=True)
def language_of_the_process() -> Iterator[None]:
    """A command that a test calls inside this process names its language for click; later tests must not inherit it."""
    before = os.environ.get("LANGUAGE")
    yield
    if before is None:
        os.environ.pop("LANGUAGE", None)
    else:
        os.environ["LANGUAGE"] = before


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, an installed one, else the one that playwright downloads: for the tests of `make test-browser` alone."""
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()
