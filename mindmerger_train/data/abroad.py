"""MAWPS and ASDiv in other languages, for which nobody has translated them: by a translator, or word by word in English order.

Both are read by the encoder beside texts that people wrote; solutions stay English. What this module does not know: how
either works (translator.py, lexicon.py).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mindmerger.errors import DataError
from mindmerger_train.data import sources
from mindmerger_train.data.lexicon import english_words, lexicon, mixed
from mindmerger_train.data.problems import LANGUAGES
from mindmerger_train.data.problems import generate as generate_problems
from mindmerger_train.data.sources import Example
from mindmerger_train.data.tidy import as_written
from mindmerger_train.data.translator import translated

# Stories (data/problems) that stand in as parallel text where GSM8K is not translated; letters in the longest sentence of news.
_STORIES, _NEWS = 4000, 160


def problems(
    path: Path, language: str, seed: int, variants: int, asides: float, near: float, allowed_bad: float
) -> list[Example]:
    """The English problems as people write them, other ones for each language that they are to be in."""
    own = seed + zlib.crc32(language.encode()) % 10_000
    return [
        Example("en", text := as_written(example.english), text, example.response, example.origin)
        for example in sources.mawps_asdiv(path, own, variants, asides, near, allowed_bad)
    ]


def parallel(folder: Path, language: str, seed: int, allowed_bad: float) -> list[tuple[str, str]]:
    """(text in `language`, the same in English) of the sets that `folder` has in it, and of stories."""
    examples: list[Example] = []
    if (folder / "gsm8k" / f"{language}.jsonl").exists():
        examples += sources.gsm8k(folder / "gsm8k", (language,), allowed_bad)
    elif language in LANGUAGES:
        examples += [
            Example(language, problem.query, problem.english) for problem in generate_problems(language, _STORIES, seed)
        ]
    if (folder / "tatoeba" / f"{language}.tsv").exists():
        examples += sources.tatoeba(folder / "tatoeba", (language,), allowed_bad)
    if (folder / "ntrex" / f"{language}.txt").exists():
        examples += sources.ntrex(folder / "ntrex", (language,), _NEWS, allowed_bad)
    return [(example.query, example.english) for example in examples]


def code_mixed(folder: Path, language: str, english: Sequence[Example], seed: int, allowed_bad: float) -> list[Example]:
    """`english` with words of `language` in them, by a dictionary made of the folder's parallel texts.

    Raises DataError when there are no parallel texts in the language.
    """
    if language == "en" or not (pairs := parallel(folder, language, seed, allowed_bad)):
        raise DataError(
            f"no parallel texts in {language!r} for code_mixed: {folder} has none in gsm8k/, tatoeba/ or ntrex/, and "
            "no stories are told both in it and in English"
        )
    wanted = set().union(*(english_words(problem.english) for problem in english))
    words = lexicon(pairs, wanted, language)
    generator = random.Random(f"{seed}/{language}")
    return [replace(problem, language=language, query=mixed(problem.english, words, generator)) for problem in english]


def translations(
    folder: Path, language: str, english: Sequence[Example], seed: int, allowed_bad: float
) -> list[Example]:
    """`english` translated by a program; those left out whose numbers did not come through."""
    texts = translated([problem.english for problem in english], language)
    return [
        replace(problem, language=language, query=text)
        for problem, text in zip(english, texts, strict=True)
        if text is not None
    ]
