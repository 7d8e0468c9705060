"""Word problems without end: stories of a few quantities, any of which may be asked for, with worked solutions.

`generate` is all that others need. English has a grammar of its own (`english`: many stories, much variety); the other
languages tell the stories of `world/` in phrases (`phrases`), each with its English twin. What both share: `quantities`
(rules and how to solve), `story` (what is told and asked), `template` (wordings with choices), `words` (English forms).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from mindmerger.errors import DataError
from mindmerger_train.data.annotations import number_text
from mindmerger_train.data.problems import english, phrases
from mindmerger_train.data.problems.casting import make_cast
from mindmerger_train.data.problems.story import plan, stories

EXTRA = 0.22
DISTRACTORS = 0.22
_EXTRA_TOLD = 0.35  # of the other languages, which have no sentences of other stories
LANGUAGES: tuple[str, ...] = tuple(phrases.codes())
"""The languages that problems can be made in, by ISO 639-1 code."""


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
    """Every kind of English story."""
    return sorted({story.kind for story in stories(english.FOLDER)})


def make(
    rng: random.Random,
    *,
    language: str = "en",
    max_value: int = 5000,
    story: str = "",
    extras: float | None = None,
    crowded: bool = False,
) -> Problem:
    """One problem, of the story of that name where one is given. Raises DataError for an unknown language."""
    if language == "en":
        folder = english.CROWDED if crowded else english.FOLDER
    else:
        folder = phrases.CROWDED if crowded else phrases.STORIES
    every = stories(folder)
    if story:
        index = [one.name for one in every].index(story)
    else:
        index = rng.choices(range(len(every)), [one.weight for one in every])[0]
    if language == "en":
        chosen = plan(folder, index, rng, max_value, EXTRA if extras is None else extras, crowded)
        who = make_cast(chosen, rng)
        query, strange = english.question(chosen, who, rng, DISTRACTORS if chosen.extra == 0 else 0.05)
        twin = query
    else:
        rate = _EXTRA_TOLD if extras is None else extras
        chosen = plan(folder, index, rng, min(max_value, 1000), rate, crowded)
        while not phrases.sayable(chosen, language):
            chosen = plan(folder, index, rng, min(max_value, 1000), rate, crowded)
        query, twin, who = phrases.tell(chosen, language, rng)
        strange = 0
    response = english.solution(chosen, who, rng)
    answer = number_text(chosen.values[chosen.asked])
    extra = strange + chosen.extra
    name, kind = chosen.story.name, chosen.story.kind
    return Problem(language, query, twin, response, answer, kind, name, len(chosen.steps), extra)


def generate(
    language: str,
    count: int,
    seed: int,
    *,
    max_value: int = 5000,
    extras: float | None = None,
    crowded: bool = False,
) -> Iterator[Problem]:
    """Yield `count` problems in `language`; the same arguments give the same problems.

    Args:
        language: one of `LANGUAGES`.
        count: how many problems.
        seed: any whole number; languages with the same seed do not draw the same problems.
        max_value: about the greatest count in a story (at least 20); never above 1000 in other languages than English.
        extras: the share (0 to 1) of problems that may tell more of their own story than the answer needs.
        crowded: other stories, of two or three kinds, people or places, each with numbers of its own.

    Raises:
        DataError: for an unknown language, a negative count, a `max_value` under 20 or `extras` that is no share, before the
            first problem.
    """
    phrases.language(language)
    if count < 0:
        raise DataError(f"count is {count}; use 0 or more")
    if max_value < 20:
        raise DataError(f"max_value is {max_value}; use 20 or more, or most stories have no numbers to draw")
    if extras is not None and not 0 <= extras <= 1:
        raise DataError(f"extras is {extras}; use a share, 0 to 1")
    rng = random.Random(f"problems:{language}:{seed}")
    return (make(rng, language=language, max_value=max_value, extras=extras, crowded=crowded) for _ in range(count))
