"""A merged model: question → encoder and merger → soft prompt → LLM → reasoning and answer.

The sequence that the LLM sees is `[BOS] [mapped rows, boundary row] [prompt]`, in one call where that can be: which parts
there are, and as rows or tokens, is merging.py's matter.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from mindmerger import batch
from mindmerger.batch import BatchItem
from mindmerger.bundle import Bundle
from mindmerger.deadline import Deadline
from mindmerger.errors import InputError, MindMergerError, ModelError
from mindmerger.generation import Explanation, Generation, GenerationStream
from mindmerger.graph import MergerGraph
from mindmerger.i18n import _
from mindmerger.llama import LLM, Cancelled
from mindmerger.merging import Merging, Ready
from mindmerger.options import OptionKeywords, Options, SourceKeywords
from mindmerger.plan import Plan, Planner
from mindmerger.record import Times, record
from mindmerger.sampling import Sampling
from mindmerger.sequences import max_sequences
from mindmerger.steering import Steered, Wish
from mindmerger.tokenizer import QuestionTokenizer, check_question
from mindmerger.transcript import Transcript


class MergedModel:
    """A loaded bundle that answers questions. Made by `load`; a context manager; safe to share between threads.

    One question is answered at a time; other threads wait for their turn.
    """

    def __init__(
        self,
        bundle: Bundle,
        tokenizer: QuestionTokenizer,
        graph: MergerGraph,
        llm: LLM,
        notices: Iterable[str] = (),
        low_memory: bool = False,
    ) -> None:
        self.bundle = bundle
        self.notices = tuple(notices)
        self._low_memory = low_memory
        self.manifest = bundle.manifest
        self.llm = llm
        self._tokenizer = tokenizer
        self._graph = graph
        self._planner = Planner(self.manifest, tokenizer, llm)
        self._merging = Merging(self.manifest, graph, llm)
        self._setting = batch.Setting(llm, self._merging, self.manifest.prompt.bos_id is not None)
        self._turn = threading.Lock()
        self._turn_of: int | None = None
        # weak: a stream that nobody reads any more must end, and free the model
        self._running: weakref.ref[Generator[Any, None, None]] | None = None
        self._stop_ids = frozenset(self.manifest.prompt.stop_ids)
        self._closed = False

    # ------------------------------------------------------------------------------------------- answering

    def generate(self, question: str, **options: Unpack[OptionKeywords]) -> GenerationStream:
        """Answer `question`; the text arrives in chunks, the stream's `result` is the whole.

        The options are those of `mindmerger.options.OptionKeywords`, which says what each does. Everything that can be
        refused is refused here, before the first chunk is asked for; only that a grammar leads nowhere shows later.
        """
        asked = Options(**options)
        sampling = asked.sampling(self.manifest.generation)
        plan = self._plan(question, asked.max_new_tokens, *self._wish(asked))
        if asked.grammar is not None:
            self.llm.sampler(sampling).close()
        results: list[Generation] = []
        itself: list[weakref.ref[Generator[str, None, None]]] = []
        steps = self._steps(plan, asked, sampling, results, itself)
        itself.append(weakref.ref(steps))
        return GenerationStream(steps, lambda: results[0] if results else None)

    def answer(self, question: str, **options: Unpack[OptionKeywords]) -> Generation:
        """`generate` for the impatient: the finished `Generation`."""
        stream = self.generate(question, **options)
        for _chunk in stream:
            pass
        return stream.result

    def generate_batch(
        self, questions: Iterable[str], *, slots: int | None = None, **options: Unpack[OptionKeywords]
    ) -> Iterator[BatchItem]:
        """Answer many questions, `slots` of them at a time (default 32).

        Yields a `BatchItem` for each question as it ends, in the order in which they end; `index` says which question
        it is. A question that cannot be asked is an item with an `error` and does not stop the others. The options are
        those of `generate`, for all questions alike, a seed included; they are checked before the first item is asked
        for. `cancel()` ends the iteration: questions in work come out as "cancelled", the rest not at all.

        The model is busy until the iterator is exhausted, closed or dropped. Greedy answers are those of `generate` but
        for the rounding of another batch size, which can decide where two tokens are almost equally likely. A context
        of its own takes memory meanwhile: `slots` × the positions of the longest question with its answer.
        """
        if isinstance(questions, (str, bytes)):
            raise InputError("generate_batch takes several questions, not one text: use answer() or a list")
        if slots is None:
            slots = batch.DEFAULT_SLOTS
        if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= max_sequences():
            raise InputError(f"slots must be a whole number from 1 to {max_sequences()}, not {slots!r:.40}")
        asked = Options(**options)
        sampling = asked.sampling(self.manifest.generation)
        wish, sources = self._wish(asked)
        if asked.grammar is not None:
            self.llm.sampler(sampling).close()
        manner = self._manner(asked, sampling)
        itself: list[weakref.ref[Generator[BatchItem, None, None]]] = []

        def items() -> Generator[BatchItem, None, None]:
            self._take_turn()
            self._running = itself[0]
            try:
                plans: list[batch.Question] = []
                for index, question in enumerate(questions):
                    if self.llm.cancelled:
                        return
                    try:
                        plan = self._plan(question, asked.max_new_tokens, wish, sources)
                        plans.append(batch.Question(index, question, plan, manner))
                    except MindMergerError as error:
                        yield BatchItem(index, question, None, error)
                if self._low_memory:
                    self._tokenizer.release()
                yield from batch.run(self._setting, plans, slots)
            finally:
                self._end_turn()

        answering = items()
        itself.append(weakref.ref(answering))
        return answering

    def question(self, index: int, question: str, asked: Options, listener: batch.Listener | None) -> batch.Question:
        """A question for `slots`, checked. A limit beyond what the context has room for is what it has room for."""
        sampling = asked.sampling(self.manifest.generation)
        plan = self._plan(question, None, *self._wish(asked))
        if asked.max_new_tokens is not None:
            room = self.llm.context - plan.positions - self._setting.bos
            plan = replace(plan, max_new_tokens=min(asked.max_new_tokens, room))
        if asked.grammar is not None:
            self.llm.sampler(sampling).close()
        return batch.Question(index, question, plan, self._manner(asked, sampling), listener)

    @contextmanager
    def slots(self, count: int) -> Iterator[batch.Slots]:
        """`count` questions side by side, which may come at any time: for services.

        The model is busy meanwhile. Each slot has as many positions as the context.
        """
        if not 1 <= count <= max_sequences():
            raise InputError(f"slots must be a whole number from 1 to {max_sequences()}, not {count}")
        self._take_turn()
        try:
            with batch.Slots(self._setting, count, self.llm.context) as slots:
                yield slots
        finally:
            self._end_turn()

    def explain(self, question: str, *, language: str | None = None) -> Explanation:
        """What the gate says of `question`, told its `language` or not; nothing is generated."""
        wish, _sources = self._merging.wish(language, None, None)
        return self._merging.explain(self._read(question, wish))

    def cancel(self) -> None:
        """Stop the answer that is being generated now, from any thread, also during prefill. It ends as "cancelled"."""
        self.llm.cancel()

    # ------------------------------------------------------------------------- hooks for parity and evaluation

    def soft_prompt_rows(self, question: str) -> npt.NDArray[np.float32]:
        """The rows of the merger graph for `question`, the boundary row last, before `injection_scale`."""
        return self._merging.merged([self._read(question)])[0].rows

    def steered(
        self,
        question: str,
        *,
        language: str | None = None,
        encoder_weight: float | None = None,
        llm_weight: float | None = None,
    ) -> Steered:
        """Both sources of `question` as the LLM is given them, before `injection_scale`."""
        wish, sources = self._merging.wish(language, encoder_weight, llm_weight)
        plan = self._read(question, wish, sources)
        return self._merging.steered(plan, self._merging.merged([plan])[0] if plan.encoder_ids else None)

    def prompt_ids(self, question: str) -> list[int]:
        """The LLM's token ids of the prompt for `question`, without BOS."""
        return self.manifest.prompt.ids(check_question(question), self.llm.tokenise)

    def prefill(self, question: str, **options: Unpack[SourceKeywords]) -> npt.NDArray[np.float32]:
        """The logits of the first token of the answer; of the options, those that shape what is before it."""
        plan = self._plan(question, 1, *self._wish(Options(**options)))
        self._take_turn()
        try:
            self._prefill(self._merge(plan)[0])
            return self.llm.logits()
        finally:
            self._end_turn()

    def continuation_ids(
        self, question: str, n: int, *, calculator: bool = False, **options: Unpack[SourceKeywords]
    ) -> list[int]:
        """The first `n` greedy token ids of the answer; fewer if it stops, and then the stop token is the last."""
        result = self.answer(question, max_new_tokens=n, temperature=0.0, calculator=calculator, **options)
        return list(result.token_ids) + ([] if result.stop_id is None else [result.stop_id])

    # ------------------------------------------------------------------------------------------ how it is done

    def _read(self, question: str, wish: Wish | None = None, sources: tuple[bool, bool] = (True, True)) -> Plan:
        self._check_open()
        return self._planner.read(question, wish, sources)

    def _plan(self, question: str, max_new_tokens: int | None, wish: Wish, sources: tuple[bool, bool]) -> Plan:
        self._check_open()
        return self._planner.plan(question, max_new_tokens, wish, sources)

    def _check_open(self) -> None:
        if self._closed:
            raise ModelError(_("the model is closed: load it again"))

    def _merge(self, plan: Plan) -> tuple[Ready, float]:
        """Encode the question and weigh its sources. Returns the milliseconds too."""
        began = perf_counter()
        if self._low_memory:
            self._tokenizer.release()
        (ready,) = self._merging.ready([plan])
        return ready, (perf_counter() - began) * 1e3

    def _prefill(self, ready: Ready) -> float:
        """Decode everything before the answer. Returns the milliseconds."""
        began = perf_counter()
        if self.llm.cancelled:
            raise Cancelled
        self.llm.clear()
        for part, last in ready.calls():
            if isinstance(part, list):
                self.llm.decode_tokens(part, logits=last)
            else:
                self.llm.decode_rows(part, logits=last)
        return (perf_counter() - began) * 1e3

    def _wish(self, options: Options) -> tuple[Wish, tuple[bool, bool]]:
        return self._merging.wish(
            options.language,
            options.encoder_weight,
            options.llm_weight,
            options.soft_prompt,
            options.question_in_prompt,
        )

    def _manner(self, asked: Options, sampling: Sampling) -> batch.Manner:
        return batch.Manner(
            new_sampler=lambda: self.llm.sampler(sampling),
            new_transcript=lambda plan: self._transcript(plan, asked),
            timeout=asked.deadline(),
        )

    def _transcript(self, plan: Plan, options: Options) -> Transcript:
        # A grammar ends in a token that ends the text; the bundle's own stops may lack it.
        stop_ids = self._stop_ids if options.grammar is None else self._stop_ids | self.llm.end_ids
        return Transcript(
            self.llm,
            stop_ids,
            plan.max_new_tokens,
            calculator=options.calculates(self.manifest.generation),
            stop=options.stops,
        )

    def _steps(
        self,
        plan: Plan,
        options: Options,
        sampling: Sampling,
        results: list[Generation],
        itself: list[weakref.ref[Generator[str, None, None]]],
    ) -> Generator[str, None, None]:
        """Generate: yields text, and leaves the record in `results` unless it fails."""
        llm = self.llm
        transcript = self._transcript(plan, options)
        ready: Ready | None = None
        deadline = Deadline(options.timeout, llm.cancel)
        self._take_turn()
        self._running = itself[0]
        # Time spent waiting for the turn, like time that the reader of the stream takes, is not time spent answering.
        times = Times(perf_counter())
        try:
            with deadline, llm.sampler(sampling) as sampler:
                try:
                    ready, times.encode_ms = self._merge(plan)
                    times.prefill_ms = self._prefill(ready)
                    times.prefilled = perf_counter()
                    while True:
                        token = llm.sample(sampler)
                        if times.first is None:
                            times.first = perf_counter()
                        if text := transcript.take(token):
                            leaving = perf_counter()
                            yield text
                            times.away += perf_counter() - leaving
                        if transcript.finish is not None:
                            break
                        deadline.look()
                        if llm.cancelled:
                            raise Cancelled
                        if transcript.forced:
                            for fixed in transcript.forced:
                                sampler.accept(fixed)
                            llm.decode_tokens([token, *transcript.forced])
                        else:
                            llm.step(token)
                except Cancelled:
                    if text := transcript.cut("timeout" if deadline.expired else "cancelled"):
                        yield text
        except GeneratorExit:
            transcript.cut("cancelled")  # the reader closed the stream: what there is, is the result
        finally:
            ended = perf_counter()
            self._end_turn()
        results.append(record(plan, ready, transcript, times, ended))

    # ------------------------------------------------------------------------------------------- life time

    def _take_turn(self) -> None:
        me = threading.get_ident()
        if self._turn_of == me and self._turn.locked():
            # Waiting for oneself would be for ever.
            raise InputError(
                "this thread still reads an answer of this model: read it to its end, or close() it, first"
            )
        self._turn.acquire()
        self._turn_of = me
        # In this order: a close() that this look misses cancels after the line above, and is not undone by it.
        self.llm.resume()
        if self._closed:
            self._end_turn()
            raise ModelError(_("the model is closed: load it again"))

    def _end_turn(self) -> None:
        self._turn_of = None
        self._turn.release()

    def close(self) -> None:
        """Stop what is running, then free the encoder and the LLM. Harmless when called twice."""
        if self._closed:
            return
        if self._turn_of == threading.get_ident() and (running := self._running and self._running()):
            # An answer that this thread was reading when it left the `with` block, for instance by an exception.
            running.close()
        self._closed = True
        self.llm.cancel()
        with self._turn:
            self._graph.close()
            self.llm.close()

    def __enter__(self) -> MergedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
