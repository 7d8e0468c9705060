"""Which pieces of a vocabulary a language needs where no text is given: by its script, or by how its letters follow each other.

A script that few languages share is kept whole: it costs a few thousand pieces. Latin has 110,000 of XLM-R's pieces and
Cyrillic 32,000, so for languages written in these a packaged table says which three letters in a row are how frequent
(`letters.xz`, made by tests/bench/letter_table.py): a piece is at most as frequent as its rarest three letters. The tokenizer's
own score breaks the near ties. It is a guess, and generalises where a list of words of the same size would not; what it reaches
is in docs/export.md. What this module does not know: tokenizers' files, what happens with the pieces.
"""

from __future__ import annotations

import functools
import lzma
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mindmerger.errors import InputError

TABLE = Path(__file__).with_name("letters.xz")
SPACE = "▁"
# Pieces that a language with a table keeps, and what all of them may keep together where that gives each of them more. So
# ten languages stay within half of e5's weights, and one or two are covered better.
EACH, ALL = 22_000, 60_000
# Weight of the tokenizer's score (log probability over all languages) beside the table's log frequency. Measured on es, de,
# ru, sw.
_SCORE = 0.5

# By the first word of their characters' Unicode names, as prune.py has it.
SCRIPTS: dict[str, tuple[str, ...]] = {
    code: tuple(scripts.split())
    for scripts, codes in {
        "ARABIC": "ar fa ku ps sd ug ur",
        "ARMENIAN": "hy",
        "BENGALI": "as bn",
        "CJK IDEOGRAPHIC BOPOMOFO": "zh",
        "CJK IDEOGRAPHIC HIRAGANA KATAKANA": "ja",
        "CYRILLIC": "be bg kk ky mk mn ru sr tg uk",
        "DEVANAGARI": "hi mr ne sa",
        "ETHIOPIC": "am ti",
        "GEORGIAN": "ka",
        "GREEK": "el",
        "GUJARATI": "gu",
        "GURMUKHI": "pa",
        "HANGUL": "ko",
        "HEBREW": "he yi",
        "KANNADA": "kn",
        "KHMER": "km",
        "LAO": "lo",
        "LATIN": "af az br bs ca cs cy da de en eo es et eu fi fr fy ga gd gl ha hr hu id ig is it jv la lt lv mg ms mt nb nl "
        "nn no om pl pt ro sk sl so sq su sv sw tl tr uz vi xh yo zu",
        "MALAYALAM": "ml",
        "MYANMAR": "my",
        "ORIYA": "or",
        "SINHALA": "si",
        "TAMIL": "ta",
        "TELUGU": "te",
        "THAI": "th",
    }.items()
    for code in codes.split()
}
LARGE = ("LATIN", "CYRILLIC")
_OTHER = re.compile(r"[\W\d_]+")

Levels = dict[str, int]
"""Three letters in a row (a space: where a word begins or ends) → log2 of how many of a million they are."""


@functools.cache
def script_of(character: str) -> str:
    """The first word of the character's Unicode name: near enough to its script (LATIN, CJK, HANGUL …)."""
    return unicodedata.name(character, "").split(" ")[0].split("-")[0]


def plain(text: str) -> str:
    """`text` in small letters, with a space for whatever is no letter."""
    return _OTHER.sub(" ", unicodedata.normalize("NFKC", text).lower())


def threes(text: str) -> Iterable[str]:
    """All that three characters in a row are of a plain text."""
    return (text[start : start + 3] for start in range(len(text) - 2))


@functools.cache
def table() -> dict[str, Levels]:
    """The packaged table: language → levels."""
    found: dict[str, Levels] = {}
    for line in lzma.decompress(TABLE.read_bytes()).decode("utf-8").splitlines():
        code, level, run = line.split("\t")
        found.setdefault(code, {}).update({run[i : i + 3]: int(level) for i in range(0, len(run), 3)})
    return found


def check_known(languages: Sequence[str]) -> None:
    """Raises InputError for languages whose script is not known here."""
    unknown = [code for code in languages if code not in SCRIPTS]
    if unknown:
        raise InputError(
            f"which letters {', '.join(unknown)} needs is not known: give text in it by --prune-text, or keep the encoder's "
            "vocabulary by --whole-vocabulary"
        )


def whole_scripts(languages: Sequence[str]) -> set[str]:
    """Scripts of which every piece is kept: all but those of languages that have a table."""
    return {script for code in languages if code not in table() for script in SCRIPTS[code]}


def needed(pieces: Sequence[tuple[str, float]], languages: Sequence[str]) -> npt.NDArray[np.float32]:
    """How much `languages` need each of `pieces` (text, score): +inf for pieces without letters and those of whole
    scripts, a rank (higher: more) for those that each language with a table needs most, −inf for all others.
    """
    check_known(languages)
    texts = [plain(piece.replace(SPACE, " ")) for piece, _ in pieces]
    scripts = [{script_of(letter) for letter in text if letter != " "} for text in texts]
    scores = np.array([score for _, score in pieces], dtype=np.float32)
    whole = whole_scripts(languages)
    found = np.full(len(pieces), -np.inf, dtype=np.float32)
    # A mark that stands alone (a vowel sign, a tone) has no letter, and belongs to its script all the same.
    found[[not kinds or kinds <= whole for kinds in scripts]] = np.inf
    large = np.flatnonzero([bool(kinds) and kinds <= set(LARGE) for kinds in scripts])
    tabled = [code for code in dict.fromkeys(languages) if code in table()]
    for code in tabled:
        levels = _with_twos(table()[code])
        rank = np.full(len(pieces), -np.inf, dtype=np.float32)
        for index in large:
            level = min((levels.get(three, -1) for three in threes(texts[index])), default=levels.get(texts[index], -1))
            if level >= 0:
                rank[index] = level * np.log(2) + _SCORE * scores[index]
        best = np.argsort(-rank, kind="stable")[: max(EACH, ALL // len(tabled))]
        found[best] = np.maximum(found[best], rank[best])
    return found


def _with_twos(levels: Levels) -> Levels:
    """With one and two letters in a row, which are as frequent as the most frequent three that hold them."""
    found = dict(levels)
    for three, level in levels.items():
        for part in (three[:2], three[1:], *three):
            found[part] = max(found.get(part, -1), level)
    return found
