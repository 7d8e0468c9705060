"""The final answer by the papers' rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindmerger.answer import final_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = 24\n#### 24", "24"),
        ("#### 1,234", "1234"),
        ("#### 1\n#### 2", "2"),
        ("#### $18.50 per day for 3 days", "18.50"),
        ("#### -5", "-5"),
        ("#### −5", "-5"),
        ("It is 10 - 3 = 7", "7"),
        ("that leaves -7", "7"),  # unsigned without the mark: the papers' rule
        ("He pays 1,250.75.", "1250.75"),
        ("first 3 then 4. #### none", "4"),
        ("no number", None),
        ("", None),
        ("####", None),
        ("৪২", None),  # the LLM writes ASCII digits
        ("1, 2, 3", "3"),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@given(st.text())
def test_any_text(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or float(answer) is not None
