"""From a question to the encoder's token ids: all checks on what a user typed are here.

Uses the `tokenizers` library on a file. The `transformers` classes ask the network in some versions, even for local
files, and take seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindmerger.errors import BundleError, InputError, MindMergerError
from mindmerger.i18n import _
from mindmerger.reclaim import give_memory_back
from mindmerger.unigram import UnigramTokenizer

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
            _(
                "the question is not valid Unicode (a lone surrogate or invalid UTF-8 at character "
                "{position}): check its encoding"
            ).format(position=error.start)
        ) from None
    if "\0" in question:
        raise InputError(_("the question contains a NUL character: give plain text"))
    stripped = question.strip()
    if not stripped:
        raise InputError(_("the question is empty: give a question as text"))
    return stripped


class QuestionTokenizer:
    """The encoder's tokenizer, with the limits of the encoder."""

    def __init__(self, path: Path, max_tokens: int, vocabulary: int) -> None:
        self.path = path
        self.max_tokens = max_tokens
        self.vocabulary = vocabulary
        self._encode: Callable[[str], list[int]] | None = self._load()

    def _load(self) -> Callable[[str], list[int]]:
        """What turns text into ids: with little memory for the kind of file that this is known to be exact for."""
        try:
            return UnigramTokenizer(self.path.read_bytes(), self._library).encode
        except BaseException as error:
            if not _is_failure(error):
                raise
            give_memory_back()  # another kind of file, or a damaged one: the library knows it, or says what is wrong
        tokenizer = self._library()

        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer.encode(text).ids
            return ids

        return encode

    def _library(self) -> Any:
        """The whole file in the library's own form."""
        from tokenizers import Tokenizer

        try:
            tokenizer: Any = Tokenizer.from_file(str(self.path))
        except BaseException as error:
            if not _is_failure(error):
                raise
            raise BundleError(
                _("{path} is not a tokenizer ({reason}): export the bundle again").format(path=self.path, reason=error)
            ) from None
        # A file may have these on from training; here, a cut question would be answered as if it were whole.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def release(self) -> None:
        """Free its tables until the next question."""
        self._encode = None
        give_memory_back()

    def check_length(self, question: str) -> None:
        """Refuse at once what cannot fit, however long it is."""
        if len(question) > _CHARACTERS_PER_TOKEN * self.max_tokens:
            raise InputError(
                _(
                    "the question has {count} characters; this bundle reads at most {max_tokens} tokens (about "
                    "{characters} characters): shorten it"
                ).format(count=len(question), max_tokens=self.max_tokens, characters=4 * self.max_tokens)
            )

    def encode(self, question: str) -> list[int]:
        """The encoder's input ids, its special tokens included. `question` comes from `check_question`."""
        self.check_length(question)
        encode = self._encode = self._encode or self._load()
        try:
            ids = encode(question)
        except BaseException as error:
            if isinstance(error, MindMergerError) or not _is_failure(error):
                raise
            raise BundleError(
                _("{path} cannot tokenise this question ({reason}): export the bundle again").format(
                    path=self.path, reason=error
                )
            ) from None
        if len(ids) > self.max_tokens:
            raise InputError(
                _(
                    "the question has {count} tokens; the encoder of this bundle reads at most {max_tokens}: shorten it"
                ).format(count=len(ids), max_tokens=self.max_tokens)
            )
        if not ids:
            raise InputError(_("the question has no token that the encoder knows: give a question as text"))
        if max(ids) >= self.vocabulary:
            raise BundleError(
                _("the tokenizer gives id {id} and the encoder has {vocabulary}: export the bundle again").format(
                    id=max(ids), vocabulary=self.vocabulary
                )
            )
        return ids


def _is_failure(error: BaseException) -> bool:
    """The Rust library raises bare Exception, and for its own defects a PanicException, which is none."""
    if isinstance(error, Exception):
        return not isinstance(error, MemoryError)
    return type(error).__name__ == "PanicException"
