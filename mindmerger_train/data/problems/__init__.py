"""Word problems without end: stories of a few quantities, any of which may be asked for, with worked solutions.

`generate` is all that others need. How it is done: `quantities` (rules and how to solve), `story` (what is told and asked),
`template` (wordings with choices), `words` and `english` (the language).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from mindmerger.errors import DataError
from mindmerger_train.data.problems import english
from mindmerger_train.data.problems.quantities import text_of
from mindmerger_train.data.problems.story import plan, stories

EXTRA = 0.22
DISTRACTORS = 0.22


@dataclass(frozen=True)
class Problem:
    """One problem: its question in `language` and in English, the worked solution in English, and the answer."""

    language: str
    query: str
    english: str
    response: str
    answer: str
    kind: str
    story: str
    steps: int
    strange: int
    """How many numbers of the question are not needed."""


def kinds() -> list[str]:
    """Every kind of story."""
    return sorted({story.kind for story in stories(english.FOLDER)})


def make(rng: random.Random, *, max_value: int = 5000, story: str = "") -> Problem:
    """One English problem, of the story of that name where one is given."""
    every = stories(english.FOLDER)
    if story:
        index = [one.name for one in every].index(story)
    else:
        index = rng.choices(range(len(every)), [one.weight for one in every])[0]
    chosen = plan(english.FOLDER, index, rng, max_value, EXTRA)
    who = english.make_cast(chosen, rng)
    text, strange = english.question(chosen, who, rng, DISTRACTORS if chosen.extra == 0 else 0.05)
    response = english.solution(chosen, who, rng)
    answer = text_of(chosen.values[chosen.asked])
    name, kind = chosen.story.name, chosen.story.kind
    return Problem("en", text, text, response, answer, kind, name, len(chosen.steps), strange + chosen.extra)


def generate(language: str, count: int, seed: int, *, max_value: int = 5000) -> Iterator[Problem]:
    """Yield `count` problems in `language`; the same arguments give the same problems.

    Raises:
        DataError: for an unknown language, a negative count or a `max_value` under 20, before the first problem.
    """
    if language != "en":
        raise DataError(f"there are no stories in the language {language!r}; use en")
    if count < 0:
        raise DataError(f"count is {count}; use 0 or more")
    if max_value < 20:
        raise DataError(f"max_value is {max_value}; use 20 or more, or most stories have no numbers to draw")
    rng = random.Random(f"problems:{language}:{seed}")
    return (make(rng, max_value=max_value) for _ in range(count))
