"""From a question to the encoder's token ids: all checks on what a user typed are here.

Uses the `tokenizers` library on a file. The `transformers` classes ask the network in some versions, even for local
files, and take seconds to import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindmerger.errors import BundleError, InputError

# The longest pieces of multilingual vocabularies have 16 characters; a text above twice that for every token cannot
# fit, and tokenising it only to count would let a large input cost seconds.
_CHARACTERS_PER_TOKEN = 32


def check_question(question: object) -> str:
    """The question without surrounding white space; InputError unless it is text that can be encoded."""
    if not isinstance(question, str):
        raise InputError(f"the question must be text (str), not {type(question).__name__}")
    try:
        question.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the question is not valid Unicode (a lone surrogate or invalid UTF-8 at character {error.start}): "
            "check its encoding"
        ) from None
    if "\0" in question:
        raise InputError("the question contains a NUL character: give plain text")
    stripped = question.strip()
    if not stripped:
        raise InputError("the question is empty: give a question as text")
    return stripped


class QuestionTokenizer:
    """The encoder's tokenizer, with the limits of the encoder."""

    def __init__(self, path: Path, max_tokens: int, vocabulary: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises bare Exception
            raise BundleError(f"{path} is not a tokenizer ({error}): export the bundle again") from None
        # A file may have these on from training; here, a cut question would be answered as if it were whole.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_tokens = max_tokens
        self.vocabulary = vocabulary

    def check_length(self, question: str) -> None:
        """Refuse at once what cannot fit, however long it is."""
        if len(question) > _CHARACTERS_PER_TOKEN * self.max_tokens:
            raise InputError(
                f"the question has {len(question)} characters; this bundle reads at most {self.max_tokens} tokens "
                f"(about {4 * self.max_tokens} characters): shorten it"
            )

    def encode(self, question: str) -> list[int]:
        """The encoder's input ids, its special tokens included. `question` comes from `check_question`."""
        self.check_length(question)
        ids: list[int] = self._tokenizer.encode(question).ids
        if len(ids) > self.max_tokens:
            raise InputError(
                f"the question has {len(ids)} tokens; the encoder of this bundle reads at most {self.max_tokens}: "
                "shorten it"
            )
        if not ids:
            raise InputError("the question has no token that the encoder knows: give a question as text")
        if max(ids) >= self.vocabulary:
            raise BundleError(
                f"the tokenizer gives id {max(ids)} and the encoder has {self.vocabulary}: export the bundle again"
            )
        return ids
