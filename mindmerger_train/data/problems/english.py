"""English: a planned problem → its question, in one of many wordings, and its worked solution.

Slots of the templates:

* `{P}`, `{R}`, `{Q}`: a person as the subject, by name or, where it is clear who is meant, by pronoun; `{P!}` by name;
  `{P.s}` of the person, `{P.his}`, `{P.him}`, `{P.he}`; `{P.kin}` what a relative of that sex is;
* `{x}`, `{y}`: the things, plural; `{x.1}` one, `{x.a}` with its article, `{x.all}` what x and y both are;
  `{g}` what holds them;
  `{x.get}` comes by such things, `{x.lose}` gets rid of them: a verb in the story's tense
  (`.b` base, `.p` participle, `.i` -ing, `.d` past);
* `{a}`: the quantity a (`{a #}` in digits); `{a x}`, `{a box}` with its noun; `{a more x}` with words between;
  `{a $}` an amount of money; `{$}` dollars; `{a!times}` twice, `{a!frac}` a third; `{a?is|are}` agrees with it;
  `{=}`, `{= x}`, `{=$}`: the value worked out (solutions);
* `{day}`, `{day2}`, `{place}`, `{kin}`, `{month}`, `{item}` (costs much), `{quality}`.

What this module does not know: which stories there are, and what is told or asked.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

from mindmerger.errors import DataError
from mindmerger_train.data.annotations import number_text
from mindmerger_train.data.problems.casting import Cast
from mindmerger_train.data.problems.quantities import compute, drawer, worked
from mindmerger_train.data.problems.story import Plan
from mindmerger_train.data.problems.template import expand, parse
from mindmerger_train.data.problems.words import FRACTIONS, TIMES, Person, noun, number_word, words
from mindmerger_train.data.tidy import sentence_case

FOLDER = Path(__file__).parent / "english"
CROWDED = Path(__file__).parent / "crowded" / "english"
"""Stories of three numbers and more, two of which the answer needs."""
_UNCLEAR = re.compile(r"\b(they|them|their|these|those|it|then|the rest)\b")
_GROUP = re.compile(r"\b(altogether|in all|total|together|combined|they|there|everyone|all)\b")
_KIN_GENDER = {
    **dict.fromkeys(("brother", "father", "uncle", "grandfather"), "m"),
    **dict.fromkeys(("sister", "mother", "aunt", "grandmother"), "f"),
}
_UNCHANGED = ("naira", "taka", "yuan", "baht")


class Writer:
    """Fills slots, one problem's worth; keeps in mind who was spoken of last."""

    def __init__(self, plan: Plan, who: Cast, rng: random.Random) -> None:
        self.plan, self.cast, self.rng = plan, who, rng
        self.values = dict(plan.values)
        self.tense = rng.randint(0, 1) if plan.story.tense is None else plan.story.tense
        self.spell = rng.random() < 0.12
        self.commas = rng.random() < 0.35
        self.plain_names = False
        self.focus: Person | None = None
        self.met: set[Person] = set()
        self.aside = ""
        self.result: tuple[str, Fraction] = ("", Fraction(0))

    def write(self, template: str) -> str:
        """One wording of a template."""
        return expand(parse(template), self.rng, self.tense, self.slot)

    def number(self, name: str) -> str:
        value = self.values[name]
        if value.denominator != 1:
            return number_text(value)
        whole = int(value)
        if self.spell and whole <= 20 and self.rng.random() < 0.6:
            return number_word(whole)
        return f"{whole:,}" if self.commas and whole >= 1000 else str(whole)

    def money(self, name: str) -> str:
        value = self.values[name]
        self.cast.amounts.add(name)
        pattern, unit = self.cast.money
        text = f"{float(value):.2f}" if value.denominator != 1 else self._amount(int(value))
        if value == 1 and pattern.startswith("{}"):
            return f"{text} {unit}"
        return pattern.format(text)

    def _amount(self, value: int) -> str:
        return f"{value:,}" if self.commas and value >= 1000 else str(value)

    def slot(self, body: str) -> str:
        """The text of a slot. Raises DataError for one that means nothing."""
        head, _, tail = body.partition(" ")
        if body == "$":
            return self.cast.money[1] + ("" if self.cast.money[1] in _UNCHANGED else "s")
        if body.startswith("="):
            return self._result(body)
        if "?" in body:
            name, _, choice = body.partition("?")
            one, _, many = choice.partition("|")
            return one if self.values[name] == 1 else many
        if head in self.values:
            return self._quantity(head, tail)
        if "!" in head and head.partition("!")[0] in self.values:
            name, _, how = head.partition("!")
            return (TIMES if how == "times" else FRACTIONS)[int(self.values[name])]
        first, _, form = body.partition(".")
        if first.rstrip("!") in self.cast.people:
            return self._person(first, form)
        if first in self.cast.nouns:
            return self._noun(first, form)
        if body in self.cast.plain:
            return self.cast.plain[body]
        raise DataError(f"the slot {{{body}}} of the story {self.plan.story.name!r} means nothing")

    def _quantity(self, name: str, tail: str) -> str:
        if not tail:
            return self.number(name)
        if tail == "$":
            return self.money(name)
        if tail == "#":
            return number_text(self.values[name])
        *between, last = tail.split()
        thing = self.cast.nouns.get(last) or (self.cast.nouns["all"] if last == "x.all" else noun(last))
        return " ".join([self.number(name), *between, thing.counted(self.values[name])])

    def _result(self, body: str) -> str:
        text, value = self.result
        if body == "=$":
            pattern, unit = self.cast.money
            before, _, after = pattern.partition("{}")
            return text.replace("<<", before + "<<", 1) + (f" {unit}" if after and value == 1 else after)
        tail = body[1:].strip()
        if not tail:
            return text
        *between, last = tail.split()
        thing = self.cast.nouns.get(last) or (self.cast.nouns["all"] if last == "x.all" else noun(last))
        return " ".join([text, *between, thing.counted(value)])

    def _noun(self, name: str, form: str) -> str:
        thing = self.cast.nouns[name]
        if form in ("", "1", "a"):
            return {"": thing.many, "1": thing.one, "a": thing.article}[form]
        if form == "all":
            return self.cast.nouns["all"].many
        which, _, how = form.partition(".")
        one = {"get": self.cast.get, "lose": self.cast.lose}[which]
        if not how:
            how = "3" if self.tense == 0 else "d"
        return {"3": one.third, "d": one.past, "b": one.base, "p": one.participle, "i": one.ing}[how]

    def _person(self, name: str, form: str) -> str:
        by_name = name.endswith("!") or self.plain_names
        who = self.cast.people[name.rstrip("!")]
        if form in ("he", "him", "his", "self"):
            return {"he": who.he, "him": who.him, "his": who.his, "self": f"{who.him}self"}[form]
        if form == "kin":
            return self.rng.choice([kin for kin in words().kin if _KIN_GENDER.get(kin, who.gender) == who.gender])
        clear = self.focus is who and not by_name
        if form == "s":
            if clear and self.rng.random() < 0.7:
                return who.his
            return self._call(who) + "'s"
        if clear and self.rng.random() < 0.6:
            return who.he
        if not name.endswith("!"):
            self.focus = who
        elif self.focus is not None and self.focus is not who and self.focus.gender == who.gender:
            self.focus = None
        text = self._call(who)
        if self.aside and not name.endswith("!") and who is self.cast.people["P"]:
            aside, self.aside = self.aside, ""
            text += f", {self.write(aside)}"
        return text

    def _call(self, who: Person) -> str:
        if who in self.met:
            return who.later
        self.met.add(who)
        return who.first


