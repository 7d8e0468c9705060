"""What mm-run shows: forms of an answer, colours, completion."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mindmerger.cli.explain import bar
from mindmerger.cli.output import Printer
from tests.runtime.conftest import Run
from tests.runtime.terminal import Terminal


def test_quiet(mm_run: Run, arithmetic_bundle: Path) -> None:
    result = mm_run("x", "--max-tokens", "2", "--quiet", "--bundle", str(arithmetic_bundle))
    assert (result.stdout, result.stderr) == (b"<<4\nAnswer: 4\n", b"")
    result = mm_run(" ", "--quiet", "--bundle", str(arithmetic_bundle))
    assert result.returncode == 3 and result.stderr.count(b"\n") == 1
    assert mm_run("x", "--quiet", "--verbose").returncode == 2


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_on_a_terminal_only(arithmetic_bundle: Path, env: dict[str, str], coloured: bool) -> None:
    with Terminal("x", "--bundle", str(arithmetic_bundle), env=env) as terminal:
        assert terminal.end() == 0
        assert terminal.text.endswith("Answer: 7\n") and ("\x1b[" in terminal.raw) == coloured
    with Terminal("", env=env) as terminal:
        assert terminal.end() == 3
        assert "the question is empty" in terminal.text and ("\x1b[" in terminal.raw) == coloured


def test_a_stream_is_written_in_whole_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr("mindmerger.cli.output._write", lambda text: written.append(text) if text else None)
    Printer().stream(["שלום क", "्", "षि", " 👩\u200d", "👧 = ", "4"])
    assert "".join(written) == "שלום क्षि 👩\u200d👧 = 4\n" and len(written) > 3
    assert not any(piece.startswith(("्", "ि", "\u200d", "👧")) for piece in written)


def test_steering_needs_a_gate(mm_run: Run, arithmetic_bundle: Path) -> None:
    for option in (["--language", "sw"], ["--encoder-weight", "0.5"], ["--llm-weight", "1"], ["--explain"]):
        result = mm_run("x", *option, "--bundle", str(arithmetic_bundle))
        assert result.returncode == 3 and b"method (mindmerger) has no gate" in result.stderr
    for options in (["--encoder-weight", "2.5"], ["--no-merge", "--llm-weight", "1"], ["--explain", "--answer-only"]):
        assert mm_run("x", *options).returncode == 2


def test_bars() -> None:
    assert bar(0, 2).count("█") == 0 and bar(2, 2).count("█") == 20 and bar(1, 2).count("█") == 10
    assert len(bar(9, 2)) == len(bar(-1, 2)) == 20


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(mm_run: Run, shell: str, tmp_path: Path) -> None:
    result = mm_run("--completion", shell)
    script = result.stdout.decode()
    assert result.returncode == 0 and "_MM_RUN_COMPLETE" in script and f"{shell}_complete" in script
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(script)
        assert subprocess.run([shell, "-n", str(path)], check=False).returncode == 0


def test_completion(mm_run: Run) -> None:
    def complete(words: str, count: int) -> list[str]:
        env = {"_MM_RUN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        return mm_run(env=env).stdout.decode().split()

    assert complete("mm-run --max", 1) == ["plain,--max-tokens"]
    assert "plain,mindmerger" in complete("mm-run --bundle mind", 2)
