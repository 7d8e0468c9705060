"""Read what a model generates so that Ctrl-C stops it at once, also while a question is being read (prefill).

Python runs signal handlers between two bytecodes of the main thread. If that thread is inside llama.cpp, Ctrl-C waits
until it comes back, which may take seconds. So another thread generates, and the main one waits where it can be
interrupted, and cancels.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from mindmerger.model import MergedModel

T = TypeVar("T")

_POLL_SECONDS = 0.05


class Reader(Generic[T]):
    """The items of a stream. A context manager: afterwards the stream has been cancelled, unless it had ended."""

    def __init__(self, model: MergedModel, stream: Iterable[T]) -> None:
        self._model = model
        self._stream = stream
        self._queue: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._generate, name="mindmerger-answer", daemon=True)

    def __iter__(self) -> Iterator[T]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]

    def _generate(self) -> None:
        try:
            for item in self._stream:
                self._queue.put((item,))
                if self._stopped:
                    break
            if close := getattr(self._stream, "close", None):
                close()
        except BaseException as error:
            self._queue.put(error)
        finally:
            self._queue.put(None)

    def __enter__(self) -> Reader[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopped = kind is not None
        while self._thread.is_alive():
            if self._stopped:
                # again, because a cancel before the answer has its turn is not for this answer
                self._model.cancel()
            self._thread.join(_POLL_SECONDS)
