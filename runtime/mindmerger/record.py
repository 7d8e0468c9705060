"""The record of an answer, made of what was planned, what the LLM was given, what was written, and when.

One question and many at once make theirs here. Knows nothing about how any of it came about.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindmerger.answer import final_answer
from mindmerger.generation import Generation, Timings
from mindmerger.merging import Ready
from mindmerger.plan import Plan
from mindmerger.transcript import Transcript


@dataclass
class Times:
    """When things happened to a question after it was tokenised: durations in ms, the rest in seconds of one clock.

    `before_ms` is work for it that lies before `began`: an equal share of an encoder batch. `away` are seconds in which the
    reader of a stream had the word. `prefilled` and `first` are None where it did not come so far.
    """

    began: float
    encode_ms: float = 0.0
    before_ms: float = 0.0
    prefill_ms: float = 0.0
    prefilled: float | None = None
    first: float | None = None
    away: float = 0.0


def record(plan: Plan, ready: Ready | None, transcript: Transcript, times: Times, ended: float) -> Generation:
    """The record of an answer that has ended; `ready` is None where it was cancelled before the merge."""
    ids, text = transcript.ids, transcript.text
    assert transcript.finish is not None
    before = plan.tokenise_ms + times.before_ms
    decode_ms = 0.0 if times.prefilled is None else (ended - times.prefilled - times.away) * 1e3
    return Generation(
        question=plan.question,
        text=text,
        answer=final_answer(text),
        finish_reason=transcript.finish,
        token_ids=tuple(ids),
        stop_id=transcript.stop_id,
        soft_prompt_rows=(ready or plan).soft_prompt_rows,
        prompt_tokens=(ready or plan).prompt_tokens,
        forced_tokens=transcript.forced_count,
        timings=Timings(
            tokenise_ms=plan.tokenise_ms,
            encode_ms=times.encode_ms,
            prefill_ms=times.prefill_ms,
            decode_ms=decode_ms,
            total_ms=before + (ended - times.began - times.away) * 1e3,
            first_token_ms=None if times.first is None else before + (times.first - times.began) * 1e3,
            tokens_per_second=len(ids) / decode_ms * 1e3 if decode_ms and ids else None,
        ),
        language=None if ready is None else ready.language,
        encoder_weight=None if ready is None else ready.encoder_weight,
        llm_weight=None if ready is None else ready.llm_weight,
    )
