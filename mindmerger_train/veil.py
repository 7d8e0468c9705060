"""Hide what an English question says behind words of no language, so that only its soft prompt tells.

A question in a language that the LLM cannot read is to it a row of strange words with numbers between them. `reason` trains on
English alone; a veiled question beside the soft prompt of the whole one teaches it what to take from which, without a word of
another language. What this module does not know: tokens, rows, stages.
"""

from __future__ import annotations

import random

# First and last letter of what words are made of, how many letters at most (outside Latin script an LLM's tokenizer takes up to
# three tokens for each), and how often.
_ALPHABETS: tuple[tuple[str, str, int, float], ...] = (
    ("a", "z", 6, 6.0),
    ("ß", "ÿ", 5, 1.0),
    ("а", "я", 5, 1.5),  # Cyrillic
    ("ا", "ي", 4, 0.7),  # Arabic
    ("अ", "ह", 3, 0.7),  # Devanagari
    ("অ", "হ", 3, 0.7),  # Bengali
    ("ก", "ฮ", 3, 0.7),  # Thai
    ("ぁ", "ん", 3, 0.7),  # Hiragana
    ("一", "鿋", 2, 0.7),  # Chinese
)
_ENDS = ".,;:?!"


def veiled(text: str, generator: random.Random) -> str:
    """`text` with most of its words replaced by random letters of one script; words with a digit and punctuation stay.

    Between half and all of the words are replaced, the share drawn for each text.
    """
    first, last, longest, _ = generator.choices(_ALPHABETS, [alphabet[3] for alphabet in _ALPHABETS])[0]
    share = generator.uniform(0.5, 1.2)
    words = []
    for word in text.split():
        if not any(letter.isdigit() for letter in word) and generator.random() < share:
            end = word[len(word.rstrip(_ENDS)) :]
            letters = (chr(generator.randint(ord(first), ord(last))) for _ in range(generator.randint(1, longest)))
            word = "".join(letters) + end
        words.append(word)
    return " ".join(words)