def solution(plan: Plan, who: Cast, rng: random.Random) -> str:
    """The worked solution, one step a line, and the answer after `####`."""
    writer = Writer(plan, who, rng)
    writer.tense = 1 if plan.story.tense is None else plan.story.tense
    writer.spell = writer.commas = False
    writer.plain_names = True
    writer.met = set(who.people.values())
    shown: dict[str, str] = {}
    lines = []
    for step in plan.steps:
        value = compute(step, plan.values)
        assert value is not None and value == plan.values[step.target], plan
        operands = [
            shown.get(name) or (name if name.isdigit() else _told(plan.values[name], name in who.amounts))
            for name in step.operands
        ]
        result = number_text(value)
        shown[step.target] = result
        writer.result = (worked(step, operands, value), value)
        lines.append(_finish(writer.write(plan.story.say[step.target]) + "."))
    return "\n".join(lines) + f"\n#### {number_text(plan.values[plan.asked])}"


def _told(value: Fraction, amount: bool) -> str:
    """A number as the question tells it, so that the solution begins with what is to be read there."""
    return f"{float(value):.2f}" if amount and value.denominator != 1 else number_text(value)


def question(plan: Plan, who: Cast, rng: random.Random, distractors: float) -> tuple[str, int]:
    """The question's text, and how many sentences with a number are in it that have nothing to do with the story."""
    writer = Writer(plan, who, rng)
    ask = rng.choice(plan.ask)
    templates = [rng.choice(fact.wordings) for fact in plan.facts]
    own = set(templates)
    strange = 0
    if plan.story.distract and rng.random() < distractors:
        strange = 1
        if not _add_distractor(writer, templates, ask):
            templates.insert(_place(templates, rng), _strange_sentence(writer, ask))
    roll = rng.random()
    if roll < 0.05 and not _UNCLEAR.search(ask):
        asked = writer.write(ask)
        return _finish(f"{asked}? {_sentences(writer, templates, own)}"), strange
    clausal = [". " not in template and "; " not in template for template in templates]
    if roll < 0.17 and len(templates) <= 2 and all(clausal) and not _UNCLEAR.search(ask):
        asked = writer.write(ask)
        clauses = [_bare(writer.write(template), index == 0) for index, template in enumerate(templates)]
        return _finish(f"{asked} if {' and '.join(clauses)}?"), strange
    if roll < 0.42 and clausal[-1] and (templates[-1] in own or roll < 0.2):
        before = _sentences(writer, templates[:-1], own)
        last = _bare(writer.write(templates[-1]), not before)
        return _finish(f"{before} if {last}, {writer.write(ask)}?"), strange
    before = _sentences(writer, templates, own)
    return _finish(f"{before} {writer.write(ask)}?"), strange


