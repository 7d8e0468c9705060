"""What the README shows works: every command in it is run here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# As it was when tests were collected: other tests move the cache folder, and pip's cache must stay where it is.
# Nor is what a make around this test tells its children: they would print the folders that they enter.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line]
# This process is `make test`; `make run` has a test of its own below, in a clean copy.
SHELL = [command for command in COMMANDS if not command.startswith("make ")]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    scripts = Path(sys.executable).parent
    folder = tmp_path_factory.mktemp("readme")
    return {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "TMPDIR": str(folder)}


def test_the_readme_begins_with_run_and_test():
    assert COMMANDS[:2] == ["make run", "make test"]
    assert len(SHELL) >= 8


# In order: the exported bundle is asked by the command after it.
@pytest.mark.parametrize("command", SHELL)
def test_shell_commands(command, environment):
    result = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    if "15 + 27" in command and "--no-merge" not in command:
        assert result.stdout.strip().splitlines()[-1].strip() == "Answer: 42"


def test_the_python_example(environment):
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "42" in result.stdout


def test_make_run_in_a_clean_clone(tmp_path):
    """A new virtual environment, nothing but what git tracks: the first thing that anyone does."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if names.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, names.stdout.split("\0")):
        target = tmp_path / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    # Our cache is empty, pip's is not, or llama.cpp would be compiled again.
    pip_cache = subprocess.run(
        [sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True, env=ENVIRONMENT
    ).stdout.strip()
    result = subprocess.run(
        ["make", "run"],
        cwd=tmp_path / "clone",
        env={**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PIP_CACHE_DIR": pip_cache},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1].strip() == "Answer: 42"
    packages = {
        path.name.split("-")[0] for path in (tmp_path / "clone" / ".venv").glob("lib/*/site-packages/*.dist-info")
    }
    assert not packages & {"torch", "transformers", "optimum", "accelerate", "onnx"}
