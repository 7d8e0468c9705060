"""A model in a thread of its own, for programs with a window. Knows nothing about windows.

Questions go in by `ask`; what happens comes out of `tell`, which is called in the model's thread: bring it over to the
window's own (Qt: emit a signal; Tk: put it into a queue that `after` reads).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import mindmerger


@dataclass(frozen=True)
class Ready:
    """The model is loaded and its first question may come."""

    name: str
    languages: tuple[str, ...]


@dataclass(frozen=True)
class Understood:
    """What a bundle's gate says of the question, before the first word of the answer."""

    language: str | None
    encoder_weight: float
    llm_weight: float


@dataclass(frozen=True)
class Chunk:
    text: str  # the next part of the reasoning


@dataclass(frozen=True)
class Answered:
    result: mindmerger.Generation  # of a cancelled answer too


@dataclass(frozen=True)
class Failed:
    """This question, or (`fatal`) any, cannot be answered; the message says why and what to do."""

    message: str
    fatal: bool


Event = Ready | Understood | Chunk | Answered | Failed


class Answering:
    """Loads the default bundle and answers, one question after the other. `options` are those of `mindmerger.load`."""

    def __init__(self, tell: Callable[[Event], object], **options: Any) -> None:
        self._tell = tell
        self._options = options
        self._questions: SimpleQueue[tuple[str, dict[str, Any], threading.Event] | None] = SimpleQueue()
        self._stop = threading.Event()
        self._model: mindmerger.MergedModel | None = None
        self._thread = threading.Thread(target=self._run, name="model")
        self._thread.start()

    def ask(self, question: str, **options: Any) -> None:
        """Put a question; returns at once. `options` are those of `MergedModel.generate`."""
        self._stop = threading.Event()  # one for each question: to cancel it is not to cancel the next
        self._questions.put((question, options, self._stop))

    def cancel(self) -> None:
        """End the last question's answer; returns at once, and `Answered` follows."""
        self._stop.set()
        if self._model is not None:
            self._model.cancel()  # also within prefill, where no chunk comes

    def close(self) -> None:
        """End everything and wait for it. A load that has begun is waited for."""
        self.cancel()
        self._questions.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            model = mindmerger.load(**self._options)
        except Exception as error:  # whatever it is, nobody else is there to tell it
            self._tell(Failed(str(error), fatal=True))
            return
        with model:
            self._model = model
            self._tell(Ready(model.manifest.name, model.manifest.languages))
            while (asked := self._questions.get()) is not None:
                try:
                    self._answer(model, *asked)
                except Exception as error:
                    self._tell(Failed(str(error), fatal=False))

    def _answer(
        self, model: mindmerger.MergedModel, question: str, options: dict[str, Any], stop: threading.Event
    ) -> None:
        if model.manifest.gate is not None:
            heard = model.explain(question)
            likeliest = next(iter(heard.language), None) if heard.language else None
            self._tell(Understood(likeliest, heard.encoder_weight, heard.llm_weight))
        with model.generate(question, **options) as stream:
            for text in stream:
                self._tell(Chunk(text))
                if stop.is_set():  # cancelled before the model had begun
                    break
        self._tell(Answered(stream.result))
