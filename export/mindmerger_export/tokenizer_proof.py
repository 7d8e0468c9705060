"""Does llama.cpp cut text as transformers does? Proved on text in 50 languages and on what is hard for tokenizers.

One wrong name in a GGUF gives other ids for some text, without any error: the LLM just understands it worse. So every
export compares the ids themselves. What this module does not know: where tokenizers come from.
"""

from __future__ import annotations

import ctypes
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindmerger.errors import CheckpointError, ModelError
from mindmerger.llama import backend
from mindmerger_export.llm_tokenizer import Vocabulary
from mindmerger_export.samples import QUESTIONS, SENTENCES

_HARD: tuple[str, ...] = (
    "I'm sure they've said we'll go, it's Tom's; HE'S, I'D, WE'LL, DON'T, o'clock 'tis",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 50% 1/2 ½ ² ³ ₄ ٣٤٥ १२३ ৪৫৬ 一二三 Ⅻ ①",
    "f(x) = a*x**2 + b; if (y != 0) { return x/y; } // comment\n\tfor i in range(10):\n\t\tprint(i)\n\n\n",
    "Hello   world    with  spaces \t tabs\t\tand\nnew\n\nlines\r\nand \n mixed \r\n \t end   ",
    "a\u00a0b\u2009c\u3000d\u2028e\u2029f\u0085g\u200bh\ufeffi\u00adj",
    "\x01\x02\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x1f\x7f\x80\x9f",
    "😀😃 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇰🇪🇧🇩 ❤️ ☃︎ 🧑🏿‍🚀 1️⃣ ©®™",
    "café naïve Ångström Đặng Thị Huyền ﬁne ﬀ ① ℃ Ω K ſ ẞ ß İ ı Ǆ ǅ",
    "שָׁלוֹם עֲלֵיכֶם السَّلامُ عَلَيْكُم \u200fabc\u200e नमस्ते क्षत्रिय ประเทศไทย ພາສາລາວ မြန်မာ ភាសាខ្មែរ",
    "𠀀𠮷野家 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙 𐌰𐌱𐌲 𓀀 \U0010ffff \ue000 \ufffd",
    "ᠮᠣᠩᠭᠣᠯ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ꦗꦮ ⵜⴰⵎⴰⵣⵉⵖⵜ ߒߞߏ ދިވެހި བོད་སྐད ꙮ ᚠᚢ",
    "<|im_end|> <|endoftext|> <s> </s> <bos> <eos> <start_of_turn> [INST] <<SYS>> <unk> <0x0A> Ġ Ċ [PAD1]",
    "https://example.org/a?b=c&d=e#f user@example.com $12.50 €3 £4 ¥5 #tag @name C++ C# ... --- === *** ___",
    "x" * 70 + " " * 20 + "y" + "\n" * 9 + "!?" * 12 + "ааа" * 9,
    "WORDS In MiXeD CaSe camelCaseWords snake_case_words kebab-case ALLCAPS",
    ".",
    "\n",
)
# llama.cpp puts a space before a text that has one already; transformers leaves it. No prompt begins so unless its template
# does, hence this is told apart.
_LEADING = (" x", "  two spaces first", "\n\nlines first")


# Tokens spelled in a text that are tried; Gemma has hundreds.
_SPELLED = 60


@dataclass(frozen=True)
class Proof:
    """`texts` compared; the first of those with other ids, as (text, wanted ids, found ids).

    `spelled`: added tokens that are a token for transformers when somebody writes them in a text, and text for llama.cpp,
    which lets nobody end an answer so. `leading_space`: whether texts that begin with a space have the same ids too.
    """

    pre: str
    texts: int
    different: int
    example: tuple[str, list[int], list[int]] | None
    spelled: tuple[str, ...]
    leading_space: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "pre": self.pre,
            "texts": self.texts,
            "different": self.different,
            "spelled_tokens_that_are_text": list(self.spelled),
            "leading_space": self.leading_space,
        }


def probes() -> list[str]:
    """The texts, none of which begins with a space.

    SentencePiece writes a space as ▁ and cannot tell it from the character itself, so there is none in the texts.
    """
    return [*SENTENCES.values(), *(question for _, question in QUESTIONS), *_HARD]


