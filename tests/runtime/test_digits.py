"""Digits of every script as 0–9, for the LLM alone."""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindmerger.digits import ascii_digits
from mindmerger.manifest import PromptInfo

PROMPT = PromptInfo("Question: {question}\nAnswer: 1\n", None, (2,), digits="ascii")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("রহিমের ৩৩টি বই আছে।", "রহিমের 33টি বই আছে।"),
        ("มี ๑๒ เล่ม", "มี 12 เล่ม"),
        ("१,२५० रुपये", "1,250 रुपये"),
        ("٣٫٥ و ١٬٠٠٠ و ۴۵", "3.5 و 1,000 و 45"),
        ("１２本と三本", "12本と三本"),
        ("x² + ½ = Ⅻ", "x² + ½ = Ⅻ"),
        ("15 + 27", "15 + 27"),
    ],
)
def test_digits_of_a_script(text: str, read: str) -> None:
    assert ascii_digits(text) == read


@given(st.text())
def test_nothing_else_changes(text: str) -> None:
    read = ascii_digits(text)
    assert len(read) == len(text) and ascii_digits(read) == read
    for before, after in zip(text, read, strict=True):
        assert before == after or unicodedata.decimal(before, None) == int(after) or before in "\u066b\u066c"


def test_every_decimal_digit_that_unicode_has() -> None:
    digits = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.decimal(chr(code), None) is not None]
    assert len(digits) > 600
    assert all(ascii_digits(digit) == str(unicodedata.decimal(digit)) for digit in digits)


def test_a_prompt_gives_the_llm_digits_it_knows() -> None:
    assert PROMPT.render("৪ + ৫?") == "Question: 4 + 5?\nAnswer: 1\n"
    assert PROMPT.ids("৪ + ৫?", lambda text: [ord(c) for c in text]) == [ord(c) for c in PROMPT.render("4 + 5?")]
    framed = replace(PROMPT, before_ids=(7,), after_ids=(8,))
    assert framed.ids("৪", lambda text: [ord(c) for c in text]) == [7, ord("4"), 8]


def test_a_prompt_that_says_nothing_gives_them_as_they_were_written() -> None:
    assert replace(PROMPT, digits=None).render("৪") == "Question: ৪\nAnswer: 1\n"
