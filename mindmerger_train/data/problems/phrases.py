"""The stories of `world/` told in many languages: phrases with parameters, put together the same way in all of them.

A story's fact is a call, `gives P R gone x`: the phrase `gives` of the language's file, with its parameters
(`SIGNATURES`) bound to the story's people, quantities and things. One choice of numbers, names and things is told twice, in
the language and in English, and solved once, in English. Wordings are data (`languages/LANG.toml`), written for this project.

Slots of a phrase:

* `{p}`, `{r}`: a person; `{p.gen}` a named form of the name; `{p?he|she}` by gender;
* `{n}`: the number; `{n x}`: with the noun bound to x (or a unit: `{n page}`), in the form that the number asks for;
  `{n x acc}`: the same, preferring the noun's `_acc` forms;
* `{x}`, `{g}`, `{m}`: a noun; `{x.unit}` a named form of it; `{x?cuántos|cuántas}` by its gender.

What this module does not know: how a problem is planned or solved.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mindmerger.errors import DataError
from mindmerger_train.data.problems.casting import Cast
from mindmerger_train.data.problems.story import Plan
from mindmerger_train.data.problems.words import Noun, Person, words

STORIES = Path(__file__).parent / "world"
CROWDED = Path(__file__).parent / "crowded" / "world"
_LANGUAGES = Path(__file__).parent / "languages"
_INHERITED = Path(__file__).parent.parent / "templates"

SIGNATURES: dict[str, str] = {
    **dict.fromkeys(["has", "also_has", "buys", "buys_n", "sells", "loses", "now_has", "left"], "p n x"),
    **dict.fromkeys(["some", "buys_some"], "p x"),
    **dict.fromkeys(["gives", "more", "fewer", "times", "together"], "p r n x"),
    "gives_some": "p r x",
    "each": "n x g",
    **dict.fromkeys(["in_all", "there_are"], "n x"),
    "shares": "p n x k",
    "shares_rest": "p k",
    "gives_each": "p k n x",
    "price": "x n m",
    **dict.fromkeys(["pays", "spends", "earns", "per_hour"], "p n m"),
    **dict.fromkeys(["works", "book", "reads_daily", "reads_days", "walks_morning", "walks_evening", "age"], "p n"),
    "older": "p r n",
    **dict.fromkeys(["q_has", "q_now", "q_first", "q_left", "q_bought"], "p x"),
    **dict.fromkeys(["q_gave", "q_together", "q_more"], "p r x"),
    **dict.fromkeys(["q_in_all", "q_in_all_given", "q_child", "q_there"], "x"),
    "q_each": "x g",
    **dict.fromkeys(["q_pay", "q_change", "q_earned"], "p m"),
    "q_price": "x m",
    **dict.fromkeys(["q_pages", "q_pages_left", "q_km", "q_km_more", "q_age"], "p"),
    "q_older": "p r",
    "q_age_in": "p n",
}
"""Every phrase, and its parameters: p, r people; n, k numbers; x things, g what holds them, m money."""

_SLOT = re.compile(r"\{([^{}]+)\}")
_START = re.compile(r"(^|[.?!]\s+[¿¡]?|^[¿¡])([^\W\d_])")
_LARGEST_WORD = 12
_ASK_FIRST = 0.06


@dataclass(frozen=True)
class Language:
    """A file of `languages/`, with the nouns and names that it inherits from the templates of the older generator."""

    code: str
    counted: str
    plural: str
    stop: str
    joiner: str
    names: tuple[tuple[str, ...], ...]
    name_forms: tuple[str, ...]
    nouns: dict[str, dict[str, str]]
    containers: tuple[str, ...]
    money: tuple[str, ...]
    things: tuple[str, ...]
    phrases: dict[str, tuple[str, ...]]
    number_words: tuple[str, ...]
    digits: str
    native_rate: float
    subject: tuple[str, ...]
    """What may stand for the person that the sentence before was about, m and f: pronouns, or nothing; empty: the name."""


def codes() -> list[str]:
    """The languages that have a file."""
    return sorted(path.stem for path in _LANGUAGES.glob("*.toml"))


@cache
def language(code: str) -> Language:
    """Read a language's file. Raises DataError where there is none, or a phrase is missing or unknown."""
    path = _LANGUAGES / f"{code}.toml"
    if not path.exists():
        raise DataError(f"there are no stories in the language {code!r}; use one of {', '.join(codes())}")
    data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    older: dict[str, Any] = {}
    if data.get("inherits"):
        older = tomllib.loads((_INHERITED / f"{code}.toml").read_text(encoding="utf-8"))
    things = {**older.get("nouns", {}), **data.get("nouns", {})}
    phrases = {name: tuple(entry) for name, entry in {**data["facts"], **data["questions"]}.items()}
    if set(phrases) != set(SIGNATURES):
        odd = sorted(set(phrases) ^ set(SIGNATURES))[0]
        raise DataError(f"{path}: the phrase {odd!r} is {'unknown' if odd in phrases else 'missing'}")
    return Language(
        code=code,
        counted=data.get("counted", older.get("counted", "{n} {w}")),
        plural=data.get("plural", older.get("plural", "none")),
        stop=data["stop"],
        joiner=data.get("joiner", older.get("joiner", " ")),
        names=tuple(tuple(row) for row in [*older.get("names", ()), *data.get("names", ())]),
        name_forms=tuple(data.get("name_forms", older.get("name_forms", ()))),
        nouns={**things, **data["containers"], **data["money"], **data["units"]},
        containers=tuple(data["containers"]),
        money=tuple(data["money"]),
        things=tuple(things),
        phrases=phrases,
        number_words=tuple(data.get("number_words", older.get("number_words", ()))),
        digits=data.get("digits", ""),
        native_rate=data.get("native_rate", 0.0),
        subject=tuple(data.get("subject", ())),
    )


