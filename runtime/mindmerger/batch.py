"""Many questions at once: continuous batching over the sequences of one llama.cpp context.

A slot is a sequence. Each step appends one token to every busy slot, so the LLM's weights are read once for all of them;
a slot whose answer ends takes the next question at once. What is known in advance, everything before an answer and a
calculator's tokens, is a call of one sequence, as it is for a question alone: llama.cpp rounds the attention of one position
another way than that of several, and so all that a slot is given has the bits that it would have alone (on a CPU).

Knows nothing about bundles, files or terminals.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from time import perf_counter
from typing import Protocol

from mindmerger.errors import MindMergerError
from mindmerger.generation import Generation
from mindmerger.llama import LLM, Cancelled
from mindmerger.merging import Merging, Ready
from mindmerger.plan import Plan
from mindmerger.record import Times, record
from mindmerger.sampling import Sampler
from mindmerger.sequences import Sequences
from mindmerger.transcript import Transcript

# Processor time of a step by its slots, one thread of a Zen 4, 135 M parameters in Q8_0, 100 positions in each: 9.5 ms (1),
# 14.4 a token (2), 9.1 (4), 6.6 (8), 5.3 (16), 4.6 (32), 4.3 (64). A position of a prefill takes 2.7, whoever is beside it:
# llama.cpp's product of Q8_0 matrices with many columns makes about 80 GFLOP/s.
DEFAULT_SLOTS = 32
# Questions are sorted by length inside windows of so many: enough for encoder batches with little padding, and the
# answers still come about in the order of the questions.
_WINDOW = 128
_ENCODER_BATCH = 16
# Positions that are set aside without asking, for a slot and in all; where questions need more, they get fewer slots.
_SLOT_POSITIONS = 512
_POSITIONS = 32 * _SLOT_POSITIONS


@dataclass(frozen=True)
class BatchItem:
    """What became of one question of a batch: `question`, as it was asked, has place `index`; one of the others is None.

    The timings of a `Generation` in a batch are wall time, in which the other slots were served too.
    """

    index: int
    question: str
    generation: Generation | None
    error: MindMergerError | None


@dataclass(frozen=True)
class Setting:
    """What all questions over one LLM share."""

    llm: LLM
    merging: Merging
    bos: bool  # whether a position of each slot is BOS


@dataclass(frozen=True)
class Manner:
    """How a question is answered."""

    new_sampler: Callable[[], Sampler]
    new_transcript: Callable[[Plan], Transcript]
    timeout: float  # seconds from the slot, looked at after each token; infinite where there is none


class Listener(Protocol):
    """Who hears of an answer while it grows, in the thread that steps the slots."""

    def merged(self, ready: Ready) -> None:
        """What the LLM is given is known."""

    def text(self, text: str) -> None:
        """More of the answer, in whole characters."""


class _Clock:
    """Seconds that pass while the batch works, not while the reader of the results does."""

    def __init__(self) -> None:
        self._away = 0.0
        self._left = 0.0

    def now(self) -> float:
        return perf_counter() - self._away

    def leave(self) -> None:
        self._left = perf_counter()

    def return_(self) -> None:
        self._away += perf_counter() - self._left


@dataclass(frozen=True)
class Question:
    """A question that fits into a slot, as it was `asked`; `index` is the caller's name for it."""

    index: int
    asked: str
    plan: Plan
    manner: Manner
    listener: Listener | None = None


@dataclass
class _Slot:
    """A question in work."""

    sequence: int
    question: Question
    ready: Ready
    sampler: Sampler
    transcript: Transcript
    times: Times
    feed: list[int]  # drawn or known, and not decoded yet
    error: MindMergerError | None = None


def run(setting: Setting, questions: Iterable[Question], slots: int) -> Generator[BatchItem, None, None]:
    """Answer all questions; yields the items as they end.

    When the LLM is cancelled, what has begun is yielded as "cancelled" and the rest is not begun.
    """
    for ordered, count, length in _passes(list(questions), slots, setting.bos):
        with Slots(setting, count, length) as batch:
            for question in ordered:
                batch.add(question)
            while batch.busy:
                for item in batch.advance():
                    batch.clock.leave()
                    yield item
                    batch.clock.return_()
            if batch.cancelled:
                return


