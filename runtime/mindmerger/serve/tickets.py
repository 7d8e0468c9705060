"""A question on its way through the service, seen from both sides: a thread that answers it, an event loop that waits.

The engine's thread posts events, the request's coroutine reads them; either side may end it. Knows nothing about HTTP and
nothing about how answers are made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import perf_counter

from mindmerger.batch import Question
from mindmerger.errors import MindMergerError
from mindmerger.generation import Generation
from mindmerger.merging import Ready


@dataclass(frozen=True)
class Started:
    """The question has a slot and was merged: what the LLM is given. As in `Generation`."""

    language: dict[str, float] | None
    encoder_weight: float
    llm_weight: float
    soft_prompt_rows: int
    prompt_tokens: int


class Busy(Exception):
    """The engine takes no further question now: its queue is full (`stopping` False), or the service is ending."""

    def __init__(self, retry_after: int, stopping: bool = False) -> None:
        super().__init__("busy")
        self.retry_after = retry_after
        self.stopping = stopping


Event = Started | str | Generation | MindMergerError | Busy


class Ticket:
    """One question: `events` for the request's coroutine, the rest but `cancel` for the engine's thread.

    It listens to its question in the slots: what the LLM is given and the text as it comes, where that is wanted.
    """

    def __init__(
        self, number: int, loop: asyncio.AbstractEventLoop, leave: Callable[[Ticket], None], *, listens: bool
    ) -> None:
        self.number = number
        self.question: Question | None = None
        self.waited_ms = 0.0
        self.cancelled = False
        self._came = perf_counter()
        self._loop = loop
        self._leave = leave
        self._listens = listens
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def begins(self) -> None:
        """It has a slot."""
        self.waited_ms = (perf_counter() - self._came) * 1e3

    def merged(self, ready: Ready) -> None:
        """What the LLM is given is known."""
        if self._listens:
            self.post(
                Started(
                    language=ready.language,
                    encoder_weight=ready.encoder_weight,
                    llm_weight=ready.llm_weight,
                    soft_prompt_rows=ready.soft_prompt_rows,
                    prompt_tokens=ready.prompt_tokens,
                )
            )

    def text(self, text: str) -> None:
        """More of the answer."""
        if self._listens:
            self.post(text)

    def post(self, event: Event) -> None:
        """Hand an event to the coroutine that waits, from any thread. After its loop has ended, to nobody."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Started | str | Generation]:
        """Events up to the `Generation`; raises the error where there is one. Whoever stops reading calls `cancel`."""
        while True:
            event = await self._events.get()
            if isinstance(event, (MindMergerError, Busy)):
                raise event
            yield event
            if isinstance(event, Generation):
                return

    def cancel(self) -> None:
        """Nobody waits any more: the engine takes it out of the queue, or of the slot with the next step. Harmless twice."""
        if not self.cancelled:
            self.cancelled = True
            self._leave(self)
