"""The options of a question: one list for `generate`, `answer`, `generate_batch` and `continuation_ids`.

`OptionKeywords` is the list for type checkers and readers, `Options` the checked values; a test holds them together. What
is None is as the bundle says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from mindmerger.errors import InputError
from mindmerger.i18n import _
from mindmerger.sampling import Sampling

if TYPE_CHECKING:
    from mindmerger.manifest import GenerationInfo

_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 200
_MAX_SECONDS = 10**6


class OptionKeywords(TypedDict, total=False):
    """Keyword arguments of a question, all of them optional.

    max_new_tokens      the longest answer (default: the bundle's, or what the context leaves)
    temperature         0 is greedy (default: the bundle's); filters need one above 0
    top_k, top_p, min_p draw from the likeliest tokens only; 0, 1 and 0 do not filter
    repeat_penalty      above 1 makes the last 64 tokens of the answer less likely, 1 does nothing
    seed                the same seed, the same draws
    stop                a text or several; the answer ends before the first that would appear in it
    timeout             seconds after which an answer ends with what it has
    grammar             a GBNF grammar with a rule `root` that the answer follows; needs the calculator off
    calculator          compute `<<48/2=24>>` annotations (default: the bundle's, off with a grammar)
    soft_prompt         False: the LLM alone, `[BOS] [prompt]`; as encoder_weight=0
    question_in_prompt  False: the soft prompt alone, `[BOS] [soft prompt]`; as llm_weight=0
    language            a code for the gate instead of letting it look; a bundle without a gate takes none
    encoder_weight      from 0 to 2, instead of the gate's weight, or of the 1 of a bundle without a gate
    llm_weight          likewise; a weight below the manifest's `filter_threshold` leaves its source out
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    timeout: float | None
    grammar: str | None
    calculator: bool | None
    soft_prompt: bool
    question_in_prompt: bool | None
    language: str | None
    encoder_weight: float | None
    llm_weight: float | None


class SourceKeywords(TypedDict, total=False):
    """Those of `OptionKeywords` that shape the sequence before the answer."""

    soft_prompt: bool
    question_in_prompt: bool | None
    language: str | None
    encoder_weight: float | None
    llm_weight: float | None


@dataclass(frozen=True)
class Options:
    """Checked options; InputError for values that no bundle takes and for options that contradict each other.

    The weights and the language are checked by merging.py, which knows the bundle's gate.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    timeout: float | None = None
    grammar: str | None = None
    calculator: bool | None = None
    soft_prompt: bool = True
    question_in_prompt: bool | None = None
    language: str | None = None
    encoder_weight: float | None = None
    llm_weight: float | None = None

    def __post_init__(self) -> None:
        limit = self.max_new_tokens
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise InputError(
                _("max_new_tokens must be a whole number of at least 1, not {value}").format(value=f"{limit!r:.40}")
            )
        seconds = self.timeout
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= _MAX_SECONDS
        ):
            raise InputError(
                _("timeout must be a number of seconds above 0, at most {most}, not {value}").format(
                    most=_MAX_SECONDS, value=f"{seconds!r:.40}"
                )
            )
        for name in ("calculator", "soft_prompt", "question_in_prompt"):
            value = getattr(self, name)
            if value is None and name != "soft_prompt":
                continue
            if not isinstance(value, bool):
                raise InputError(f"{name} must be True or False, not {value!r:.40}")
        object.__setattr__(self, "stop", _checked_stop(self.stop))
        if self.grammar is not None and self.calculator:
            raise InputError(_("the calculator writes what a grammar may forbid: use calculator=False with a grammar"))
        if not self.soft_prompt and self.question_in_prompt is False:
            raise InputError(
                _("without the soft prompt and without the question in the prompt there is no question left")
            )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return tuple(self.stop)

    def sampling(self, defaults: GenerationInfo) -> Sampling:
        """How tokens are drawn under a bundle's defaults; refuses filters that greedy decoding would ignore."""
        temperature = defaults.temperature if self.temperature is None else self.temperature
        sampling = Sampling(
            temperature=temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            repeat_penalty=self.repeat_penalty,
            grammar=self.grammar,
        )
        if temperature == 0:
            for name, off in (("top_k", 0), ("top_p", 1), ("min_p", 0)):
                if getattr(self, name) != off:
                    raise InputError(
                        _("{name} does nothing at temperature 0 (greedy): give a temperature above 0 with it").format(
                            name=name
                        )
                    )
        return sampling

    def calculates(self, defaults: GenerationInfo) -> bool:
        """Whether the calculator works, under a bundle's defaults."""
        if self.calculator is not None:
            return self.calculator
        return defaults.calculator and self.grammar is None

    def deadline(self) -> float:
        """The timeout in seconds; infinite where there is none."""
        return math.inf if self.timeout is None else float(self.timeout)


def _checked_stop(stop: object) -> tuple[str, ...]:
    found = (stop,) if isinstance(stop, str) else stop
    if not isinstance(found, Sequence) or isinstance(found, (bytes, bytearray)):
        raise InputError(f"stop must be a text or a list of texts, not {type(stop).__name__}")
    if len(found) > _MAX_STOPS:
        raise InputError(_("stop takes at most {most} texts, not {count}").format(most=_MAX_STOPS, count=len(found)))
    for text in found:
        if not isinstance(text, str) or not 1 <= len(text) <= _MAX_STOP_CHARACTERS:
            raise InputError(
                _("stop takes texts of 1 to {most} characters, not {text}").format(
                    most=_MAX_STOP_CHARACTERS, text=f"{text!r:.40}"
                )
            )
    return tuple(found)