def _passes(questions: list[Question], slots: int, bos: bool) -> Generator[tuple[list[Question], int, int], None, None]:
    """Questions with the number of slots and their length: one pass, but another with fewer slots for the very long."""
    room = max(slots * _SLOT_POSITIONS, _POSITIONS)
    needs = {id(question): bos + question.plan.positions + question.plan.max_new_tokens for question in questions}
    usual = [question for question in questions if needs[id(question)] <= _SLOT_POSITIONS]
    longer = [question for question in questions if needs[id(question)] > _SLOT_POSITIONS]
    for part in (usual, longer):
        if not part:
            continue
        length = max(needs[id(question)] for question in part)
        length = -(-length // 256) * 256  # llama.cpp's own unit
        ordered: list[Question] = []
        for start in range(0, len(part), _WINDOW):
            window = part[start : start + _WINDOW]
            # the longest first: what ends last should be short, for it leaves the other slots empty
            ordered += sorted(window, key=lambda question: question.plan.positions, reverse=True)
        yield ordered, max(1, min(slots, len(part), room // length)), length


class Slots:
    """Questions that are answered side by side in one context; new ones may come at every step. Not thread-safe.

    `count` slots of `length` positions each. Closed before the LLM is.
    """

    def __init__(self, setting: Setting, count: int, length: int) -> None:
        self._setting = setting
        self._waiting: deque[Question] = deque()
        self._encoded: deque[tuple[Question, Ready | MindMergerError, float]] = deque()
        self._busy: list[_Slot] = []
        self._sequences = Sequences(setting.llm, count, length)
        self._free = list(range(count))  # a heap
        self.count = count
        self.clock = _Clock()
        self.cancelled = False

    @property
    def busy(self) -> bool:
        """Whether there is anything to be done."""
        return bool(self._waiting or self._encoded or self._busy)

    def add(self, question: Question) -> None:
        """Take a question, which waits for a free slot. It must fit: positions of the question, answer, BOS ≤ `length`."""
        self._waiting.append(question)

    def cut(self, index: int) -> None:
        """End the answer of a question in a slot as "cancelled", with the next `advance`."""
        for slot in self._busy:
            if slot.question.index == index:
                slot.transcript.cut("cancelled")

    def advance(self) -> list[BatchItem]:
        """Fill the free slots, then one token for every busy one; returns what has ended.

        When the LLM is cancelled, what is in a slot ends as "cancelled", what waits is dropped, and `cancelled` is set. After
        an error the slots are of no further use.
        """
        ended: list[BatchItem] = []
        try:
            self._end(ended)
            self._fill(ended)
            self._end(ended)
            self._step()
        except Cancelled:
            self.cancelled = True
            self._waiting.clear()
            self._encoded.clear()
            for slot in self._busy:
                slot.transcript.cut("cancelled")
        self._end(ended)
        return ended

    def close(self) -> None:
        """Free the samplers of what was not finished, and the context."""
        for slot in self._busy:
            slot.sampler.close()
        self._busy = []
        self._sequences.close()

    def __enter__(self) -> Slots:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------- taking questions

    def _fill(self, ended: list[BatchItem]) -> None:
        """Put waiting questions into the free slots, up to the first token of each answer."""
        started = []
        while self._free and (self._waiting or self._encoded):
            self._check_cancelled()
            if not self._encoded:
                self._encode()
            question, merged, encode_ms = self._encoded.popleft()
            if isinstance(merged, MindMergerError):
                ended.append(BatchItem(question.index, question.asked, None, merged))
                continue
            slot = self._slot(heappop(self._free), question, merged, encode_ms)
            self._busy.append(slot)
            started.append(slot)
            if question.listener is not None:
                question.listener.merged(merged)
        for slot in started:
            self._check_cancelled()
            self._prefill(slot)

    def _slot(self, sequence: int, question: Question, ready: Ready, encode_ms: float) -> _Slot:
        return _Slot(
            sequence=sequence,
            question=question,
            ready=ready,
            sampler=question.manner.new_sampler(),
            transcript=question.manner.new_transcript(question.plan),
            times=Times(self.clock.now(), encode_ms=encode_ms, before_ms=encode_ms),
            feed=[],
        )

    def _encode(self) -> None:
        """Run the merger graph on the next questions, which are of about the same length."""
        questions = [self._waiting.popleft() for _ in range(min(_ENCODER_BATCH, len(self._waiting)))]
        began = perf_counter()
        found: list[Ready | MindMergerError]
        try:
            found = list(self._setting.merging.ready([question.plan for question in questions]))
        except MindMergerError:
            # One of them, or the size of the batch: whose fault it is shows when each is asked alone.
            found = [self._ready_alone(question.plan) for question in questions]
        encode_ms = (perf_counter() - began) * 1e3 / len(questions)
        self._encoded.extend((question, ready, encode_ms) for question, ready in zip(questions, found, strict=True))

    def _ready_alone(self, plan: Plan) -> Ready | MindMergerError:
        try:
            return self._setting.merging.ready([plan])[0]
        except MindMergerError as error:
            return error

    def _prefill(self, slot: _Slot) -> None:
        """Everything before the answer of one question: a call of one sequence, whose length then need not be the others'."""
        began = self.clock.now()
        index = 0
        for part, last in slot.ready.calls():
            if isinstance(part, list):
                index = self._sequences.append_tokens(slot.sequence, part, last)
            else:
                index = self._sequences.append_rows(slot.sequence, part, last)
        slot.times.prefilled = self.clock.now()
        slot.times.prefill_ms = (slot.times.prefilled - began) * 1e3
        self._draw(slot, index)

    # -------------------------------------------------------------------------------------------- decoding

    def _step(self) -> None:
        """One token for every busy slot; those that have several waiting take them all first."""
        for slot in list(self._busy):
            if len(slot.feed) > 1:
                self._check_cancelled()
                self._draw(slot, self._sequences.append_tokens(slot.sequence, slot.feed, True))
        self._check_cancelled()
        self._close_ranks()
        slots = [slot for slot in self._busy if slot.transcript.finish is None and slot.error is None]
        slots = [slot for slot in slots if len(slot.feed) == 1]
        if slots:
            self._sequences.step([(slot.sequence, slot.feed[0], True) for slot in slots])
        for index, slot in enumerate(slots):
            self._draw(slot, index)

    def _close_ranks(self) -> None:
        """Give the busy slots the first sequences, and put them in that order.

        llama.cpp computes sequences together only where each number is one more than the last; behind a gap it reads all
        weights once more.
        """
        self._busy.sort(key=lambda slot: slot.sequence)
        while self._busy and self._free and self._free[0] < self._busy[-1].sequence:
            slot = self._busy.pop()
            gap = heappop(self._free)
            self._sequences.move(slot.sequence, gap)
            heappush(self._free, slot.sequence)
            slot.sequence = gap
            insort(self._busy, slot, key=lambda slot: slot.sequence)

    def _draw(self, slot: _Slot, index: int) -> None:
        try:
            token = self._sequences.sample(slot.sampler, index)
        except MindMergerError as error:  # a grammar that leads nowhere
            slot.error = error
            return
        if slot.times.first is None:
            slot.times.first = self.clock.now()
        transcript = slot.transcript
        text = transcript.take(token)
        if transcript.finish is None:
            for forced in transcript.forced:
                slot.sampler.accept(forced)
            slot.feed = [token, *transcript.forced]
            if self.clock.now() - slot.times.began > slot.question.manner.timeout:
                text += transcript.cut("timeout")
        if text and slot.question.listener is not None:
            slot.question.listener.text(text)

    def _end(self, ended: list[BatchItem]) -> None:
        """Take the finished answers out of their slots."""
        now = self.clock.now()
        for slot in [slot for slot in self._busy if slot.error is not None or slot.transcript.finish is not None]:
            self._busy.remove(slot)
            slot.sampler.close()
            self._sequences.clear(slot.sequence)
            heappush(self._free, slot.sequence)
            generation = None
            if slot.error is None:
                generation = record(slot.question.plan, slot.ready, slot.transcript, slot.times, now)
            ended.append(BatchItem(slot.question.index, slot.question.asked, generation, slot.error))

    def _check_cancelled(self) -> None:
        if self._setting.llm.cancelled:
            raise Cancelled
