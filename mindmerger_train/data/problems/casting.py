"""Who and what a problem is about: people, things, places and money, drawn to go with a planned problem.

What this module does not know: sentences.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from mindmerger_train.data.problems.story import Plan
from mindmerger_train.data.problems.words import Noun, Person, Things, Verb, cast, words

_MONEY = (
    *(("${}", "dollar"),) * 9, *(("{} dollars", "dollar"),) * 3, ("€{}", "euro"), ("{} euros", "euro"), ("£{}", "pound"),
    ("{} pesos", "peso"), ("{} rupees", "rupee"), ("{} shillings", "shilling"), ("{} naira", "naira"), ("{} taka", "taka"),
    ("{} yuan", "yuan"), ("{} baht", "baht"),
)  # fmt: skip
_WITH_CENTS = ("dollar", "euro", "pound")


@dataclass
class Cast:
    """Who and what a problem is about: what question and solution share."""

    people: dict[str, Person]
    things: Things
    nouns: dict[str, Noun]
    get: Verb
    lose: Verb
    money: tuple[str, str]
    plain: dict[str, str]
    amounts: set[str] = field(default_factory=set)
    """Which quantities the question has told as amounts of money."""


def make_cast(plan: Plan, rng: random.Random) -> Cast:
    """Choose English people and things that go with a plan."""
    lists = words()
    people = dict(zip("PRQD", cast(rng), strict=True))
    if plan.story.roles and rng.random() < 0.3:
        people["P"] = lists.roles[rng.choice(plan.story.roles)]
    tag = plan.story.things or "any"
    greatest = int(max(plan.values.values()))
    fitting = [group for group in lists.things if tag in group.tags or tag == group.name]
    roomy = [group for group in fitting if greatest <= 2 * group.max] if plan.story.things else fitting
    things = rng.choice(roomy or [max(fitting, key=lambda group: group.max)])
    x, y = rng.sample(things.nouns, 2)
    both = things.all
    if plan.story.adjectives and (rng.random() < 0.3 or (things.name == "reading" and rng.random() < 0.5)):
        one, two = rng.choice(things.adjectives)
        if rng.random() < 0.5:
            one, two = two, one
        both = x
        x, y = Noun(f"{one} {both.one}", f"{one} {both.many}"), Noun(f"{two} {both.one}", f"{two} {both.many}")
    other = rng.choice([group for group in lists.things if group is not things and "hold" in group.tags])
    container = rng.choice(things.held)
    days = rng.sample(lists.weekdays, 2)
    cents = any(value.denominator != 1 for value in plan.values.values())
    money = rng.choice([entry for entry in _MONEY if not cents or entry[1] in _WITH_CENTS])
    if days[1] == lists.weekdays[0] or lists.weekdays.index(days[0]) > lists.weekdays.index(days[1]):
        days.reverse()
    plain = {
        "day": days[0],
        "day2": days[1],
        "place": rng.choice(lists.places),
        "kin": rng.choice(lists.kin),
        "month": rng.choice(lists.months),
        "item": rng.choice(["bicycle", "phone", "guitar", "camera", "tent", "watch", "table", "carpet", "bed"]),
        "quality": rng.choice(("new", "from abroad", "in the next room", "from the city")),
    }
    nouns = {"x": x, "y": y, "all": both, "g": container, "z": rng.choice(other.nouns)}
    return Cast(people, things, nouns, rng.choice(things.get), rng.choice(things.lose), money, plain)
