"""Progress of something long, on stderr: a bar with the remaining time on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from mindmerger.i18n import _

if TYPE_CHECKING:
    from types import TracebackType

_LINE_SECONDS = 30.0


class Progress:
    """Counts `total` steps. A context manager; with `quiet` it says nothing."""

    def __init__(self, total: int, label: str, *, name: str, quiet: bool = False) -> None:
        self._total = total
        self._label = label
        self._done = 0
        self._name = name
        self._quiet = quiet
        self._began = self._said = monotonic()
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            self._bar = click.progressbar(length=total, label=label, show_eta=True, show_pos=True, file=sys.stderr)

    def at(self, what: str) -> None:
        """What the next steps are about."""
        self._label = what
        if self._bar is not None:
            self._bar.label = what
            self._bar.render_progress()

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(1)
        elif not self._quiet and monotonic() - self._said > _LINE_SECONDS:
            self._said = monotonic()
            print(f"{self._name}: {self._label}: {self._line()}", file=sys.stderr, flush=True)

    def _line(self) -> str:
        left = (monotonic() - self._began) / self._done * (self._total - self._done)
        minutes, seconds = divmod(round(left), 60)
        return _("{done} of {total}, about {minutes} min {seconds} s left").format(
            done=self._done, total=self._total, minutes=minutes, seconds=seconds
        )

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
