"""docs/embedding.md: its Python runs, its commands are those of the Makefile, and what it names is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PROGRAMS = [text for kind, text in BLOCKS if kind == "python"]
PRINTED = ["<<48/2=24>>#### 7", "cancelled\n"]


@pytest.mark.parametrize(("program", "printed"), list(zip(PROGRAMS, PRINTED, strict=True)))
def test_the_programs_run(program: str, printed: str, arithmetic: Path) -> None:
    environment = {**os.environ, "MINDMERGER_BUNDLE": str(arithmetic), "PYTHONPATH": str(ROOT / "runtime")}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (0, printed), result.stderr


def test_the_commands_are_those_that_make_runs() -> None:
    (block,) = [text for kind, text in BLOCKS if kind == "sh" and "pyinstaller" in text]
    made = (ROOT / "Makefile").read_text(encoding="utf-8").partition("frozen-desktop:\n")[2].partition("\n\n")[0]
    made = made.replace(".venv-frozen/bin/python -m ", "").replace(".venv-frozen/bin/", "")
    made = made.replace(" --quiet --disable-pip-version-check", "")
    assert [line.strip() for line in made.splitlines()][1:] == block.splitlines()[:-1]


def test_what_it_names_is_there() -> None:
    named = set(re.findall(r"\b(?:examples|docs)/[\w./-]+", TEXT))
    assert len(named) >= 8
    assert [name for name in named if not (ROOT / name.rstrip("./")).exists()] == []
    sources = [*(ROOT / "examples" / "desktop").glob("*.py")]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources) <= 300
