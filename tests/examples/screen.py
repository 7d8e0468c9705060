"""An X server without a screen (Xvfb), a program on it, and what its window is called."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SECONDS = 120
TOOLS = ("Xvfb", "xdotool")


class Screen:
    """Xvfb with one program."""

    def __init__(self, display: str, program: subprocess.Popen[bytes]) -> None:
        self.display = display
        self.program = program

    def _tool(self, *command: str) -> str:
        environment = {**os.environ, "DISPLAY": self.display}
        return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False).stdout

    def titles(self) -> list[str]:
        windows = self._tool("xdotool", "search", "--onlyvisible", "--name", "MindMerger").split()
        return [self._tool("xdotool", "getwindowname", window).strip() for window in windows]

    def until(self, title: str) -> None:
        """Wait for a window with this title."""
        end = time.monotonic() + SECONDS
        while title not in (found := self.titles()):
            assert self.program.poll() is None, "the program ended"
            assert time.monotonic() < end, found
            time.sleep(0.2)

    def type(self, *keys: str) -> None:
        """Type a text, or press keys by their X names (`key`, …)."""
        (window,) = self._tool("xdotool", "search", "--onlyvisible", "--name", "MindMerger").split()
        self._tool("xdotool", "windowfocus", "--sync", window, *keys)

    def picture(self, name: str) -> None:
        """Leave a screenshot in $MINDMERGER_SCREENSHOTS if that is set; needs ImageMagick."""
        folder = os.environ.get("MINDMERGER_SCREENSHOTS")
        if folder and shutil.which("import"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._tool("import", "-window", "root", str(Path(folder) / f"{name}.png"))


@contextlib.contextmanager
def screen(command: list[str], environment: dict[str, str]) -> Iterator[Screen]:
    """Run a program on a screen of its own, and end both."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed")
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-screen", "0", "700x620x24", "-nolisten", "tcp"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        display = f":{server.stdout.readline().decode().strip()}"
        program = subprocess.Popen(command, env={**environment, "DISPLAY": display}, start_new_session=True)
        try:
            yield Screen(display, program)
        finally:
            program.terminate()
            program.wait(SECONDS)
    finally:
        server.terminate()
        server.wait(SECONDS)
