"""The desktop example on an X server: as a program of Python, and frozen, as `make test-frozen` runs it.

$MINDMERGER_FROZEN is the folder of the frozen application, its bundle beside it; docs/embedding.md says how it is made.
Screenshots are left in $MINDMERGER_SCREENSHOTS if that is set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES
from tests.examples.screen import screen

ROOT = EXAMPLES.parent
FROZEN = Path(folder).resolve() if (folder := os.environ.get("MINDMERGER_FROZEN")) else None
frozen = pytest.mark.skipif(not FROZEN, reason="make test-frozen freezes the desktop example and runs this")
# The greatest that the program may be without its weights; it has about 275 MB on Linux, a third of them Qt's.
MOST_BYTES = 320_000_000


def test_a_window_on_a_screen(arithmetic: Path) -> None:
    pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
    environment = {**os.environ, "MINDMERGER_BUNDLE": str(arithmetic), "PYTHONPATH": str(ROOT / "runtime")}
    environment.pop("QT_QPA_PLATFORM", None)
    probe = [sys.executable, "-c", "from PySide6.QtWidgets import QApplication; QApplication([])"]
    with screen([sys.executable, str(EXAMPLES / "desktop" / "desktop.py")], environment) as shown:
        if subprocess.run(probe, env={**environment, "DISPLAY": shown.display}, check=False).returncode:
            pytest.skip("Qt lacks a library for X (libxcb-cursor0 and its like)")
        shown.until("MindMerger")
        shown.type("type", "48 / 2?")
        shown.type("key", "Return")
        shown.until("7 – MindMerger")
        shown.picture("window")


@frozen
def test_what_was_frozen() -> None:
    assert FROZEN is not None
    files = [path for path in FROZEN.rglob("*") if path.is_file() and not path.is_relative_to(FROZEN / "bundle")]
    names = {path.name for path in files}
    assert not names & {"llm.gguf", "merger.data", "merger.onnx", "adapter.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"}
    assert not [name for name in names if name.startswith(("libtorch", "libmtmd"))]
    assert not {"torch", "transformers", "jinja2"} & {path.name for path in (FROZEN / "_internal").iterdir()}
    assert {path.parent.parent.name for path in files if path.name == "mindmerger.mo"} == {"es", "fr", "hi", "sw"}
    for licence in ("onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt", "numpy-*/licenses/LICENSE.txt"):
        assert list((FROZEN / "_internal").glob(licence)), licence
    assert sum(path.stat().st_size for path in files if not path.is_symlink()) < MOST_BYTES


@frozen
def test_the_frozen_application_answers_elsewhere(tmp_path: Path) -> None:
    """In another folder, with nothing of this environment, and without a network where the system allows to take it away."""
    assert FROZEN is not None
    moved = tmp_path / "an application"
    shutil.copytree(FROZEN, moved, symlinks=True)
    cut = ["unshare", "--map-root-user", "--net"]
    allowed = (
        shutil.which("unshare") and not subprocess.run([*cut, "true"], capture_output=True, check=False).returncode
    )
    (tmp_path / "home").mkdir()
    environment = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    command = [*(cut if allowed else []), str(moved / "desktop"), "كم يساوي 15 + 27؟"]
    with screen(command, environment) as shown:
        shown.until("42 – MindMerger")
        shown.picture("frozen")
        shown.type("key", "ctrl+a")
        shown.type("type", "15 + 28?")
        shown.type("key", "Return")
        shown.until("43 – MindMerger")
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    assert not kept  # nothing was prepared: the bundle is whole