def plural_form(rule: str, n: int) -> str:
    """The CLDR plural category of a whole number, for the rules that the files use."""
    if rule == "ru":
        if n % 10 == 1 and n % 100 != 11:
            return "one"
        return "few" if 2 <= n % 10 <= 4 and not 12 <= n % 100 <= 14 else "many"
    if rule == "ar":
        if n in (1, 2):
            return "one" if n == 1 else "two"
        if 3 <= n % 100 <= 10:
            return "few"
        return "many" if 11 <= n % 100 <= 99 else "other"
    if rule == "from_two":
        return "one" if n < 2 else "other"
    return "one" if rule == "one_other" and n == 1 else "other"


@dataclass(frozen=True)
class Scene:
    """What both tellings share: rows of the language's name table, and the nouns' keys."""

    people: Mapping[str, tuple[str, ...]]
    nouns: Mapping[str, str]


def pick(plan: Plan, spoken: Language, rng: random.Random) -> tuple[Scene, Cast]:
    """People and things that the language has words for; the second result is the same for the English solution."""
    english = language("en")
    people = dict(zip("PRQ", rng.sample(spoken.names, 3), strict=True))
    tag = plan.story.things
    fitting = [key for key in spoken.things if tag in ("", "x") or tag in english.nouns[key]["tags"].split()]
    x, y = rng.sample(fitting, 2)
    nouns = {"x": x, "y": y, "g": rng.choice(spoken.containers), "m": rng.choice(spoken.money)}
    things = words().things[0]

    def english_noun(key: str) -> Noun:
        return Noun(english.nouns[key]["one"], english.nouns[key]["other"])

    cast = Cast(
        people={slot: Person(row[1], row[1], row[2]) for slot, row in people.items()},
        things=things,
        nouns={slot: english_noun(key) for slot, key in nouns.items()} | {"all": english_noun(x)},
        get=things.get[0],
        lose=things.lose[0],
        money=("{} " + english_noun(nouns["m"]).many, english_noun(nouns["m"]).one),
        plain={},
    )
    return Scene(people, nouns), cast


