"""What an export says while it works: its stages, how far each is, and tables. stderr, never stdout.

On a terminal the current stage is one line that is drawn anew, with a bar where its steps are counted and the seconds that
it took so far; elsewhere it is one line a stage, and another now and then for a long one. Knows nothing about what is done.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic
from types import TracebackType
from typing import TextIO, TypeVar

T = TypeVar("T")

_LINE_SECONDS = 30.0
_DRAW_SECONDS = 0.25
_BAR = 24


class Talk:
    """Says nothing; `Console` says it to people."""

    def __call__(self, stage: str) -> None:
        """The stage that begins now."""

    def at(self, done: int, total: int) -> None:
        """`done` of `total` steps of the stage are over."""

    def lines(self, text: Sequence[str]) -> None:
        """Lines of a table, as they are."""

    def each(self, items: Sequence[T]) -> Iterator[T]:
        """The items, counted as the stage's steps."""
        self.at(0, len(items))
        for number, item in enumerate(items, 1):
            yield item
            self.at(number, len(items))


class Console(Talk):
    """A context manager, because a thread of its own keeps the seconds going."""

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self._name = name
        self._stream = sys.stderr if stream is None else stream
        self._drawn = self._stream.isatty()
        self._stage = ""
        self._steps: tuple[int, int] | None = None
        self._began = self._said = monotonic()
        # Reentrant: Ctrl-C may come while it is held, and what follows talks too.
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_going, name="talk", daemon=True)

    def __enter__(self) -> Console:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with self._lock:
            self._end_stage()

    def __call__(self, stage: str) -> None:
        with self._lock:
            self._end_stage()
            self._stage, self._steps = stage, None
            self._began = self._said = monotonic()
            if not self._drawn:
                self._print(f"{self._name}: {stage}\n")
            else:
                self._draw()

    def at(self, done: int, total: int) -> None:
        self._steps = (done, total)

    def lines(self, text: Sequence[str]) -> None:
        with self._lock:
            self._end_stage()
            self._print("".join(f"{line}\n" for line in text))

    def _end_stage(self) -> None:
        if self._drawn and self._stage:
            self._print(f"\r\x1b[K{self._name}: {self._stage} ({monotonic() - self._began:.1f} s)\n")
        self._stage = ""

    def _keep_going(self) -> None:
        while not self._over.wait(_DRAW_SECONDS):
            with self._lock:
                if not self._stage or self._over.is_set():
                    continue
                if self._drawn:
                    self._draw()
                elif monotonic() - self._said > _LINE_SECONDS:
                    self._said = monotonic()
                    self._print(f"{self._name}: {self._stage}: {self._far()}\n")

    def _draw(self) -> None:
        bar = ""
        if self._steps is not None and self._steps[1]:
            filled = _BAR * self._steps[0] // self._steps[1]
            bar = f" [{'#' * filled}{'-' * (_BAR - filled)}]"
        self._print(f"\r\x1b[K{self._name}: {self._stage}{bar} {self._far()}")

    def _far(self) -> str:
        seconds = f"{monotonic() - self._began:.0f} s"
        return seconds if self._steps is None else f"{self._steps[0]}/{self._steps[1]}, {seconds}"

    def _print(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns of text, the first flush left, the others flush right."""
    everything = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in everything) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in everything
    ]
