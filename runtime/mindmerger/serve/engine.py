"""The model shared by many requests: a bounded queue, one thread that answers, and an orderly end.

Knows nothing about HTTP. What a question and its options may be is the runtime's matter; here is who is served when.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

from mindmerger.errors import MindMergerError, ModelError
from mindmerger.generation import Explanation, Generation
from mindmerger.model import MergedModel
from mindmerger.options import Options
from mindmerger.serve.tickets import Busy, Ticket

_log = logging.getLogger("mindmerger.serve")
_MAX_RETRY = 120  # seconds
_FIRST_GUESS = 2.0  # seconds an answer takes, before any was measured


@dataclass(frozen=True)
class Limits:
    """What the service gives one request: `queue` questions may wait, an answer has `seconds` from its slot."""

    slots: int
    queue: int
    seconds: float


@dataclass(frozen=True)
class State:
    """What the engine does at this moment."""

    busy: int
    waiting: int
    slots: int
    stopping: bool


class Engine:
    """Questions in, events out, in the order in which they came. `start` before use, `close` after; the model stays open."""

    def __init__(self, model: MergedModel, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.watch: Callable[[Generation, float], None] = lambda _result, _waited_ms: None
        self._waiting: deque[Ticket] = deque()
        self._busy: list[Ticket] = []
        self._change = threading.Condition()
        self._stopping = False
        self._seconds = _FIRST_GUESS
        self._thread = threading.Thread(target=self._run, name="mindmerger-engine", daemon=True)
        self._encoder_turn = asyncio.Semaphore(1)
        self._explaining = 0

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    # ------------------------------------------------------------------------------------ from the event loop

    async def submit(self, question: str, options: Options) -> Ticket:
        """Queue a question. InputError where it cannot be asked, Busy where the queue is full or the service ends."""
        self._check_open()
        seconds = min(options.deadline(), self.limits.seconds)
        ticket = Ticket(question, replace(options, timeout=seconds), asyncio.get_running_loop())
        await asyncio.to_thread(self._check, ticket)
        with self._change:
            self._check_open()
            if len(self._waiting) >= self.limits.queue and len(self._busy) + len(self._waiting) >= self.limits.slots:
                raise Busy(self.retry_after())
            self._waiting.append(ticket)
            self._change.notify()
        return ticket

    async def explain(self, question: str, language: str | None) -> Explanation:
        """What the gate says; one at a time, beside the answers."""
        self._check_open()
        if self._explaining >= max(1, self.limits.queue):
            raise Busy(1)
        self._explaining += 1
        try:
            async with self._encoder_turn:
                return await asyncio.to_thread(self.model.explain, question, language=language)
        finally:
            self._explaining -= 1

    def state(self) -> State:
        """For /health and /metrics."""
        return State(len(self._busy), len(self._waiting), self.limits.slots, self._stopping)

    def retry_after(self) -> int:
        """Seconds after which a slot may be free for one who asks now."""
        rounds = 1 + len(self._waiting) / self.limits.slots
        return min(_MAX_RETRY, max(1, round(rounds * self._seconds)))

    # ------------------------------------------------------------------------------------------- life time

    def stop(self) -> None:
        """Take nothing new, refuse what waits; what runs is finished."""
        with self._change:
            self._stopping = True
            refused, self._waiting = list(self._waiting), deque()
            self._change.notify()
        for ticket in refused:
            ticket.post(Busy(self.retry_after(), stopping=True))

    def stop_now(self) -> None:
        """As `stop`, and what runs is cut where it is."""
        self.stop()
        for ticket in list(self._busy):
            ticket.cancel()
        self.model.cancel()

    def close(self) -> None:
        """End the thread; what still runs is cut."""
        self.stop_now()
        if self._thread.is_alive():
            self._thread.join()

    def _check_open(self) -> None:
        if self._stopping:
            raise Busy(self.retry_after(), stopping=True)

    # ---------------------------------------------------------------------------------- in the engine's thread

    def _check(self, ticket: Ticket) -> None:
        # generate() refuses here what can be refused; nothing runs until its first chunk is asked for
        self.model.generate(ticket.question, **vars(ticket.options)).close()

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._stopping:
                    self._change.wait()
                if not self._waiting:
                    return
                ticket = self._waiting.popleft()
                self._busy.append(ticket)
            try:
                if not ticket.cancelled:
                    self._answer(ticket)
            except MindMergerError as error:
                ticket.post(error)
            except Exception:
                _log.exception("the engine failed with a question")
                ticket.post(ModelError("the service failed with this question: its log on stderr says why"))
            finally:
                self._busy.remove(ticket)

    def _answer(self, ticket: Ticket) -> None:
        ticket.waited_ms = (perf_counter() - ticket.asked) * 1e3
        stream = self.model.generate(ticket.question, **vars(ticket.options))
        for chunk in stream:
            ticket.post(chunk)
            if ticket.cancelled:
                stream.close()
                break
        self._finished(ticket, stream.result)

    def _finished(self, ticket: Ticket, result: Generation) -> None:
        self._seconds += 0.2 * (result.timings.total_ms / 1e3 - self._seconds)
        self.watch(result, ticket.waited_ms)
        ticket.post(result)
