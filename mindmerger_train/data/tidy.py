"""Questions of a set that was tokenised and put in lower case, as people write them.

What an LLM has learned from `danny had 3 books .` it does not wholly do for `Danny had 3 books.`: measured in docs/log.md.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_CAPITALS = Path(__file__).with_name("capitals.txt")
_WORD = re.compile(r"\b[a-z]+\b")
_START = re.compile(r"(^|[.?!]\s+)([a-z])")


@cache
def capitalised() -> frozenset[str]:
    """Words that have a capital wherever they stand, in lower case."""
    lines = _CAPITALS.read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def sentence_case(text: str) -> str:
    """A capital at the beginning of each English sentence."""
    return _START.sub(lambda match: match[1] + match[2].upper(), text)


def as_written(text: str) -> str:
    """`danny had 3 books . he did n't read .` → `Danny had 3 books. He didn't read.`"""
    text = re.sub(r" n't\b", "n't", text)
    text = re.sub(r"\s+([.,?!;:%'])", r"\1", text)
    text = re.sub(r"\$\s+", "$", re.sub(r"\s{2,}", " ", text)).strip()
    text = re.sub(r"\bi\b", "I", text)
    text = _WORD.sub(lambda match: match[0].capitalize() if match[0] in capitalised() else match[0], text)
    return sentence_case(text)
