"""What may be asked over HTTP: the bodies of the POSTs, checked, and turned into a question and the runtime's options.

These classes are also the description at /openapi.json. A parameter of OpenAI's that would change the answer and that this
service has not is refused with the reason; one that changes nothing is accepted. Names that are neither are refused: a typing
error must not pass in silence. Knows nothing about how an answer is made or sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mindmerger.errors import InputError
from mindmerger.options import OptionKeywords, Options
from mindmerger.sampling import MAX_SEED

_MAX_MESSAGES = 10_000
_INT64 = 2**63


def _whole(value: Any) -> Any:
    """3.0 is a whole number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Limit = Annotated[int, Field(ge=1, lt=_INT64), BeforeValidator(_whole)]
Seed = Annotated[int, Field(ge=-_INT64, lt=_INT64), BeforeValidator(_whole)]
TopK = Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(_whole)]
One = Annotated[int, Field(ge=1, le=1), BeforeValidator(_whole)]
NoInteger = Annotated[int, Field(ge=0, le=0), BeforeValidator(_whole)]
Text = Annotated[str, Field(json_schema_extra={"minLength": 1, "pattern": r"\S"})]  # the runtime says it better
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Weight = Annotated[float, Field(ge=0, le=2)]
Zero = Annotated[float, Field(ge=0, le=0)]
Empty = Annotated[list[Any], Field(max_length=0)]
EmptyMap = Annotated[dict[str, Any], Field(max_length=0)]

NO_ANSWER_OF_THIS_KIND = {
    "n": "a question has one answer here: leave n out, or 1",
    "best_of": "a question has one answer here: leave best_of out, or 1",
    "tools": "the model calls no tools: leave tools out",
    "functions": "the model calls no functions: leave functions out",
    "tool_choice": "the model calls no tools: leave tool_choice out, or 'none' or 'auto'",
    "logprobs": "probabilities are not given here: leave logprobs out",
    "top_logprobs": "probabilities are not given here: leave top_logprobs out",
    "logit_bias": "single tokens cannot be favoured here: leave logit_bias out",
    "frequency_penalty": "use mindmerger.repeat_penalty: leave frequency_penalty out, or 0",
    "presence_penalty": "use mindmerger.repeat_penalty: leave presence_penalty out, or 0",
    "response_format": "answers are text here: leave response_format out, or {'type': 'text'}",
    "modalities": "answers are text here: leave modalities out, or ['text']",
    "echo": "the question is not repeated: leave echo out",
    "suffix": "text cannot be inserted here: leave suffix out",
    "prompt": "prompt must be one text: ask several questions in several requests",
}
"""Why a value of one of OpenAI's parameters is refused."""


class Model(BaseModel):
    """What all bodies share: types are not converted, unknown names are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Extension(Model):
    """What this service has beyond OpenAI's API, in the field `mindmerger`."""

    language: str | None = Field(
        default=None, description="The question's language for the gate, as in 'sw' (null: found)."
    )
    encoder_weight: Weight | None = Field(
        default=None, description="Instead of the gate's; 1 leaves the soft prompt as it is."
    )
    llm_weight: Weight | None = Field(
        default=None, description="Instead of the gate's; 1 leaves the LLM's prompt as it is."
    )
    soft_prompt: bool | None = Field(default=None, description="false: the LLM alone.")
    question_in_prompt: bool | None = Field(default=None, description="false: the soft prompt alone.")
    calculator: bool | None = Field(
        default=None, description="Compute <<48/2=24>> annotations (null: as the bundle does)."
    )
    top_k: TopK | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    timeout: Annotated[float, Field(gt=0, le=10**6)] | None = Field(
        default=None, description="Seconds after which the answer ends with what it has."
    )


class StreamOptions(Model):
    """How a stream ends."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Question(Model):
    """What a chat and a completion share."""

    model: Annotated[str, Field(max_length=1000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(default=None, description="null: the bundle's.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    mindmerger: Extension | None = None
    # without effect here
    user: str | None = None
    # these values alone
    n: One | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: EmptyMap | None = None

    def _limit(self) -> int | None:
        return self.max_tokens

    def options(self) -> Options:
        """The runtime's options; InputError where they contradict each other."""
        given: OptionKeywords = {}
        for name, value in (self.mindmerger or Extension()).model_dump(exclude_none=True).items():
            given[name] = value  # type: ignore[literal-required]  # the fields are options of that name
        if self.temperature is not None:
            given["temperature"] = self.temperature
        # Greedy decoding has nothing to filter: for OpenAI's clients, which send both, that is no contradiction.
        if self.top_p is not None and self.temperature != 0:
            given["top_p"] = self.top_p
        if self.seed is not None:
            given["seed"] = self.seed % (MAX_SEED + 1)
        if self.stop:
            given["stop"] = self.stop
        if (limit := self._limit()) is not None:
            given["max_new_tokens"] = limit
        return Options(**given)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends in a chunk with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(Model):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message; only the last one is read, so the others may hold what they like."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Any] | None = None


class ChatRequest(_Question):
    """POST /v1/chat/completions. The last message is the question; what is before it is not read."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
    max_completion_tokens: Limit | None = None
    # without effect here
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # these values alone
    tools: Empty | None = None
    functions: Empty | None = None
    tool_choice: Literal["none", "auto"] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: NoInteger | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None

    def _limit(self) -> int | None:
        limits = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        if len(set(limits)) > 1:
            raise InputError("max_tokens and max_completion_tokens contradict each other: leave max_tokens out")
        return limits[0] if limits else None

    def question(self) -> str:
        """The text of the last message, which must be the user's."""
        last = self.messages[-1]
        if last.role != "user":
            raise InputError(f"the last message must be the user's question, not one of role {last.role!r}")
        if isinstance(last.content, str):
            return last.content
        texts = []
        for part in last.content or []:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise InputError("the model reads text alone: send the question as text, or as parts of type 'text'")
            texts.append(part["text"])
        return "\n".join(texts)

    @property
    def ignored_messages(self) -> int:
        """How many messages are not read."""
        return len(self.messages) - 1


class ResponseFormat(Model):
    """The only form there is."""

    type: Literal["text"]


class CompletionRequest(_Question):
    """POST /v1/completions. The prompt is the question: the bundle's own template is put around it."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    # these values alone
    best_of: One | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: Literal[""] | None = None

    def question(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    @property
    def ignored_messages(self) -> int:
        """A completion has no messages."""
        return 0


class ExplainRequest(Model):
    """POST /v1/explain: what the gate says of a question, without an answer."""

    model: Annotated[str, Field(max_length=1000)] | None = None
    question: Text
    language: str | None = None


ChatRequest.model_rebuild()