def spelled_probes(vocabulary: Vocabulary) -> dict[str, str]:
    """Added token → a text in which it is spelled."""
    visible = (token for token in set(vocabulary.spelled) if token.strip(" \n\t▁") and "\0" not in token)
    some = sorted(visible, key=lambda token: (-len(token), token))[:_SPELLED]
    return {token: f"a{token}b {token} c{token}" for token in some}


def prove(gguf: Path, encode: Callable[[str], list[int]], vocabulary: Vocabulary, pre: str) -> Proof:
    """Compare the ids of every probe, through the vocabulary of `gguf` and by `encode`."""
    from gguf import TokenType

    def form(text: str) -> str:
        return unicodedata.normalize("NFC", text) if vocabulary.normaliser == "NFC" else text

    different: list[tuple[str, list[int], list[int]]] = []
    spelled: list[str] = []
    texts = [form(text) for text in probes()]
    tokens = spelled_probes(vocabulary)
    with native_tokeniser(gguf) as tokenise:
        for text in texts:
            wanted, found = encode(text), tokenise(text)
            if wanted != found:
                different.append((text, wanted, found))
        for token, text in tokens.items():
            wanted, found = encode(text), tokenise(text)
            if any(vocabulary.types[index] == TokenType.CONTROL for index in found):
                different.append((text, wanted, found))
            elif wanted != found:
                spelled.append(token)
        leading = all(encode(text) == tokenise(text) for text in _LEADING)
    example = different[0] if different else None
    return Proof(pre, len(texts) + len(tokens), len(different), example, tuple(spelled), leading)


def choose(
    vocabulary: Vocabulary,
    write: Callable[[Path, str], None],
    encode: Callable[[str], list[int]],
    folder: Path,
    strict: bool = True,
) -> Proof:
    """The name of the splitting with which llama.cpp gives the ids of `encode` on every probe.

    `write` writes a GGUF with the vocabulary alone and the name that it is given. Raises CheckpointError when no name does;
    without `strict`, the nearest one is taken and the proof says how many texts differ.
    """
    proofs: list[Proof] = []
    path = folder / ".vocabulary.gguf"
    try:
        for name in vocabulary.pre:
            write(path, name)
            proof = prove(path, encode, vocabulary, name)
            if not proof.different:
                return proof
            proofs.append(proof)
    finally:
        path.unlink(missing_ok=True)
    best = min(proofs, key=lambda proof: proof.different)
    if strict:
        raise CheckpointError(_sentence(best, vocabulary))
    return best


def _sentence(proof: Proof, vocabulary: Vocabulary) -> str:
    assert proof.example is not None
    text, wanted, found = proof.example
    place = next(
        (place for place, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), min(len(wanted), len(found))
    )
    kinds = "" if vocabulary.model == "llama" else f" (splittings tried: {', '.join(vocabulary.pre)})"
    return (
        f"llama.cpp does not cut text as the LLM's tokenizer does{kinds}: {proof.different} of {proof.texts} texts get other "
        f"ids with {proof.pre}, {text[:40]!r} from token {place} on ({wanted[place : place + 3]} there, "
        f"{found[place : place + 3]} here); give a ready GGUF with --llm-gguf, or accept it with --llm-tokenizer warn"
    )


@contextmanager
def native_tokeniser(gguf: Path) -> Iterator[Callable[[str], list[int]]]:
    """llama.cpp's tokenizer of a GGUF, its weights not loaded: no BOS, special tokens in the text are text."""
    native = backend()
    parameters = native.llama_model_default_params()
    parameters.vocab_only = True
    model = native.llama_model_load_from_file(str(gguf).encode("utf-8", "surrogateescape"), parameters)
    if not model:
        raise ModelError(f"llama.cpp cannot read the tokenizer of {gguf}: report this with the LLM's name")
    try:
        yield lambda text: _tokenise(native, native.llama_model_get_vocab(model), text)
    finally:
        native.llama_model_free(model)


def _tokenise(native: Any, vocab: Any, text: str) -> list[int]:
    data = text.encode("utf-8")
    room = len(data) + 8
    buffer = (ctypes.c_int32 * room)()
    count = native.llama_tokenize(vocab, data, len(data), buffer, room, False, False)
    if count < 0:
        raise ModelError("llama.cpp cannot tokenise a text of the proof")
    return list(buffer[:count])
