"""A small dictionary out of texts that say the same in English and in another language, and English texts mixed with it.

There are thousands of short English word problems and none in most languages, but there are parallel texts. A word goes with
the unit of the other language that stands in the same texts: the φ coefficient of the two (Gale and Church 1991, Identifying
word correspondences in parallel texts). English questions whose words are replaced by it keep English order and grammar; that
a model which learns from them reads the other language better is Qin et al. 2020, CoSDA-ML. What this module does not know:
files, problems, solutions.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Set

# Languages that write no spaces between words, and the longest run of letters that is looked at as a word of theirs.
_RUNS = {"ja": 5, "km": 8, "lo": 8, "my": 8, "th": 8, "zh": 5}
_ENGLISH = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
# English words that other languages have no single word for, or put elsewhere.
_FUNCTION = """a an and are as at be been but by can could did do does for from had has have he her his i if in into is it its
me my not of on or our she so than that the their them then there they this to us was we were will with would you your"""
FUNCTION_WORDS = frozenset(_FUNCTION.split())
# Two words that are one thing.
_PAIRS = "how many,how much,more than,fewer than,less than,each day,each other,in all,at first,in total"
PAIRS = frozenset(_PAIRS.split(","))
# Rarer together than so: chance.
_TOGETHER, _LEAST = 3, 0.3
# Of units that go nearly as well with a word the longest: `wie viele` rather than `viele`.
_NEARLY = 0.93
# A third of the texts keeps two fifths of the words that could be replaced: people mix so, too.
_SHARES = (0.6, 1.0, 1.0)


def english_words(text: str) -> set[str]:
    """The words of an English text in lower case, and those pairs of them that are in `PAIRS`."""
    words = [match[0].lower() for match in _ENGLISH.finditer(text)]
    return {*words, *(pair for pair in map(" ".join, itertools.pairwise(words)) if pair in PAIRS)}


def _is_mark(letter: str) -> bool:
    return letter in "ะาำๅຳ" or unicodedata.category(letter).startswith("M")


def units(text: str, language: str) -> set[str]:
    """What may be a word of `text`: its words and pairs of them; where no spaces are written, its short runs of letters."""
    letters = "".join(letter if letter.isalpha() or _is_mark(letter) else " " for letter in text.lower())
    words = letters.split()
    longest = _RUNS.get(language)
    if longest is None:
        return {*words, *map(" ".join, itertools.pairwise(words))}
    return {
        word[start:end]
        for word in words
        for start in range(len(word))
        for end in range(start + 1, min(start + longest, len(word)) + 1)
        # A vowel sign belongs to the letter before it.
        if not _is_mark(word[start]) and (end == len(word) or not _is_mark(word[end]))
    }


def lexicon(pairs: Iterable[tuple[str, str]], words: Set[str], language: str) -> dict[str, str]:
    """`words` (English, in lower case) → what goes with each in `language`, for those of which `pairs` say enough.

    `pairs` are (text in `language`, the same in English).
    """
    rows = [(units(text, language), (english_words(english) & words) - FUNCTION_WORDS) for text, english in pairs]
    of_unit = Counter(unit for there, _ in rows for unit in there)
    of_word = Counter(word for _, wanted in rows for word in wanted)
    # Most runs of letters stand in one text only: without them the next count takes a fifth of the time.
    often = {unit for unit, n in of_unit.items() if n >= _TOGETHER}
    together: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for there, wanted in rows:
        there &= often
        for word in wanted:
            together[word].update(there)
    found = {}
    for word, counts in together.items():
        n = of_word[word]
        phi = {unit: _phi(both, n, of_unit[unit], len(rows)) for unit, both in counts.items() if both >= _TOGETHER}
        best = max(phi.values(), default=0.0)
        if best >= _LEAST:
            found[word] = max((len(unit), unit) for unit, value in phi.items() if value > _NEARLY * best)[1]
    return found


def _phi(both: int, one: int, other: int, texts: int) -> float:
    """φ of two things that are in `one` and `other` of `texts` texts, and in `both` together: 1 where always together.

    What is in every text goes with nothing, where the Dice coefficient would have it go with every frequent word.
    """
    spread = one * (texts - one) * other * (texts - other)
    return (texts * both - one * other) / math.sqrt(spread) if spread else 0.0


def mixed(text: str, words: dict[str, str], generator: random.Random) -> str:
    """An English text with the words that `words` has replaced, most of them; names and the beginnings of sentences stay."""
    share = generator.choice(_SHARES)
    matches = list(_ENGLISH.finditer(text))
    parts, at, index = [], 0, 0
    while index < len(matches):
        first, last = matches[index], matches[index]
        index += 1
        if index < len(matches) and text[first.end() : matches[index].start()] == " ":
            pair = text[first.start() : matches[index].end()].lower()
            if pair in words:
                last = matches[index]
                index += 1
        source = text[first.start() : last.end()]
        known = words.get(source.lower()) if source.islower() or " " in source else None
        if known is not None and generator.random() < share:
            parts += [text[at : first.start()], known.capitalize() if source[0].isupper() else known]
            at = last.end()
    return "".join([*parts, text[at:]])
