"""What comes out of a model: the stream of text while it is generated, and the record of it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Literal

from mindmerger.errors import InputError

FinishReason = Literal["stop", "length", "cancelled", "timeout"]


@dataclass(frozen=True)
class Timings:
    """Where the time went, in milliseconds of wall time; `tokens_per_second` is of the decode alone.

    tokenise: checks, the encoder's tokens and the prompt's. encode: encoder *and* merger, which are one graph and cannot be
    told apart. prefill: BOS, soft prompt and prompt. decode: the rest, sampling and text among it. `first_token_ms` is the
    sum until the first token was drawn. In a batch, encode is an equal share of its encoder batch, and decode goes on while
    others are served.
    """

    tokenise_ms: float
    encode_ms: float
    prefill_ms: float
    decode_ms: float
    total_ms: float
    first_token_ms: float | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class Generation:
    """A finished answer. `text` is the reasoning as generated, `answer` the number it ends in (None: no number).

    `token_ids` are the tokens of `text`, those that the calculator forced among them; `stop_id` is the one that ended
    it (None: no token did). `language` is the distribution that the gate used, by code, the likeliest first (None: no gate
    was asked). The weights are the means at work, 0 where a source was left out (None: cancelled before the merge).
    """

    question: str
    text: str
    answer: str | None
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    stop_id: int | None
    soft_prompt_rows: int
    prompt_tokens: int
    forced_tokens: int
    timings: Timings
    language: dict[str, float] | None = None
    encoder_weight: float | None = None
    llm_weight: float | None = None


@dataclass(frozen=True)
class Explanation:
    """What the gate says of a question. `language` is its distribution by code, the likeliest first (None: no gate).

    The weights are means in (0, 2), 1 where there is no gate; `left_out` is the source that the gate filters by them.
    """

    question: str
    language: dict[str, float] | None
    encoder_weight: float
    llm_weight: float
    left_out: Literal["soft prompt", "question"] | None


class GenerationStream(Iterator[str]):
    """Chunks of text as they are generated; afterwards `result` holds the `Generation`.

    Every chunk is whole characters. The model is busy until the stream has been read to its end or closed; a stream
    that is closed early has a result too, of what was generated until then.
    """

    def __init__(self, steps: Generator[str, None, None], result: Callable[[], Generation | None]) -> None:
        self._steps = steps
        self._result = result

    def __next__(self) -> str:
        return next(self._steps)

    def close(self) -> None:
        """Stop generating and free the model for the next question."""
        self._steps.close()

    @property
    def result(self) -> Generation:
        """The finished answer; InputError while it is not finished."""
        result = self._result()
        if result is None:
            raise InputError("the answer is not finished: read the stream to its end, or close() it, first")
        return result

    def __enter__(self) -> GenerationStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
