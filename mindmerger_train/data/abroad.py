"""MAWPS and ASDiv in other languages, for which nobody has translated them: by a translator, or word by word in English order.

Both are read by the encoder beside texts that people wrote; solutions stay English. What this module does not know: how
either works (translator.py, lexicon.py).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from pathlib import Path

from mindmerger.errors import DataError
from mindmerger_train.data import sources
from mindmerger_train.data.languages import NAMES
from mindmerger_train.data.lexicon import english_words, lexicon, mixed
from mindmerger_train.data.problems import LANGUAGES
from mindmerger_train.data.problems import generate as generate_problems
from mindmerger_train.data.sources import Example
from mindmerger_train.data.tidy import as_written
from mindmerger_train.data.translator import translated

# Stories (data/problems) that stand in as parallel text where GSM8K is not translated; letters in the longest sentence of news.
_STORIES, _NEWS = 4000, 160


def _problems(path: Path, language: str, seed: int, variants: int, asides: float, allowed_bad: float) -> list[Example]:
    """The problems as people write, other ones for each language."""
    own = seed + zlib.crc32(language.encode()) % 10_000
    return [
        Example("en", text := as_written(example.english), text, example.response, example.origin)
        for example in sources.mawps_asdiv(path, own, variants, asides, allowed_bad)
    ]


def parallel(folder: Path, language: str, seed: int = 1, allowed_bad: float = 0.01) -> list[tuple[str, str]]:
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


def code_mixed(
    folder: Path,
    languages: Sequence[str],
    path: str = "mawps_asdiv/train.csv",
    variants: int = 1,
    asides: float = 0.0,
    seed: int = 0,
    allowed_bad: float = 0.01,
) -> list[Example]:
    """English problems with the words of `languages` in them, by dictionaries made of the folder's parallel texts.

    Raises DataError when there are no parallel texts in a language.
    """
    examples = []
    for language in languages:
        if language == "en" or not (pairs := parallel(folder, language, seed, allowed_bad)):
            known = ", ".join(sorted(set(NAMES.values()) - {"en"}))
            raise DataError(f"no parallel texts in {language!r} for code_mixed; languages that sets may have: {known}")
        problems = _problems(folder / path, language, seed, variants, asides, allowed_bad)
        wanted = set().union(*(english_words(problem.english) for problem in problems))
        words = lexicon(pairs, wanted, language)
        generator = random.Random(f"{seed}/{language}")
        examples += [
            Example(
                language, mixed(problem.english, words, generator), problem.english, problem.response, problem.origin
            )
            for problem in problems
        ]
    return examples


def translations(
    folder: Path,
    languages: Sequence[str],
    path: str = "mawps_asdiv/train.csv",
    variants: int = 1,
    asides: float = 0.0,
    seed: int = 0,
    allowed_bad: float = 0.01,
) -> list[Example]:
    """The problems in `languages`, translated by a program; those left out whose numbers did not come through."""
    examples = []
    for language in languages:
        problems = _problems(folder / path, language, seed, variants, asides, allowed_bad)
        texts = translated([problem.english for problem in problems], language)
        examples += [
            Example(language, text, problem.english, problem.response, problem.origin)
            for problem, text in zip(problems, texts, strict=True)
            if text is not None
        ]
    return examples
