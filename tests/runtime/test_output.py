"""What mm-run shows: forms of an answer, colours, completion."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from mindmerger.cli.explain import bar, explanation
from mindmerger.cli.output import Printer
from mindmerger.generation import Generation, Timings
from mindmerger.manifest import GateInfo, read_manifest
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


def test_steering_without_a_gate(mm_run: Run, arithmetic_bundle: Path) -> None:
    """A language needs a gate; weights do not, and the user is told what they are weighed against."""
    use = ("--bundle", str(arithmetic_bundle))
    result = mm_run("x", "--language", "sw", *use)
    assert result.returncode == 3 and b"method (mindmerger) has no gate: no language" in result.stderr
    result = mm_run("x", "--encoder-weight", "0.5", "--json", *use)
    assert result.returncode == 0 and b"method (mindmerger) has no gate: both weights are 1" in result.stderr
    steering = json.loads(result.stdout)["steering"]
    assert steering == {"language": None, "encoder_weight": 0.5, "llm_weight": 1.0}
    for options in (["--encoder-weight", "2.5"], ["--no-merge", "--llm-weight", "1"], ["--explain", "--answer-only"],
                    ["--explain", "--no-merge"]):  # fmt: skip
        assert mm_run("x", *options).returncode == 2


def test_explain(mm_run: Run, arithmetic_bundle: Path) -> None:
    use = ("--explain", "--llm-weight", "1.5", "--bundle", str(arithmetic_bundle))
    result = mm_run("x", *use)
    assert result.returncode == 0 and result.stderr == b""
    lines = result.stdout.decode().splitlines()
    assert "has no gate" in lines[0]
    assert [line for line in lines if not line.startswith(" ")][1:] == ["LLM alone", "as trained", "as set"]
    shares = [line.split()[-1] for line in lines if line.startswith("  encoder") or line.startswith("  LLM")]
    assert shares == ["0.00", "1.00", "1.00", "1.00", "1.00", "1.50"]
    assert lines[2].count("█") == 0 and lines[-2].count("█") == 15 and lines[-1] == "  Answer: 7"
    document = json.loads(mm_run("x", "--json", *use).stdout)["explain"]
    assert document["as_set"]["llm_weight"] == 1.5 and document["llm_alone"]["encoder_weight"] == 0
    assert {answer["answer"] for answer in document.values()} == {"7"}


def test_explanation_of_a_gate(arithmetic_bundle: Path) -> None:
    """What a gate says, as bars."""
    timings = Timings(0, 0, 0, 0, 0, None, None)
    common = Generation("q", "#### 7", "7", "stop", (1,), 2, 3, 4, 0, timings)
    weighed = dataclasses.replace(
        common, language={"sw": 0.75, "en": 0.2, "unknown": 0.05}, encoder_weight=1.5, llm_weight=0.5
    )
    alone = dataclasses.replace(common, encoder_weight=0.0, llm_weight=1.0, answer=None)
    gate = GateInfo(("en", "sw"))
    manifest = dataclasses.replace(read_manifest(arithmetic_bundle), method="st-merge", gate=gate)
    text = explanation({"llm alone": alone, "as trained": weighed}, manifest)
    assert text.splitlines() == [
        "language",
        "  sw         ███████████████·····  75.0%",
        "  en         ████················  20.0%",
        "  unknown    █···················   5.0%",
        "LLM alone",
        "  encoder    ····················   0.00",
        "  LLM        ██████████··········   1.00",
        "  Answer: none",
        "as trained",
        "  encoder    ███████████████·····   1.50",
        "  LLM        █████···············   0.50",
        "  Answer: 7",
    ]


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


def test_ends_of_an_answer(mm_run: Run, arithmetic_bundle: Path, tmp_path: Path) -> None:
    use = ("x", "--bundle", str(arithmetic_bundle))
    assert mm_run(*use, "--stop", "zebra", "--stop", "####").stdout == b"<<48/2=24>>\nAnswer: 24\n"
    result = mm_run(*use, "--timeout", "0.000001", "--json")
    assert json.loads(result.stdout)["finish_reason"] == "timeout"
    assert b"stopped by --timeout after" in result.stderr and result.returncode == 0
    grammar = tmp_path / "seven.gbnf"
    grammar.write_text('root ::= "7"\n', encoding="utf-8")
    assert mm_run(*use, "--grammar", str(grammar)).stdout == b"7\nAnswer: 7\n"
    grammar.write_bytes(b"root ::= \xff")
    for path, word in ((grammar, b"not a grammar"), (tmp_path / "none", b"cannot be read")):
        result = mm_run(*use, "--grammar", str(path))
        assert result.returncode == 3 and word in result.stderr
