"""mm-run on a terminal: a session with history and commands, in which Ctrl-C stops an answer and not the program."""

from __future__ import annotations

import json
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import mindmerger
from mindmerger.cli.interrupt import Reader
from mindmerger.cli.repl import read_entry
from tests import tiny
from tests.runtime.terminal import Terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")

# an LLM that is slow enough to be interrupted
SLOW = (
    "import time, mindmerger.llama as llama\n"
    "step = llama.LLM.step\n"
    "llama.LLM.step = lambda self, token: (time.sleep(0.1), step(self, token))[1]\n"
)


def test_a_session(arithmetic_bundle: Path, own_cache: Path) -> None:
    with Terminal("--bundle", str(arithmetic_bundle)) as terminal:
        terminal.expect(r"tiny: ask in any language.*> ")
        terminal.line("/explain")
        terminal.expect(r"no answer to explain yet.*> ")
        terminal.line("¿Cuánto es 48 / 2?")
        assert "<<48/2=24>>#### 7\nAnswer: 7\n" in terminal.expect(r"Answer: 7\n.*> ")
        terminal.line("/language sw")
        terminal.expect(r"method \(mindmerger\) has no gate: no language.*> ")
        terminal.line("/steer 0.5")
        terminal.expect(r"/steer takes two numbers.*> ")
        terminal.line("/steer 0.5 1.2")
        terminal.expect(r"has no gate: both weights.*encoder_weight 0.5, llm_weight 1.2.*> ")
        terminal.line("/explain")
        terminal.expect(r"LLM alone\n.* 0\.00\n.*as trained\n.* 1\.00\n.*as set\n.* 0\.50\n.* 1\.20\n  Answer: 7\n> ")
        terminal.line("/steer")
        terminal.expect(r"as trained.*> ")
        terminal.line("/nonsense")
        terminal.expect(r"no command /nonsense: /help.*> ")
        terminal.line("/help")
        terminal.expect(r"/language sw .*/quit.*> ")
        terminal.line("")
        terminal.line("x" * 80)
        terminal.expect(r"at most 64.*> ")
        terminal.line("one \\")
        terminal.expect("… ")
        terminal.line("question")
        terminal.expect(r"Answer: 7\n.*> ")
        terminal.line('"""')
        terminal.expect("… ")
        terminal.line("a second\nin lines")
        terminal.line('"""')
        terminal.expect(r"Answer: 7\n.*> ")
        terminal.line("/stats")
        terminal.expect(r"decode .*total    3 answers, 36 tokens.*> ")
        terminal.line("/reset")
        terminal.expect(r"as trained.*> ")
        terminal.line("/stats")
        terminal.expect(r"total    0 answers.*> ")
        # Typed at once, Ctrl-C may come before readline waits for it, and then it does nothing until another key.
        terminal.type("half a question")
        terminal.expect("half a question")
        terminal.type("\x03")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text
        assert "\x1b[1mAnswer: 7\x1b[0m" in terminal.raw
    history = own_cache / "mindmerger" / "history" / "mm-run"
    assert "¿Cuánto es 48 / 2?" in history.read_text(encoding="utf-8")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_the_history_comes_back_and_can_be_refused(arithmetic_bundle: Path, own_cache: Path) -> None:
    history = own_cache / "mindmerger" / "history" / "mm-run"
    history.parent.mkdir(parents=True)
    history.write_text("मोट कति?\n", encoding="utf-8")
    with Terminal("--bundle", str(arithmetic_bundle), "--answer-only", env={"NO_COLOR": "1"}) as terminal:
        terminal.expect("> ")
        terminal.type("\x1b[A")  # the arrow up
        terminal.expect("मोट कति")
        terminal.line("")
        assert terminal.expect(r"7\n.*> ").count("Answer") == 0
        assert "\x1b[1m" not in terminal.raw
        terminal.line("/quit")
        assert terminal.end() == 0
    before = history.read_bytes()
    with Terminal("--bundle", str(arithmetic_bundle), env={"MINDMERGER_NO_HISTORY": "1"}) as terminal:
        terminal.expect("> ")
        terminal.line("a secret")
        terminal.expect(r"Answer.*> ")  # before the prompt, the end of a line is lost with the mode of the terminal
        terminal.type("\x04")
        assert terminal.end() == 0
    assert history.read_bytes() == before


def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path: Path) -> None:
    folder = tiny.bundle(tmp_path / "b", recipe=tiny.Recipe(stop_ids=(), max_new_tokens=150))
    with Terminal("--bundle", str(folder), "--json", prelude=SLOW) as terminal:
        terminal.expect("> ")
        terminal.line("endless")
        terminal.expect("endless\n")
        threading.Event().wait(0.5)  # among the steps
        terminal.type("\x03")
        terminal.expect(r"stopped\n.*> ", timeout=10)
        terminal.line("/stats")
        terminal.expect(r"total    0 answers.*> ")
        terminal.line("/quit")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text


def test_json_to_a_file_keeps_the_prompt_out(arithmetic_bundle: Path, tmp_path: Path) -> None:
    """stdout is data even where somebody types: the prompt goes to stderr."""
    out = tmp_path / "out"
    prelude = f"import os, sys; os.dup2(os.open({str(out)!r}, os.O_WRONLY | os.O_CREAT), 1)"
    with Terminal("--bundle", str(arithmetic_bundle), "--json", prelude=prelude) as terminal:
        terminal.expect("> ")
        terminal.line("¿Cuánto?")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert json.loads(out.read_text())["answer"] == "7"


def test_reader_frees_the_model(random_bundle: Path) -> None:
    """Leaving in the middle cancels at once, also before the answer has begun, and the next question is answered."""
    with mindmerger.load(random_bundle) as model:
        for read in (0, 1):
            stream = model.generate("x", max_new_tokens=200)
            with pytest.raises(KeyboardInterrupt), Reader(model, stream) as chunks:
                for _, _chunk in zip(range(read), chunks, strict=False):
                    pass
                raise KeyboardInterrupt
            stream.close()
        assert model.answer("x", max_new_tokens=3).token_ids
        stream = model.generate("x", max_new_tokens=5)
        with Reader(model, stream) as chunks:
            text = "".join(chunks)
        assert stream.result.text == text and stream.result.finish_reason in ("length", "stop")


def test_reader_passes_errors_on(random_bundle: Path) -> None:
    model = mindmerger.load(random_bundle)
    stream = model.generate("x")
    model.close()
    with pytest.raises(mindmerger.ModelError, match="closed"), Reader(model, stream) as chunks:
        list(chunks)


@pytest.mark.parametrize(
    ("typed", "entry"),
    [
        (["one"], "one"),
        (["one\\", " two\\", "three"], "one\n two\nthree"),
        (['"""', "a", "b", '"""'], "a\nb"),
        (['"""a"""'], "a"),
        (['  """a', "", 'b"""  '], "a\n\nb"),
        (['"quoted" text'], '"quoted" text'),
        (["/steer 1 1"], "/steer 1 1"),
    ],
)
def test_entries(typed: list[str], entry: str) -> None:
    lines = iter(typed)

    def read(_prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    assert read_entry(read) == entry
    assert list(lines) == []
    left: Any = pytest.raises(EOFError)
    with left:
        read_entry(read)
