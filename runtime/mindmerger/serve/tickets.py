"""A question on its way through the service, seen from both sides: a thread that answers it, an event loop that waits.

The engine's thread posts events, the request's coroutine reads them; either side may end it. Knows nothing about HTTP and
nothing about how answers are made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import perf_counter

from mindmerger.errors import MindMergerError
from mindmerger.generation import Generation
from mindmerger.options import Options


@dataclass(frozen=True)
class Started:
    """The question has a slot and was merged: what the LLM is given. As in `Generation`; `waited_ms` in the queue."""

    language: dict[str, float] | None
    encoder_weight: float
    llm_weight: float
    soft_prompt_rows: int
    prompt_tokens: int
    waited_ms: float


class Busy(Exception):
    """The engine takes no further question now: its queue is full (`stopping` False), or the service is ending."""

    def __init__(self, retry_after: int, stopping: bool = False) -> None:
        super().__init__("busy")
        self.retry_after = retry_after
        self.stopping = stopping


Event = Started | str | Generation | MindMergerError | Busy


class Ticket:
    """One question: `events` for the request's coroutine, `post` for the engine's thread, `cancel` for both."""

    def __init__(self, question: str, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.question = question
        self.options = options
        self.asked = perf_counter()
        self.waited_ms = 0.0
        self.cancelled = False
        self._loop = loop
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def post(self, event: Event) -> None:
        """Hand an event to the coroutine that waits, from any thread. After its loop has ended, to nobody."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event:
        """The next event; after a `Generation` or an error there is none."""
        return await self._events.get()

    async def events(self) -> AsyncIterator[Started | str | Generation]:
        """Events up to the `Generation`; raises the error where there is one. Whoever stops reading calls `cancel`."""
        while True:
            event = await self.next()
            if isinstance(event, (MindMergerError, Busy)):
                raise event
            yield event
            if isinstance(event, Generation):
                return

    def cancel(self) -> None:
        """Nobody waits any more: the engine takes it out of the queue or the slot with its next step. Harmless twice."""
        self.cancelled = True
