"""What counts as right, exactly as in the papers (docs/method.md, "Decoding and scoring").

* Mathematics: commas between digits are removed, the last *unsigned* number of the output counts, 0 where there is none; the
  target is read by the same rule; both are compared as floats. So −3 equals 3, and "#### 5 apples, 2 each" answers 2. The
  runtime's `final_answer` is stricter on the form and keeps the sign: it is what users see, this is what papers report.
* Classification: the stripped output is the target, letter by letter.

What this module does not know: where questions come from, who answered them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mindmerger.errors import DataError

CLASSIFICATION = ("xcsqa", "xnli")

# \d, as theirs: decimal digits of every script, which float() reads too.
_COMMA = re.compile(r"(\d),(\d)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Score:
    """`predicted` is what was read out of the output: a number (0 where there was none) or the stripped text."""

    predicted: float | str
    right: bool


def last_number(text: str) -> float:
    """The last unsigned number of `text`, 0.0 where there is none."""
    numbers = _NUMBER.findall(_COMMA.sub(r"\1\2", text))
    return float(numbers[-1]) if numbers else 0.0


def score(kind: str, output: str, target: str) -> Score:
    """Whether `output` gives `target`, by the rule of the benchmark `kind`.

    Question/answer files (`qa`) follow the rule of mathematics where the target is a number or a solution that ends in
    GSM8K's `#### number`, else that of classification.
    Raises DataError for a mathematical target without a number, which could only be "right" by having no answer.
    """
    if kind in CLASSIFICATION or (kind == "qa" and not is_number(target)):
        predicted = output.strip()
        return Score(predicted, predicted == target.strip())
    if not _NUMBER.search(target):
        raise DataError(f"the answer {target[:60]!r} of a question of kind {kind!r} has no number: correct the file")
    number = last_number(output)
    return Score(number, number == last_number(target))


def is_number(target: str) -> bool:
    """Whether a target is a number (thousands commas and a sign allowed) and nothing else, or ends in `#### number`."""
    answer = target.rpartition("####")[2]
    return re.fullmatch(r"[-+−]?\d+(?:,\d{3})*(?:\.\d+)?", answer.strip()) is not None
