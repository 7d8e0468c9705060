"""Questions behind a veil: what the LLM is left with when it cannot read a language."""

from __future__ import annotations

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from mindmerger_train.veil import veiled

STORY = "Tom has 12 apples, and Ann has 1,250. How many more does Ann have?"


def test_numbers_and_punctuation_stay_where_they_are_and_most_words_go():
    gone = 0
    for seed in range(200):
        text = veiled(STORY, random.Random(seed))
        assert re.findall(r"[\d,.?]+", text) == re.findall(r"[\d,.?]+", STORY)
        assert len(text.split()) == len(STORY.split())
        gone += sum(a != b for a, b in zip(text.split(), STORY.split(), strict=True))
    words = sum(not any(letter.isdigit() for letter in word) for word in STORY.split())
    assert 0.6 < gone / (200 * words) < 0.95


def test_many_scripts_one_in_a_text():
    texts = [veiled("apples and pears and plums and figs", random.Random(seed)) for seed in range(300)]
    scripts = [{letter > "\u024f" for word in text.split() if word not in STORY for letter in word} for text in texts]
    assert sum(True in script for script in scripts) > 60 and sum(False in script for script in scripts) > 60
    assert any("\u0e00" < letter < "\u0e7f" for text in texts for letter in text)


@given(st.text(), st.integers())
def test_any_text_keeps_its_words_with_digits(text, seed):
    assert [word for word in veiled(text, random.Random(seed)).split() if any(letter.isdigit() for letter in word)] == [
        word for word in text.split() if any(letter.isdigit() for letter in word)
    ]
