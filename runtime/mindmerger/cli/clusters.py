"""Text that arrives in pieces, let through in whole grapheme clusters.

A token may end between a letter and its vowel sign, between the two halves of a flag, or in the middle of a Devanagari
conjunct. A terminal that is given the halves apart draws them apart, and some never repair it. The rules are those of
Unicode Standard Annex #29 for extended grapheme clusters, on the safe side where the standard library does not know a
property: what could belong to the cluster before it is kept together with it.

Knows nothing about terminals or models.
"""

from __future__ import annotations

import unicodedata

# A cluster of text that means something has far fewer; without a limit, one made of marks would be held for ever.
_LONGEST = 64

_MARKS = frozenset({"Mn", "Mc", "Me", "Cf", "Cn"})  # Cn: perhaps a mark in a Unicode newer than this Python's
_BREAKS = frozenset({"Cc", "Zl", "Zp"})
# Extend and SpacingMark that are no marks by category: half-width voicing, emoji skin tones, Thai and Lao am.
_EXTEND = frozenset("\uff9e\uff9f\u0e33\u0eb3") | {chr(code) for code in range(0x1F3FB, 0x1F400)}
# Prepend that are no format characters by category.
_PREPEND = frozenset("\u0d4e\U000111c2\U000111c3\U000113d1\U0001193f\U00011941\U00011a3a\U00011d46\U00011f02") | {
    chr(code) for code in range(0x11A84, 0x11A8A)
}
_VIRAMA = 9  # the canonical combining class


class ClusterBuffer:
    """Holds back the last cluster until what follows shows that it is complete."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Take `text`; return what can be shown now."""
        text = self._held + text
        place = len(text)
        # a line end closes its cluster, so a finished line is never held back
        if not text.endswith("\n"):
            place -= 1
            while place > 0 and len(text) - place < _LONGEST and joined(text, place):
                place -= 1
            if len(text) - place >= _LONGEST:
                place = len(text)
        self._held = text[max(place, 0) :]
        return text[: max(place, 0)]

    def rest(self) -> str:
        """What is still held, at the end of the text."""
        held, self._held = self._held, ""
        return held


def joined(text: str, place: int) -> bool:
    """Whether the characters before and at `place` belong, or could belong, to one cluster."""
    before, after = text[place - 1], text[place]
    if before == "\r" and after == "\n":
        return True
    of_before, of_after = unicodedata.category(before), unicodedata.category(after)
    if of_before in _BREAKS or of_after in _BREAKS:
        return False
    if of_after in _MARKS or after in _EXTEND or of_before in ("Cf", "Cn") or before in _PREPEND:
        return True
    if _regional(before) and _regional(after):
        return _odd_run_of_regional(text, place)
    return _after_virama(text, place) or _hangul(before, after)


def _after_virama(text: str, place: int) -> bool:
    """Consonant, virama, consonant is one cluster; joiners and other marks may stand between."""
    for i in range(place - 1, max(place - _LONGEST, -1), -1):
        if unicodedata.combining(text[i]) == _VIRAMA:
            return True
        if unicodedata.category(text[i]) not in _MARKS:
            return False
    return False


def _regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _odd_run_of_regional(text: str, place: int) -> bool:
    count = 0
    while count < place and _regional(text[place - 1 - count]):
        count += 1
    return count % 2 == 1


def _hangul(before: str, after: str) -> bool:
    leading = "\u1100" <= before <= "\u115f" or "\ua960" <= before <= "\ua97c"
    follows = "\u1100" <= after <= "\u11ff" or "\ua960" <= after <= "\ua97c" or "\ud7b0" <= after <= "\ud7fb"
    syllable = "\uac00" <= before <= "\ud7a3" or "\u1160" <= before <= "\u11ff" or "\ud7b0" <= before <= "\ud7fb"
    return (leading and (follows or "\uac00" <= after <= "\ud7a3")) or (syllable and follows)
