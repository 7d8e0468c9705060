"""Stories: what can be told and asked about a few quantities, and the choice of one problem among all that a story holds.

A story file (`english/*.toml`) has one table a story:

* `things`: what kind of things `x` and `y` may be (a tag of words.toml); `max`: the greatest count; `roles`: who else than
  a person with a name `P` may be;
* `draw`: `name:how` pairs, see quantities.DRAWS; `rules`; `apart`: pairs that must differ;
* `facts`: `name = [wordings]` tells a quantity, `"a b"` tells two, in the order of events (`free`: any order is right);
  `"name?"` stands where the quantity is not told, `"name?one/other"` only where one of these is told or asked for;
* `open`: wordings that set the scene where no told fact does; those that do have a `*` before their name;
* `exact`: what may only be asked for with nothing told that is not needed (how many are there *now*?);
* `ask`: how a quantity is asked for (`"a k"`: with `k` told in the question); `say`: how the solution names it, `{=}` being
  its value, worked out.

What this module does not know: how wordings become text.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mindmerger.errors import DataError
from mindmerger_train.data.problems.quantities import (
    Rule,
    Step,
    Values,
    complete,
    drawer,
    parse_rule,
    solve,
    tellings,
)

MAX_STEPS = 4
_STEP_WEIGHT = {1: 1.0, 2: 0.9, 3: 0.5, 4: 0.2}


@dataclass(frozen=True)
class Fact:
    """A sentence that tells `names` (none: that something happened, without its number)."""

    names: frozenset[str]
    wordings: tuple[str, ...]
    instead_of: str = ""
    when: frozenset[str] = frozenset(("",))
    """Where any of these is known; always, where it holds the empty text."""
    opens: bool = False


@dataclass(frozen=True)
class Story:
    """One table of a story file."""

    name: str
    kind: str
    things: str
    same: bool
    max: int
    roles: tuple[str, ...]
    draw: tuple[tuple[str, str], ...]
    rules: tuple[Rule, ...]
    apart: tuple[tuple[str, str], ...]
    free: bool
    weight: float
    facts: tuple[Fact, ...]
    ask: dict[str, tuple[str, ...]]
    say: dict[str, str]
    distract: bool
    """Whether a sentence with a number that has nothing to do with the question may be put in."""
    tense: int | None
    open: tuple[str, ...]
    adjectives: bool
    exact: frozenset[str]
    """Asked for, these must not have more told than is needed: what else happened would change what the question means."""

    def tellable(self) -> set[str]:
        return set().union(*(fact.names for fact in self.facts))


@dataclass(frozen=True)
class Plan:
    """One problem of a story, before it has words."""

    story: Story
    values: Values
    asked: str
    ask: tuple[str, ...]
    facts: tuple[Fact, ...]
    steps: tuple[Step, ...]
    extra: int
    """How many told quantities the answer does not need."""


def parse_story(name: str, table: dict[str, Any]) -> Story:
    """A story's table → the story. Raises DataError when something is missing or unknown."""
    try:
        given = dict(table)
        facts = []
        for key, entry in given.pop("facts").items():
            opens, (key, mark, when) = key.startswith("*"), key.removeprefix("*").partition("?")
            instead = key if mark else ""
            names = frozenset() if instead else frozenset(key.split())
            facts.append(Fact(names, tuple(entry), instead, frozenset(when.split("/")), opens))
        opening = given.pop("open", ())
        ask = {key: tuple(entry) for key, entry in given.pop("ask").items()}
        story = Story(
            name=name,
            kind=given.pop("kind"),
            things=given.pop("things", ""),
            same=given.pop("same", True),
            max=given.pop("max", 5000),
            roles=tuple(given.pop("roles", "").split()),
            draw=tuple((pair.split(":")[0], pair.split(":")[1]) for pair in given.pop("draw").split()),
            rules=tuple(parse_rule(rule) for rule in given.pop("rules")),
            apart=tuple((pair.split()[0], pair.split()[1]) for pair in given.pop("apart", ())),
            free=given.pop("free", False),
            weight=given.pop("weight", 1.0),
            facts=tuple(facts),
            ask=ask,
            say=given.pop("say"),
            distract=given.pop("distract", True),
            tense=given.pop("tense", None),
            open=tuple(opening),
            adjectives=given.pop("adjectives", True),
            exact=frozenset(given.pop("exact", "").split()),
        )
    except KeyError as error:
        raise DataError(f"the story {name!r} has no {error.args[0]!r}") from error
    if given:
        raise DataError(f"the story {name!r} has the unknown key {next(iter(given))!r}")
    return story


