"""mm-run --input as a process: interruptions, full disks and failing questions lose nothing and repeat nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.runtime.conftest import ROOT, Run
from tests.runtime.terminal import Terminal

LINES = 12
# Every answer takes a while to be written, so that there is a middle to be interrupted in.
SLOW = (
    "import time, mindmerger.cli.batch_files as files\n"
    "write = files.AnswerFile.write\n"
    "files.AnswerFile.write = lambda self, *a: (write(self, *a), time.sleep(0.15))[0]\n"
)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "questions.txt"
    path.write_text("".join(f"¿Cuánto es {i} + 27?\n" for i in range(LINES)), encoding="utf-8")
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def arguments(asked: Path, output: Path, bundle: Path, *more: str) -> list[str]:
    return ["--input", str(asked), "--output", str(output), "--bundle", str(bundle), *more]


def test_a_batch_and_again(mm_run: Run, tmp_path: Path, arithmetic_bundle: Path) -> None:
    asked, output = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    rows: list[object] = [
        {"q": "¿Cuánto?", "id": "first"},
        {"q": "x" * 80},
        {"q": " "},
        {"nothing": 1},
        {"q": "মোট কত?"},
    ]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = arguments(asked, output, arithmetic_bundle, "--field", "q")
    result = mm_run(*command)
    assert (result.returncode, result.stdout) == (10, b"")
    assert result.stderr.decode() == f"mm-run: {output}: 2 answered, 3 failed\n"
    by_line = {record.pop("line"): record for record in records(output)}
    assert sorted(by_line) == [1, 2, 3, 4, 5]
    first = by_line[1]
    assert (first["id"], first["question"], first["answer"], first["finish_reason"], first["text"]) == (
        "first", "¿Cuánto?", "7", "stop", "<<48/2=24>>#### 7",
    )  # fmt: skip
    assert by_line[5]["answer"] == "7" and "error" not in by_line[5]
    for line, word in {2: "64", 3: "empty", 4: "'q'"}.items():
        assert word in by_line[line]["error"] and by_line[line]["error_kind"] == "InputError"
        assert "answer" not in by_line[line]
    assert len({record["run"] for record in by_line.values()}) == 1

    before = output.read_bytes()
    again = mm_run(*command, "--quiet")
    assert (again.returncode, again.stderr) == (10, b"") and output.read_bytes() == before
    other = mm_run(*command, "--no-calculator")
    assert other.returncode == 3 and b"other options" in other.stderr and output.read_bytes() == before
    asked.write_text('{"q": "another"}\n', encoding="utf-8")
    other = mm_run(*command)
    assert other.returncode == 3 and b"another input" in other.stderr and output.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_an_interruption_loses_and_repeats_nothing(
    mm_run: Run, tmp_path: Path, arithmetic_bundle: Path, asked: Path, number: int, code: int
) -> None:
    output = tmp_path / "a.jsonl"
    command = arguments(asked, output, arithmetic_bundle)
    process = subprocess.Popen(
        [sys.executable, "-c", f"{SLOW}\nfrom mindmerger.cli.run import main\nmain()", *command],
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
    )  # fmt: skip
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and (not output.exists() or output.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code and b"Traceback" not in stderr
    kept = records(output)
    assert 3 <= len(kept) < LINES
    if code > 0:
        assert f"stopped after {len(kept)} of {LINES}" in stderr.decode()
    result = mm_run(*command)
    assert result.returncode == 0
    assert f"{len(kept)} of {LINES} are answered" in result.stderr.decode()
    everything = records(output)
    assert everything[: len(kept)] == kept
    assert sorted(record["line"] for record in everything) == list(range(1, LINES + 1))
    assert all(record["answer"] == "7" for record in everything)


@pytest.mark.skipif(sys.platform == "win32", reason="limits")
def test_a_full_disk(mm_run: Run, tmp_path: Path, arithmetic_bundle: Path, asked: Path) -> None:
    """The limit on file sizes stops a write in the middle of a line, as a full disk does."""
    output = tmp_path / "a.jsonl"
    command = arguments(asked, output, arithmetic_bundle)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    result = mm_run(*command, prelude=limit)
    stderr = result.stderr.decode()
    assert result.returncode == 5 and "Traceback" not in stderr
    kept = records(output)
    assert f"the {len(kept)} answers in it are kept: make room" in stderr and 3 <= len(kept) < LINES
    assert mm_run(*command).returncode == 0
    everything = records(output)
    assert everything[: len(kept)] == kept
    assert sorted(record["line"] for record in everything) == list(range(1, LINES + 1))


def test_refused_before_anything_is_loaded(mm_run: Run, tmp_path: Path, asked: Path) -> None:
    bundle = tiny.bundle(tmp_path / "b")
    (bundle / "llm.gguf").unlink()  # whoever loads it says so
    output = tmp_path / "a.jsonl"
    for command, code, word in (
        (arguments(tmp_path / "none.txt", output, bundle), 3, "no file"),
        (arguments(asked, asked, bundle), 3, "same file"),
        (arguments(asked, tmp_path / "no" / "a.jsonl", bundle), 3, "cannot be opened"),
        (["--input", str(asked)], 2, "--output"),
        (["--output", str(output)], 2, "--input"),
        (arguments(asked, output, bundle, "--json"), 2, "--json"),
        (arguments(asked, output, bundle, "a question"), 2, "QUESTION"),
        (arguments(asked, output, bundle, "--language", "sw"), 3, "has no gate"),
    ):
        result = mm_run(*command)
        assert result.returncode == code and word in result.stderr.decode(), result.stderr
        assert b"Traceback" not in result.stderr and result.stdout == b""
    assert not output.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_progress_on_a_terminal(tmp_path: Path, arithmetic_bundle: Path, asked: Path) -> None:
    with Terminal(*arguments(asked, tmp_path / "a.jsonl", arithmetic_bundle), prelude=SLOW) as terminal:
        terminal.expect(rf"answering +\[.*{LINES}/{LINES}")
        terminal.expect(f"{LINES} answered, 0 failed")
        assert terminal.end() == 0
        assert "\x1b[?25h" in terminal.raw  # the cursor that the bar hides is shown again


def test_failed_questions_are_asked_again(mm_run: Run, tmp_path: Path, arithmetic_bundle: Path, asked: Path) -> None:
    output = tmp_path / "a.jsonl"
    command = arguments(asked, output, arithmetic_bundle, "--quiet")
    assert mm_run(*command).returncode == 0
    first, *rest = records(output)
    # as a machine that was out of memory for one question would have left it
    failed = {"line": first["line"], "error": "no memory", "error_kind": "ModelError", "run": first["run"]}
    output.write_text("".join(json.dumps(record) + "\n" for record in (failed, *rest)), encoding="utf-8")
    assert mm_run(*command).returncode == 10
    assert mm_run(*command, "--retry-failed").returncode == 0
    assert records(output) == [*rest, first]
