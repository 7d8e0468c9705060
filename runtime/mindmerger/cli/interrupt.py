"""Read an answer so that Ctrl-C stops it at once, also while the question is being read (prefill).

Python runs signal handlers between two bytecodes of the main thread. If that thread is inside llama.cpp, Ctrl-C waits
until it comes back, which may take seconds. So another thread generates, and the main one waits where it can be
interrupted, and cancels.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mindmerger.generation import GenerationStream
    from mindmerger.model import MergedModel

_POLL_SECONDS = 0.05


class Reader:
    """The chunks of a stream. A context manager: afterwards the answer has been cancelled, unless it had ended."""

    def __init__(self, model: MergedModel, stream: GenerationStream) -> None:
        self._model = model
        self._stream = stream
        self._queue: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._generate, name="mindmerger-answer", daemon=True)

    def __iter__(self) -> Iterator[str]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _generate(self) -> None:
        try:
            for chunk in self._stream:
                self._queue.put(chunk)
                if self._stopped:
                    break
            self._stream.close()
        except BaseException as error:
            self._queue.put(error)
        finally:
            self._queue.put(None)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopped = kind is not None
        while self._thread.is_alive():
            if self._stopped:
                # again, because a cancel before the answer has its turn is not for this answer
                self._model.cancel()
            self._thread.join(_POLL_SECONDS)