@cache
def stories(folder: Path) -> tuple[Story, ...]:
    """All stories of a folder's files, words.toml and distractors.toml excepted."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        if path.stem not in ("words", "distractors"):
            data = tomllib.loads(path.read_text(encoding="utf-8"))
            found += [parse_story(name, table) for name, table in data.items()]
    return tuple(found)


@cache
def variants(folder: Path, index: int) -> tuple[list[tuple[str, frozenset[str]]], list[float]]:
    """(key of `ask`, told) of a story, and their weights: every question is as likely, whatever the ways to tell its story."""
    story = stories(folder)[index]
    choices, weights = [], []
    for ask in story.ask:
        asked, *given = ask.split()
        units = [fact.names for fact in story.facts]
        found = [
            entry
            for entry in tellings(asked, units, story.rules, MAX_STEPS, frozenset(given))
            if _covers(story, entry[0])
        ]
        total = sum(_STEP_WEIGHT[length] for _, length in found)
        for told, length in found:
            choices.append((ask, told))
            weights.append(_STEP_WEIGHT[length] * (0.5 + 0.5 * min(total, 2.0)) / total)
    if not choices:
        raise DataError(f"no question of the story {story.name!r} can be answered from its facts")
    return choices, weights


def _covers(story: Story, told: frozenset[str]) -> list[list[int]]:
    """Every choice of facts (by index) that tells each of these quantities exactly once."""
    if not told:
        return [[]]
    first = min(told)
    return [
        [index, *rest]
        for index, fact in enumerate(story.facts)
        if first in fact.names and fact.names <= told
        for rest in _covers(story, told - fact.names)
    ]


def _values(story: Story, rng: random.Random, limit: int) -> Values:
    roll = rng.random()
    top = 12 if roll < 0.2 else 20 if roll < 0.42 else 100 if roll < 0.83 else 1000 if roll < 0.95 else 5000
    top = min(top, story.max, limit)
    for _ in range(200):
        values = complete({name: drawer(how)(rng, top) for name, how in story.draw}, story.rules)
        if values is not None and all(values[a] != values[b] for a, b in story.apart):
            return values
    raise DataError(f"no numbers found for the story {story.name!r}: its rules and draws do not go together")


def plan(
    story_folder: Path, index: int, rng: random.Random, limit: int, extra_rate: float, crowded: bool = False
) -> Plan:
    """Choose numbers, what is asked and what is told.

    Args:
        limit: the greatest count of such things.
        extra_rate: the share of problems that tell more than the answer needs.
        crowded: these tell up to three numbers more, mostly as many as there are.
    """
    story = stories(story_folder)[index]
    choices, weights = variants(story_folder, index)
    while True:
        values = _values(story, rng, limit)
        ask, told = rng.choices(choices, weights)[0]
        asked, *given = ask.split()
        extra = 0
        if asked not in story.exact and rng.random() < extra_rate:
            told, extra = _with_extra(story, asked, told, frozenset(given), rng, crowded)
        if any(values[name] < 2 for name in told.union(given) if values[name].denominator == 1):
            continue
        steps = solve(asked, told.union(given), story.rules)
        assert steps is not None
        return Plan(story, values, asked, story.ask[ask], _choose_facts(story, told, asked, rng), tuple(steps), extra)


def _with_extra(
    story: Story, asked: str, told: frozenset[str], given: frozenset[str], rng: random.Random, crowded: bool
) -> tuple[frozenset[str], int]:
    """More quantities (one or two, seldom three) that do not follow from what is told and do not shorten the way."""
    now, count = set(told), 0
    names = sorted(story.tellable() - told - given - {asked})
    rng.shuffle(names)
    length = len(solve(asked, told | given, story.rules) or ())
    for name in names:
        more = frozenset(now | {name})
        if not _covers(story, more) or solve(name, now | given, story.rules) is not None:
            continue
        if len(solve(asked, more | given, story.rules) or ()) < length:
            continue
        now, count = set(more), count + 1
        roll = rng.random()
        if (roll < 0.15 or count == 3) if crowded else count == (1 if roll < 0.6 else 2):
            break
    return frozenset(now), count


def _choose_facts(story: Story, told: frozenset[str], asked: str, rng: random.Random) -> tuple[Fact, ...]:
    """Facts that tell each of `told` once, in the story's order (or any, where it has none)."""
    chosen = rng.choice(_covers(story, told))
    known = told | {asked, ""}
    chosen += [
        i for i, fact in enumerate(story.facts) if fact.instead_of and fact.instead_of not in told and fact.when & known
    ]
    chosen.sort()
    if story.free and rng.random() < 0.6:
        rng.shuffle(chosen)
    facts = [story.facts[i] for i in chosen]
    if story.open:
        # What sets the scene comes first; where nothing told does, a sentence without a number is put before.
        opening = [fact for fact in facts if fact.opens]
        facts = [
            *(opening[:1] or [Fact(frozenset(), story.open)]),
            *(fact for fact in facts if fact not in opening[:1]),
        ]
    return tuple(facts)
