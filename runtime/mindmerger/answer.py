"""The final answer of a generated text, as the papers count it.

GSM8K ends a solution with `#### 42`. Where that is present, the number after the last `####` is the answer, with its
sign if it has one. Otherwise it is the last number in the text, by the papers' rule: commas between digits removed, the
last match of an *unsigned* decimal number (a hyphen before it is more often a dash or a minus in an expression).
"""

from __future__ import annotations

import re

_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9])")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_MARKED = re.compile(r"[-−]?\s?[$€£]?\s?([0-9]+(?:\.[0-9]+)?)")
_MARK = "####"


def final_answer(text: str) -> str | None:
    """The final answer as a plain number (`1234.5`), or None when the text has no number."""
    text = _COMMA.sub("", text)
    _, mark, marked = text.rpartition(_MARK)
    if mark and (match := _MARKED.search(marked)):
        return ("-" if match[0][0] in "-−" else "") + match[1]
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None
