"""Hooks for PyInstaller, which finds them by the entry point `pyinstaller40`: an application that imports mindmerger freezes as
it is, without options of its own. What a frozen application is shipped with: docs/embedding.md.
"""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Where PyInstaller looks for `hook-*.py`."""
    return [str(Path(__file__).parent)]
