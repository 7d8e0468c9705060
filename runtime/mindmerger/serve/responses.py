"""What is said over HTTP: the bodies of the answers, as classes that are also the description at /openapi.json.

OpenAI's form, with this service's own in one field, `mindmerger`. Knows nothing about how an answer comes about.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mindmerger.generation import Generation, Timings
from mindmerger.serve.tickets import Started

Finish = Literal["stop", "length"]


class Body(BaseModel):
    """All that an answer has is described."""

    model_config = ConfigDict(extra="forbid")

    def document(self) -> dict[str, Any]:
        """For JSON: what is absent is left out, what is None stays."""
        return self.model_dump(exclude_unset=True)


class Usage(Body):
    """`prompt_tokens` are all positions before the answer: BOS, soft prompt and prompt."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Times(Body):
    """Milliseconds; as in `mindmerger.Timings`, with those in the queue."""

    queue_ms: float
    tokenise_ms: float
    encode_ms: float
    prefill_ms: float
    decode_ms: float
    total_ms: float
    first_token_ms: float | None
    tokens_per_second: float | None


class Steering(Body):
    """What the LLM was given. `language` by code, the likeliest first (null: no gate); weight 0: left out."""

    language: dict[str, float] | None
    encoder_weight: float | None
    llm_weight: float | None
    soft_prompt_rows: int
    prompt_tokens: int
    ignored_messages: int = Field(description="Earlier messages of a chat, which a merged model does not read.")


class Extension(Steering):
    """Beyond OpenAI's answer. `answer` is the number that the reasoning ends in (null: none)."""

    answer: str | None
    finish_reason: Literal["stop", "length", "timeout", "cancelled"]
    forced_tokens: int = Field(description="Tokens that the calculator wrote.")
    timings: Times


class ChatMessage(Body):
    """The model's message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Body):
    """The one answer."""

    index: Literal[0]
    message: ChatMessage
    logprobs: None
    finish_reason: Finish


class ChatCompletion(Body):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    mindmerger: Extension


class Delta(Body):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChunkChoice(Body):
    """A part of the one answer."""

    index: Literal[0]
    delta: Delta
    logprobs: None
    finish_reason: Finish | None


class ChatChunk(Body):
    """An event of a chat's stream. `mindmerger` is in the first one, and whole in the one with `finish_reason`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    mindmerger: Extension | Steering | None = None


class TextChoice(Body):
    """The one answer, or a part of it."""

    index: Literal[0]
    text: str
    logprobs: None
    finish_reason: Finish | None


class TextCompletion(Body):
    """The answer of /v1/completions, or an event of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None
    mindmerger: Extension | Steering | None = None


class Explained(Body):
    """The answer of /v1/explain. `left_out` is the source that the gate filters."""

    object: Literal["explanation"]
    model: str
    question: str
    language: dict[str, float] | None
    encoder_weight: float
    llm_weight: float
    left_out: Literal["soft prompt", "question"] | None


class About(Body):
    """What the bundle says of itself."""

    method: str
    languages: list[str]
    gate: bool
    filter_threshold: float
    context: int
    max_new_tokens: int
    encoder: str
    llm: str


class ModelCard(Body):
    """A model in OpenAI's form."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    mindmerger: About


class ModelList(Body):
    """The answer of /v1/models."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(Body):
    """The answer of /health."""

    status: Literal["ok", "stopping"]
    model: str
    slots: int
    busy: int
    waiting: int


class ErrorBody(Body):
    """What is wrong, in a sentence."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Body):
    """The form of every error."""

    error: ErrorBody


def usage(result: Generation, bos: int) -> Usage:
    """Counted tokens; `bos` is 1 where the bundle begins with BOS."""
    prompt = bos + result.soft_prompt_rows + result.prompt_tokens
    count = len(result.token_ids)
    return Usage(prompt_tokens=prompt, completion_tokens=count, total_tokens=prompt + count)


def finish(result: Generation) -> Finish:
    """OpenAI knows two ends of ours; what a timeout cut is not whole, so it is "length"."""
    return "stop" if result.finish_reason == "stop" else "length"


def steering(started: Started, ignored_messages: int) -> Steering:
    """The extension of a stream's beginning."""
    return Steering(
        language=started.language,
        encoder_weight=started.encoder_weight,
        llm_weight=started.llm_weight,
        soft_prompt_rows=started.soft_prompt_rows,
        prompt_tokens=started.prompt_tokens,
        ignored_messages=ignored_messages,
    )


def extension(result: Generation, waited_ms: float, ignored_messages: int) -> Extension:
    """The extension of a finished answer."""
    return Extension(
        answer=result.answer,
        finish_reason=result.finish_reason,
        language=result.language,
        encoder_weight=result.encoder_weight,
        llm_weight=result.llm_weight,
        soft_prompt_rows=result.soft_prompt_rows,
        prompt_tokens=result.prompt_tokens,
        forced_tokens=result.forced_tokens,
        timings=_times(result.timings, waited_ms),
        ignored_messages=ignored_messages,
    )


def _times(timings: Timings, waited_ms: float) -> Times:
    given = {"queue_ms": waited_ms, **vars(timings)}
    return Times.model_validate({name: None if value is None else round(value, 3) for name, value in given.items()})
