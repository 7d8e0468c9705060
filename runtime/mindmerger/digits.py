"""Digits of every script as 0–9.

An English LLM of byte-level pieces has seen few ৪ or ๔ and counts badly with them; what they are worth is known exactly. The
encoder reads the question as it was written.
"""

from __future__ import annotations

import unicodedata

# Within numbers of Arabic script: decimal and thousands separator.
_SEPARATORS = {"\u066b": ".", "\u066c": ","}


def ascii_digits(text: str) -> str:
    """`text` with each of Unicode's decimal digits as 0–9, and the separators of Arabic numbers as `.` and `,`.

    As many characters as before. Superscripts, fractions and numerals that are words (三, Ⅻ) stay.
    """
    if text.isascii():
        return text
    return "".join(map(_ascii, text))


def _ascii(character: str) -> str:
    value = unicodedata.decimal(character, None)
    return _SEPARATORS.get(character, character) if value is None else str(value)
