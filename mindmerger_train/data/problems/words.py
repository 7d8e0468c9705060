"""English word forms: plurals, verbs, number words, and the word lists of `english/words.toml`.

What this module does not know: stories.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_WORDS = Path(__file__).parent / "english" / "words.toml"
_PAST = {
    "buy": ("bought", "bought"), "make": ("made", "made"), "find": ("found", "found"), "win": ("won", "won"),
    "get": ("got", "got"), "eat": ("ate", "eaten"), "sell": ("sold", "sold"), "give": ("gave", "given"),
    "lose": ("lost", "lost"), "break": ("broke", "broken"), "throw": ("threw", "thrown"), "lend": ("lent", "lent"),
    "cut": ("cut", "cut"), "dig": ("dug", "dug"), "sew": ("sewed", "sewn"), "drink": ("drank", "drunk"),
    "send": ("sent", "sent"), "take": ("took", "taken"), "drop": ("dropped", "dropped"), "run": ("ran", "run"),
    "swim": ("swam", "swum"), "read": ("read", "read"), "write": ("wrote", "written"), "ride": ("rode", "ridden"),
    "drive": ("drove", "driven"), "catch": ("caught", "caught"), "build": ("built", "built"), "draw": ("drew", "drawn"),
    "knit": ("knitted", "knitted"), "plan": ("planned", "planned"), "do": ("did", "done"), "grow": ("grew", "grown"),
    "bring": ("brought", "brought"), "spend": ("spent", "spent"), "pay": ("paid", "paid"), "plant": ("planted", "planted"),
}  # fmt: skip


def plural(noun: str) -> str:
    """Plural of a regular noun; a noun of several words has its plural at the end."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


@dataclass(frozen=True)
class Noun:
    """A countable thing; `of`: the set it is one of two kinds of, when it is (`red marbles` of `marbles`)."""

    one: str
    many: str

    def counted(self, value: object) -> str:
        return self.one if value == 1 else self.many

    @property
    def article(self) -> str:
        return article(self.one)


def article(text: str) -> str:
    """`an apple`."""
    first = text[:1].lower()
    vowel = first in "aeio" or (first == "u" and not text.startswith(("uni", "use")))
    return f"{'an' if vowel else 'a'} {text}"


def noun(entry: str) -> Noun:
    """`apple`, `loaf/loaves`, `toy_car` → the noun."""
    one, _, many = entry.replace("_", " ").partition("/")
    return Noun(one, many or plural(one))


@dataclass(frozen=True)
class Verb:
    """`give away`: base, third person, past, participle, -ing."""

    base: str
    third: str
    past: str
    participle: str
    ing: str


def verb(base: str) -> Verb:
    """The forms of a verb; a particle stays behind."""
    word, _, particle = base.partition(" ")
    rest = f" {particle}" if particle else ""
    third = word + "es" if word.endswith(("s", "x", "ch", "sh", "o")) else word + "s"
    if word.endswith("y") and word[-2] not in "aeiou":
        third = word[:-1] + "ies"
        past = word[:-1] + "ied"
    else:
        past = word + ("d" if word.endswith("e") else "ed")
    past, participle = _PAST.get(word, (past, past))
    stem = (
        word[:-1]
        if word.endswith("e")
        else word + word[-1]
        if word in ("cut", "dig", "get", "win", "drop", "run", "swim", "knit", "plan")
        else word
    )
    return Verb(base, third + rest, past + rest, participle + rest, stem + "ing" + rest)


@dataclass(frozen=True)
class Person:
    """Somebody in a story: how first and later called, and the pronouns."""

    first: str
    later: str
    gender: str

    @property
    def he(self) -> str:
        return {"m": "he", "f": "she"}.get(self.gender, "it")

    @property
    def him(self) -> str:
        return {"m": "him", "f": "her"}.get(self.gender, "it")

    @property
    def his(self) -> str:
        return {"m": "his", "f": "her"}.get(self.gender, "its")


@dataclass(frozen=True)
class Things:
    """A category of things and what people do with them."""

    name: str
    all: Noun
    nouns: tuple[Noun, ...]
    get: tuple[Verb, ...]
    lose: tuple[Verb, ...]
    held: tuple[Noun, ...]
    adjectives: tuple[tuple[str, str], ...]
    tags: frozenset[str]
    max: int


@dataclass(frozen=True)
class Words:
    """Everything in words.toml."""

    people: tuple[Person, ...]
    roles: dict[str, Person]
    kin: tuple[str, ...]
    places: tuple[str, ...]
    weekdays: tuple[str, ...]
    months: tuple[str, ...]
    things: tuple[Things, ...]


@cache
def words() -> Words:
    """The word lists, read once."""
    data: dict[str, Any] = tomllib.loads(_WORDS.read_text(encoding="utf-8"))
    people = [
        Person(name, name, gender) for key, gender in (("women", "f"), ("men", "m")) for name in data[key].split()
    ]
    roles = {}
    for key, entry in data["roles"].items():
        first, _, gender = entry.rpartition(", ")
        roles[key] = Person(first, first.replace("a ", "the ", 1) if first.startswith("a ") else first, gender)

    def split(key: str) -> tuple[str, ...]:
        return tuple(entry.replace("_", " ") for entry in data[key].split())

    return Words(
        people=tuple(people),
        roles=roles,
        kin=split("kin"),
        places=split("places"),
        weekdays=split("weekdays"),
        months=split("months"),
        things=tuple(
            Things(
                name,
                noun(entry["all"]),
                tuple(noun(one) for one in entry["nouns"].split()),
                tuple(verb(one) for one in entry["get"].split(", ")),
                tuple(verb(one) for one in entry["lose"].split(", ")),
                tuple(noun(one) for one in entry["held"].split()),
                tuple((pair.split("/")[0], pair.split("/")[1]) for pair in entry["adj"].split(", ")),
                frozenset(entry["tags"].split()),
                int(entry["max"]),
            )
            for name, entry in data["things"].items()
        ),
    )


_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def number_word(value: int) -> str:
    """0 to 99 in words."""
    if value < 20:
        return _ONES[value]
    return _TENS[value // 10] + (f"-{_ONES[value % 10]}" if value % 10 else "")


TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times", 6: "six times"}
FRACTIONS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 6: "a sixth", 8: "an eighth", 10: "a tenth"}
PERSON_SAMPLE = 4


def cast(rng: random.Random) -> list[Person]:
    """Four different people."""
    return rng.sample(words().people, PERSON_SAMPLE)
