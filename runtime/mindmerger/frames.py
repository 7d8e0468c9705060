"""The language of a question, for encoders that are told it: which ids stand around its own (NLLB, M2M100).

The bundle's tokenizer adds the frame of the language that stands in for an unknown one; here another takes its place.
Knows nothing about tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mindmerger.errors import InputError
from mindmerger.manifest import UNKNOWN_LANGUAGE, FrameInfo

DEFAULT = ""
"""The key of the frame for a text whose language is not known."""


def framed(ids: Sequence[int], frames: Mapping[str, FrameInfo], language: str | None) -> list[int]:
    """`ids`, which stand in the default frame, in the frame of `language` (None: unknown). Without frames, as they are."""
    if not frames or language in (None, UNKNOWN_LANGUAGE, DEFAULT):
        return list(ids)
    default, frame = frames[DEFAULT], frames[check_framed(language, frames)]
    own = ids[len(default.before_ids) : len(ids) - len(default.after_ids)]
    return [*frame.before_ids, *own, *frame.after_ids]


def check_framed(language: object, frames: Mapping[str, FrameInfo]) -> str:
    """`language`, if the encoder has a frame for it. Raises InputError, which names those that it has."""
    if not isinstance(language, str):
        raise InputError(f"language must be a code such as 'sw', not {type(language).__name__}")
    if language not in frames and language != UNKNOWN_LANGUAGE:
        raise InputError(
            f"the encoder of this bundle has no token for the language {language[:40]!r}: give one of "
            f"{', '.join(sorted(code for code in frames if code != DEFAULT))}, or {UNKNOWN_LANGUAGE!r}"
        )
    return language
