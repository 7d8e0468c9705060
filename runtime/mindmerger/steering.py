"""Steering: the gate's opinion and the caller's wishes become the rows that the LLM is given.

Numpy alone, for one question. The rules, which docs/bundle.md states too:

* A weight that the caller gives replaces the gate's by a scalar; where neither gives one it is 1.
* A weight whose mean is below the bundle's threshold, or 0, filters: that source is left out altogether. What the caller
  filters counts first; where the gate would leave out both, the source of the larger mean stays.
* A source that is alone has nothing to be weighed against: its weight is 1 unless the caller gives one. So is it trained.
* A prompt of weight exactly 1 goes to the LLM as tokens, not as rows.

What this module does not know: sequences, llama.cpp, the graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mindmerger.errors import InputError
from mindmerger.i18n import _
from mindmerger.manifest import UNKNOWN_LANGUAGE, GateInfo

Floats = npt.NDArray[np.float32]
Source = Literal["soft prompt", "question"]

MAX_WEIGHT = 2.0


@dataclass(frozen=True)
class Wish:
    """What the caller asks for. None leaves it to the gate, and where there is none, to 1."""

    language: str | None = None
    encoder_weight: float | None = None
    llm_weight: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("encoder_weight", self.encoder_weight), ("llm_weight", self.llm_weight)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_WEIGHT:
                # NaN is in no range
                raise InputError(
                    _("{name} must be a number from 0 to {most} (1: as it is), not {value}").format(
                        name=name, most=f"{MAX_WEIGHT:g}", value=f"{value!r:.40}"
                    )
                )


@dataclass(frozen=True)
class Opinion:
    """What the gate says of a question, all float32.

    `encoder_weight` broadcasts over (n, d), the mapped rows, and `llm_weight` over (m, d), the prompt's: (1, 1), (1, d), or
    (rows, 1) by granularity. `language` (1 + languages) is the distribution over `GateInfo.names`.
    """

    encoder_weight: Floats
    llm_weight: Floats
    language: Floats


@dataclass(frozen=True)
class Steered:
    """What the LLM is given, without BOS. Rows are not multiplied by `injection_scale`.

    `soft_prompt` (n + 1, d), weighted, the boundary row last and as it is; None: left out. `prompt` (m, d), the prompt's
    weighted embeddings; None: the prompt goes as tokens, or (`question` False) not at all. The weights are means; 0 where
    the source is left out.
    """

    soft_prompt: Floats | None
    prompt: Floats | None
    question: bool
    encoder_weight: float
    llm_weight: float


def given_language(language: str | None, gate: GateInfo | None) -> Floats | None:
    """What the graph's input `language` is for this wish: all on one row, or zeros for None. None without a gate.

    Raises InputError for a language that the gate does not know, and for any where the gate takes none.
    """
    if language is not None and not isinstance(language, str):
        raise InputError(f"language must be a code such as 'sw', not {type(language).__name__}")
    if gate is None or gate.language_input == "none":
        if language is not None:
            raise InputError(
                _("this bundle has no gate, so no language can be set: leave it out (the encoder reads any language)")
                if gate is None
                else _("the gate of this bundle has no language, so none can be set: leave it out")
            )
        if gate is None:
            return None
    row = np.zeros(len(gate.names), dtype=np.float32)
    if language is not None:
        if language not in gate.names:
            raise InputError(
                _(
                    "the gate of this bundle does not know the language {language}: give one of {known}, or {unknown}"
                ).format(
                    language=repr(language[:40]),
                    known=", ".join(sorted(gate.languages)),
                    unknown=repr(UNKNOWN_LANGUAGE),
                )
            )
        row[gate.names.index(language)] = 1.0
    return row


def wished_sources(wish: Wish, threshold: float, question_by_default: bool = True) -> tuple[bool, bool]:
    """Whether the soft prompt and the question may be in the sequence, by the caller's weights alone.

    `question_by_default`: whether the prompt is there where nothing is said (LangBridge's is not). Raises InputError when both
    weights filter and are equal.
    """
    encoder, llm = wish.encoder_weight, wish.llm_weight
    soft = encoder is None or _stays(encoder, threshold)
    question = _stays(llm, threshold) if llm is not None else question_by_default or not soft
    if soft or question:
        return soft, question
    if encoder == llm:
        raise InputError(
            _(
                "without the soft prompt and without the question in the prompt there is no question left: "
                "give one of the weights at least {threshold}"
            ).format(threshold=f"{threshold:g}")
        )
    return (encoder or 0.0) > (llm or 0.0), (llm or 0.0) > (encoder or 0.0)


def steer(
    rows: Floats | None,
    prompt: Floats | None,
    opinion: Opinion | None,
    wish: Wish,
    threshold: float,
    sources: tuple[bool, bool],
) -> Steered:
    """Weigh the sources and leave out what is filtered.

    `rows` (n + 1, d): the graph's soft prompt, the boundary row last; None where `sources` has none. `prompt` (m, d): the
    LLM's embeddings of the prompt; needed where it may get a weight other than 1. `sources` comes from `wished_sources`.
    """
    soft, question = filtered(opinion, wish, threshold, sources)
    both = soft and question
    encoder = _weight(wish.encoder_weight, opinion.encoder_weight if opinion is not None and both else None)
    llm = _weight(wish.llm_weight, opinion.llm_weight if opinion is not None and both else None)
    weighted = None
    if soft:
        assert rows is not None
        weighted = rows if (encoder == 1).all() else np.concatenate([rows[:-1] * encoder, rows[-1:]])
    prompt_rows = None
    if question and not (llm == 1).all():
        assert prompt is not None
        prompt_rows = (prompt * llm).astype(np.float32)
    return Steered(
        soft_prompt=weighted,
        prompt=prompt_rows,
        question=question,
        encoder_weight=_mean(wish.encoder_weight, encoder) if soft else 0.0,
        llm_weight=_mean(wish.llm_weight, llm) if question else 0.0,
    )


def filtered(opinion: Opinion | None, wish: Wish, threshold: float, sources: tuple[bool, bool]) -> tuple[bool, bool]:
    """Which sources stay, once the gate has been heard too: (soft prompt, question)."""
    soft, question = sources
    if opinion is None or not (soft and question):
        return sources  # a source that is alone is not weighed
    encoder = _mean(wish.encoder_weight, opinion.encoder_weight)
    llm = _mean(wish.llm_weight, opinion.llm_weight)
    if not _stays(encoder, threshold) and not _stays(llm, threshold):
        return encoder > llm, llm >= encoder
    return _stays(encoder, threshold), _stays(llm, threshold)


def _stays(weight: float, threshold: float) -> bool:
    return weight > 0 and weight >= threshold


def _mean(wished: float | None, weight: Floats) -> float:
    return float(weight.mean()) if wished is None else float(wished)


def _weight(wished: float | None, weight: Floats | None) -> Floats:
    if wished is not None:
        return np.full((1, 1), wished, dtype=np.float32)
    return np.ones((1, 1), dtype=np.float32) if weight is None else weight


def left_out(opinion: Opinion, threshold: float) -> Source | None:
    """Which source the gate itself filters, if any."""
    soft, question = filtered(opinion, Wish(), threshold, (True, True))
    return None if soft and question else "question" if soft else "soft prompt"


def named_distribution(opinion: Opinion, gate: GateInfo) -> dict[str, float]:
    """The language distribution by code, the likeliest first; without what rounds to nothing."""
    pairs = sorted(zip(gate.names, opinion.language.tolist(), strict=True), key=lambda pair: -pair[1])
    return {name: value for name, value in pairs if not math.isclose(value, 0.0, abs_tol=1e-6)}