def _place(templates: list[str], rng: random.Random) -> int:
    """Where a strange sentence goes: anywhere; the first place less often, since it sets the scene."""
    return rng.randint(rng.random() < 0.7, len(templates))


def _bare(text: str, first: bool) -> str:
    """A clause that is to follow `if`: an adverb of time that it begins with goes to its end, or goes."""
    match = re.match(r"(now|then|besides|altogether|after that|later|so|at first|in the end),? (?=\w)", text)
    if match is not None:
        text = text[match.end() :]
        # What was the case then differs from what was before; an event needs no adverb.
        if re.search(r"\b(has|had|have|is|are|was|were|live|remains?|remained)\b", text):
            text += {"now": " now", "then": " after that", "besides": "", "altogether": "", "later": "", "so": ""}.get(
                match[1], f" {match[1]}"
            )
    text = re.sub(r"^((?:on|in|at) [^,]{3,25}),", r"\1", text)
    return _opening(text) if first else text


def _opening(text: str) -> str:
    """The first sentence of a text: nothing came before that it could add to."""
    return re.sub(r"^besides, ", "", re.sub(r"\balso ", "", text, count=1))


def _sentences(writer: Writer, templates: list[str], own: set[str]) -> str:
    """The facts as sentences, some of the story's `own` joined."""
    out = ""
    joined = True
    for template in templates:
        text = writer.write(template)
        if not out:
            out = _opening(text)
        elif not joined and ". " not in text and template in own and writer.rng.random() < 0.22:
            out += f", and {text}"
            joined = True
            continue
        else:
            out += f". {text}"
        joined = ". " in text or ", and " in text or template not in own
    return f"{out}." if out else ""


def _finish(text: str) -> str:
    text = (
        re.sub(r"\s+", " ", text)
        .strip()
        .replace(" .", ".")
        .replace(" ?", "?")
        .replace(" ,", ",")
        .replace(",,", ",")
        .replace(",.", ".")
        .replace("..", ".")
    )
    return sentence_case(text)


@cache
def _distractors() -> dict[str, list[tuple[str, str]]]:
    data = tomllib.loads((FOLDER / "distractors.toml").read_text(encoding="utf-8"))
    return {key: [(entry[0], entry[1]) for entry in entries] for key, entries in data.items()}


def _draw_strange(writer: Writer, how: str) -> None:
    """A number that stands nowhere else, so that it cannot be taken for one of the story's."""
    top = max(12, min(int(max(writer.plan.values.values())), 500))
    draw: Callable[[random.Random, int], Fraction] = drawer(how)
    for _ in range(20):
        writer.values["odd"] = draw(writer.rng, top)
        if writer.values["odd"] not in writer.plan.values.values():
            return


def _add_distractor(writer: Writer, templates: list[str], ask: str) -> bool:
    """Put a clause after the first person's name; False when a sentence of its own is to be written."""
    if writer.rng.random() > 0.15 or not any("{P}" in template for template in templates):
        return False
    how, text = writer.rng.choice(_distractors()["aside"])
    _draw_strange(writer, how)
    writer.aside = text
    return True


def _strange_sentence(writer: Writer, ask: str) -> str:
    person = any("{P" in template for template in writer.plan.facts[0].wordings) if writer.plan.facts else False
    kinds = ["other"]
    if person:
        kinds += ["person", "person"]
        if "{P" in ask and "{x" in ask and not _GROUP.search(ask):
            kinds += ["same", "same"]
    how, text = writer.rng.choice(_distractors()[writer.rng.choice(kinds)])
    _draw_strange(writer, how)
    return text
