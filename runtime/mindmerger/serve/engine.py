"""The model shared by many requests: a bounded queue, one thread that steps all slots, and an orderly end.

Knows nothing about HTTP. What a question and its options may be, and how slots are stepped, is the runtime's matter; here is
who is served when.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

from mindmerger.batch import Slots
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
    """What the service gives: `slots` questions at once, `queue` that may wait, `seconds` for an answer from its slot."""

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
        self._busy: dict[int, Ticket] = {}
        self._numbers = count()
        self._change = threading.Condition()
        self._stopping = False
        self._seconds = _FIRST_GUESS
        self._thread = threading.Thread(target=self._run, name="mindmerger-engine", daemon=True)
        self._opened = threading.Event()
        self._error: BaseException | None = None
        self._encoder_turn = asyncio.Semaphore(1)
        self._explaining = 0

    def start(self) -> None:
        """Set the slots up and begin to answer; ModelError where there is no memory for them."""
        self._thread.start()
        self._opened.wait()
        if self._error is not None:
            raise self._error

    # ------------------------------------------------------------------------------------ from the event loop

    async def submit(self, question: str, options: Options, *, listens: bool) -> Ticket:
        """Queue a question. InputError where it cannot be asked, Busy where the queue is full or the service ends.

        `listens`: whether the text is wanted as it comes; without, the ticket's only event is the last.
        """
        self._check_open()
        options = replace(options, timeout=min(options.deadline(), self.limits.seconds))
        ticket = Ticket(next(self._numbers), asyncio.get_running_loop(), self._leave, listens=listens)
        ticket.question = await asyncio.to_thread(self.model.question, ticket.number, question, options, ticket)
        with self._change:
            self._check_open()
            if len(self._busy) + len(self._waiting) >= self.limits.slots + self.limits.queue:
                raise Busy(self.retry_after())
            self._waiting.append(ticket)
            self._change.notify()
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        with self._change:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    async def explain(self, question: str, language: str | None) -> Explanation:
        """What the gate says; one at a time, beside the answers."""
        self._check_open()
        if self._explaining > self.limits.queue:
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

    def _run(self) -> None:
        try:
            while True:
                with self.model.slots(self.limits.slots) as slots:
                    self._opened.set()
                    if self._serve(slots):
                        return
        except BaseException as error:
            if self._opened.is_set():
                _log.critical("the engine ended: %s", error)
            self._error = error
            self.stop()
        finally:
            self._opened.set()

    def _serve(self, slots: Slots) -> bool:
        """Answer until the service stops; False when the slots have to be set up anew."""
        while self._take(slots):
            for ticket in list(self._busy.values()):
                if ticket.cancelled:
                    slots.cut(ticket.number)
            try:
                items = slots.advance()
            except Exception as error:
                # What the slots hold is not known: whoever is in one hears of it, and the next have new ones.
                self._fail(error)
                return False
            for item in items:
                ticket = self._busy.pop(item.index)
                if item.generation is None:
                    ticket.post(item.error or ModelError("the answer was lost"))
                else:
                    self._finished(ticket, item.generation)
            if slots.cancelled:
                return True
        return True

    def _take(self, slots: Slots) -> bool:
        """Fill the free slots from the queue; waits where nothing is to be done. False when the service has stopped."""
        with self._change:
            while not (self._waiting or self._busy or self._stopping):
                self._change.wait()
            while self._waiting and len(self._busy) < slots.count:
                ticket = self._waiting.popleft()
                self._busy[ticket.number] = ticket
                ticket.begins()
                assert ticket.question is not None  # submit
                slots.add(ticket.question)
            return bool(self._busy)

    def _finished(self, ticket: Ticket, result: Generation) -> None:
        self._seconds += 0.2 * (result.timings.total_ms / 1e3 - self._seconds)
        if self._stopping and result.finish_reason == "cancelled":
            ticket.post(Busy(self.retry_after(), stopping=True))
            return
        self.watch(result, ticket.waited_ms)
        ticket.post(result)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, MindMergerError):
            _log.error("the engine failed", exc_info=error)
            error = ModelError("the service failed with this question: its log on stderr says why")
        for ticket in self._busy.values():
            ticket.post(error)
        self._busy.clear()