class Teller:
    """Says the phrases of one problem in one language."""

    def __init__(self, plan: Plan, scene: Scene, spoken: Language, rng: random.Random) -> None:
        self.plan, self.scene, self.spoken, self.rng = plan, scene, spoken, rng
        self.spell = bool(spoken.number_words) and rng.random() < 0.12
        self.ask_first = rng.random() < _ASK_FIRST
        self.last = ""
        self.bound: dict[str, str] = {}

    def tell(self, facts: list[str], ask: str) -> str:
        """The whole question; `facts` and `ask` are calls."""
        sentences = [f"{self.say(call, index > 0)}{self.spoken.stop}" for index, call in enumerate(facts)]
        asked = self.say(ask, False)
        text = self.spoken.joiner.join([asked, *sentences] if self.ask_first else [*sentences, asked])
        text = re.sub(r"  +", " ", text).strip()
        return _START.sub(lambda match: match[1] + self._capital(match[2]), text)

    def _capital(self, letter: str) -> str:
        return "İ" if self.spoken.code == "tr" and letter == "i" else letter.upper()

    def say(self, call: str, after: bool) -> str:
        """One phrase. `after`: a sentence stands before, so that its person may be meant without the name."""
        name, *arguments = call.split()
        parameters = SIGNATURES[name].split()
        if len(parameters) != len(arguments):
            raise DataError(f"the phrase {name!r} has the parameters {' '.join(parameters)}; {call!r} gives others")
        self.bound = dict(zip(parameters, arguments, strict=True))
        template = self.rng.choice(self.spoken.phrases[name])
        who = self.bound.get("p", "")
        if (
            after
            and self.spoken.subject
            and template.startswith("{p} ")
            and who == self.last
            and self.rng.random() < 0.4
        ):
            word = self.spoken.subject[self.scene.people[who][2] == "f"]
            template = (f"{word} " if word else "") + template.removeprefix("{p} ")
        self.last = who
        return fill(self, template)

    def slot(self, match: re.Match[str]) -> str:
        body = match[1]
        if "?" in body:
            slot, _, choice = body.partition("?")
            masculine, _, feminine = choice.partition("|")
            argument = self.bound[slot]
            gender = self.scene.people[argument][2] if slot in "pr" else self._noun(argument).get("gender", "m")
            return masculine if gender == "m" else feminine
        slot, *rest = body.split()
        if slot in ("n", "k"):
            return self._number(int(self.plan.values[self.bound[slot]]), rest)
        slot, _, form = slot.partition(".")
        argument = self.bound[slot]
        if slot in "pr":
            row = self.scene.people[argument]
            return row[3 + self.spoken.name_forms.index(form)] if form else row[1 if self.spoken.code == "en" else 0]
        return self._noun(argument)[form or "other"]

    def _noun(self, argument: str) -> dict[str, str]:
        return self.spoken.nouns[self.scene.nouns.get(argument, argument)]

    def _number(self, value: int, rest: list[str]) -> str:
        text = str(value)
        if self.spell and value <= _LARGEST_WORD and self.spoken.number_words[value] and self.rng.random() < 0.7:
            text = self.spoken.number_words[value]
        if not rest:
            return text
        noun = self._noun(self.bound.get(rest[0], rest[0]))
        category = plural_form(self.spoken.plural, value)
        if category == "two" and "two" in noun:
            return noun["two"]
        forms = [f"{category}_{rest[1]}"] if len(rest) > 1 else []
        word = next(noun[form] for form in [*forms, category, "other"] if form in noun)
        return (noun.get("counted") or self.spoken.counted).format(n=text, w=word, c=noun.get("c", ""))


def fill(teller: Teller, template: str) -> str:
    """A wording with its slots filled; the teller's parameters are bound already."""
    return _SLOT.sub(teller.slot, template)


def sayable(plan: Plan, code: str) -> bool:
    """Whether the language's files can say these numbers: Arabic says two without a number."""
    told = {name for fact in plan.facts for name in fact.names}
    return language(code).plural != "ar" or all(plan.values[name] > 2 for name in told)


def tell(plan: Plan, code: str, rng: random.Random) -> tuple[str, str, Cast]:
    """The question in the language, in English, and the cast of the English solution."""
    spoken = language(code)
    scene, cast = pick(plan, spoken, rng)
    facts = [rng.choice(fact.wordings) for fact in plan.facts]
    ask = rng.choice(plan.ask)
    teller = Teller(plan, scene, spoken, rng)
    query = teller.tell(facts, ask)
    if spoken.digits and rng.random() < spoken.native_rate:
        query = query.translate(str.maketrans("0123456789", spoken.digits))
    twin = Teller(plan, scene, language("en"), rng)
    twin.ask_first = teller.ask_first
    english = twin.tell(facts, ask)
    return query, english, cast
