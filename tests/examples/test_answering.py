"""The desktop example's model in a thread of its own: what it tells, and that it can always be stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from answering import Answered, Answering, Chunk, Failed, Ready, Understood

SECONDS = 60
TEXT = "<<48/2=24>>#### 7"


class Listener:
    """An `Answering` and what it told."""

    def __init__(self, bundle: Path | str | None, **options: Any) -> None:
        self.events: SimpleQueue[Any] = SimpleQueue()
        self.answering = Answering(self.events.put, bundle=bundle, threads=1, **options)

    def next(self) -> Any:
        return self.events.get(timeout=SECONDS)

    def until(self, kind: type) -> list[Any]:
        """The events up to the first of a kind."""
        found = [self.next()]
        while not isinstance(found[-1], kind):
            assert not isinstance(found[-1], Failed), found[-1]
            found.append(self.next())
        return found


@pytest.fixture
def listen() -> Iterator[Any]:
    made: list[Listener] = []

    def make(bundle: Path | str | None, **options: Any) -> Listener:
        made.append(Listener(bundle, **options))
        return made[-1]

    yield make
    for one in made:
        one.answering.close()
        assert not one.answering._thread.is_alive()


def test_an_answer_arrives_in_parts(listen: Any, arithmetic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINDMERGER_BUNDLE", str(arithmetic))
    heard = listen(None)
    heard.answering.ask("¿Cuánto es 48 / 2?")  # before the model is there
    assert heard.next() == Ready("tiny", ("en", "es", "sw"))
    *chunks, last = heard.until(Answered)
    assert len(chunks) > 1 and all(isinstance(chunk, Chunk) for chunk in chunks)
    assert "".join(chunk.text for chunk in chunks) == last.result.text == TEXT
    assert last.result.answer == "7"
    heard.answering.ask("hola", encoder_weight=0.0)
    assert heard.until(Answered)[-1].result.soft_prompt_rows == 0


def test_the_gate_speaks_first(listen: Any, gated: Path) -> None:
    heard = listen(gated)
    heard.answering.ask("hola")
    heard.until(Ready)
    first, *_rest, last = heard.until(Answered)
    assert first == Understood("sw", 1.5, 0.5)
    assert next(iter(last.result.language)) == "sw" and last.result.encoder_weight == 1.5


def test_cancel_and_ask_again(listen: Any, endless: Path) -> None:
    heard = listen(endless, context=20000)
    heard.answering.ask("hola")
    heard.until(Chunk)
    began = time.monotonic()
    heard.answering.cancel()
    assert time.monotonic() - began < 1  # it does not wait
    assert heard.until(Answered)[-1].result.finish_reason == "cancelled"
    heard.answering.ask("hola", max_new_tokens=3)
    assert heard.until(Answered)[-1].result.finish_reason == "length"


def test_cancel_what_has_not_begun(listen: Any, endless: Path) -> None:
    heard = listen(endless, context=20000)
    for _ in range(3):
        heard.answering.ask("hola")
        heard.answering.cancel()
        last = heard.until(Answered)[-1]
        assert last.result.finish_reason == "cancelled" and len(last.result.token_ids) < 50


def test_what_fails_is_told_and_the_next_question_is_answered(listen: Any, arithmetic: Path) -> None:
    heard = listen(arithmetic)
    heard.until(Ready)
    for question, options in (("", {}), ("hola", {"encoder_weight": 3.0}), ("so long " * 500, {})):
        heard.answering.ask(question, **options)
        failed = heard.next()
        assert isinstance(failed, Failed) and failed.message and not failed.fatal
    heard.answering.ask("hola")
    assert heard.until(Answered)[-1].result.answer == "7"


def test_no_bundle(listen: Any, tmp_path: Path) -> None:
    heard = listen(tmp_path / "nowhere")
    failed = heard.next()
    assert isinstance(failed, Failed) and failed.fatal and "nowhere" in failed.message
    heard.answering.ask("hola")
    heard.answering.cancel()
    with pytest.raises(Empty):
        heard.events.get(timeout=0.1)


def test_close_ends_an_answer(endless: Path) -> None:
    heard = Listener(endless, context=20000)
    heard.answering.ask("hola")
    heard.until(Chunk)
    began = time.monotonic()
    heard.answering.close()
    assert time.monotonic() - began < 10 and not heard.answering._thread.is_alive()
