"""Which questions are asked, and in which order.

Evenly spread over each language's file, and in turn over the languages, so that a run that was stopped is a smaller balanced
sample and not half of the languages. What this module does not know: models, files.
"""

from __future__ import annotations

from collections.abc import Sequence

from mindmerger.errors import DataError
from mindmerger_train.data.benchmarks import Question


def select(questions: Sequence[Question], languages: Sequence[str] = (), limit: int | None = None) -> list[Question]:
    """The questions to ask, in order. `limit` is per language. Raises DataError for a language that the file does not have."""
    by_language: dict[str, list[Question]] = {}
    for question in questions:
        by_language.setdefault(question.language, []).append(question)
    missing = [language for language in languages if language not in by_language]
    if missing:
        raise DataError(
            f"there are no questions in {', '.join(missing)}: this benchmark has {', '.join(sorted(by_language))}"
        )
    turns: list[tuple[float, str, Question]] = []
    for language, own in by_language.items():
        if languages and language not in languages:
            continue
        count = min(limit or len(own), len(own))
        for place, number in enumerate(halving(count)):
            turns.append(((place + 1) / count, language, own[number * len(own) // count]))
    return [question for _, _, question in sorted(turns, key=lambda turn: turn[:2])]


def halving(count: int) -> list[int]:
    """0 … count − 1 in an order whose every beginning is spread over the whole: bits reversed."""
    bits = max(1, (count - 1).bit_length())
    return [i for i in (int(f"{place:0{bits}b}"[::-1], 2) for place in range(2**bits)) if i < count]
