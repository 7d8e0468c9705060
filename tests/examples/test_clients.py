"""The examples in other languages ask a real mm-serve."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import Served, serving

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEXT = "<<48/2=24>>#### 7"
# Whatever a shell, JSON or UTF-8 could stumble over.
AWKWARD = "\"¿Cuánto\" es\\n 48 / 2?\n'كم' $HOME `id` \t\\"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(command: list[str], url: str, *question: str, key: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MINDMERGER_URL": url, "MINDMERGER_API_KEY": key or "none", "no_proxy": "127.0.0.1"}
    return subprocess.run(
        [*command, *question], env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False
    )


@pytest.fixture
def curl() -> list[str]:
    tool("curl")
    return [tool("bash"), str(EXAMPLES / "curl" / "ask.sh")]


@pytest.fixture
def node() -> list[str]:
    return [tool("node"), str(EXAMPLES / "javascript" / "ask.mjs")]


@pytest.fixture(scope="module")
def csharp(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    dotnet = tool("dotnet")
    project = tmp_path_factory.mktemp("csharp")
    shutil.copytree(EXAMPLES / "csharp", project, dirs_exist_ok=True)
    out = project / "out"
    built = subprocess.run([dotnet, "build", "--output", str(out)], cwd=project, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout
    return [dotnet, str(out / "Ask.dll")]


@pytest.fixture(params=["curl", "node", "csharp"])
def program(request: pytest.FixtureRequest) -> list[str]:
    found: list[str] = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("question", ["¿Cuánto es 48 / 2?", AWKWARD], ids=["plain", "awkward"])
def test_it_asks_and_prints(program: list[str], served: Served, question: str) -> None:
    result = run(program, served.url, question)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == TEXT
    if "curl" not in program[-1]:
        assert result.stdout.splitlines()[-1] == "Answer: 7"


def test_a_key(program: list[str], arithmetic: Path) -> None:
    with serving(arithmetic, MINDMERGER_API_KEY="k" * 24) as locked:
        assert run(program, locked.url, "hola", key="k" * 24).stdout.startswith(TEXT)
        refused = run(program, locked.url, "hola", key="wrong" * 5)
        assert refused.returncode != 0 and refused.stderr and not refused.stdout.strip()


def test_no_service(program: list[str]) -> None:
    result = run(program, "http://127.0.0.1:9", "hola")
    assert result.returncode != 0 and result.stderr.strip()
    assert "\n    at " not in result.stderr  # no stack trace


def test_lines_arrive_as_lines_and_while_they_are_written(program: list[str], endless: Path) -> None:
    """The answer takes a long time: it is read before its end, and whoever stops reading frees the slot."""
    with serving(endless, "--context", "20000") as service:
        process = subprocess.Popen(
            [*program, "hola"], env={**os.environ, "MINDMERGER_URL": service.url}, stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            assert [process.stdout.readline().strip() for _ in range(3)][1:] == [b"ab", b"ab"]
            assert process.poll() is None and service.health()["busy"] == 1
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.close()
            process.wait(60)
        service.until(lambda state: state["busy"] == 0)
