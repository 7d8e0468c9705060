"""Numbers that are told and not wanted, as in life: a sentence more in a word problem.

Far ones are about something else (another story's sentence, the person's age). Near ones are about what the story counts and
the question does not ask for: other things of the same person, the same things of another person, things of another kind.
Patel et al. (2021, "Are NLP Models really able to Solve Simple Math Word Problems?") found that models trained on MAWPS and
ASDiv go by shallow signs and fail where, among other changes, such a number is added. What this module does not know: files.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from mindmerger_train.data.variants import NUMBER, Problem

_SENTENCE_END = re.compile(r"(?<=[.!]) +")
# Sentences that lean on one before them, or that a question might lean on.
_LEANS = re.compile(
    r"^(?:he|she|it|they|his|her|their|its|this|these|those|if|then|so|after|but|and|later|there|each|every|the rest)\b"
    r"|\b(?:each|every|total|altogether|rest|remaining|half|twice|times|more|fewer|less)\b",
    re.IGNORECASE,
)
# Words that begin a sentence and are no name.
_NO_NAME = re.compile(
    r"(?:an?|the|there|if|at|in|on|for|after|before|when|while|each|every|his|her|their|s?he|it|they|th(?:is|at|ese|ose)|some"
    r"|one|two|three|my|our|your?|of|to|from|during|last|yesterday|today|tomorrow|m[rs]s?|dr|how|what|all|both|most|students"
    r"|workers|people|children|boys|girls|\w+day|with|by|then)",
    re.IGNORECASE,
)
# About the person whom the story names first; nothing that a story counts.
_ASIDES = (
    "{name} is {small} years old .",
    "{name} has {small} cousins .",
    "{name} lives in house number {large} .",
    "The bus ride there took {name} {large} minutes .",
    "{name} had been waiting for this for {small} weeks .",
    "{name} lives {small} kilometers away .",
    "Last night {name} slept for {small} hours .",
    "{name} read {large} pages before breakfast .",
    "There were {large} other people around .",
    "{name} has known the others for {small} years .",
)
# Near asides copy a sentence such as "Tom has number0 red apples .": what it counts, with a word before it or none.
_COUNTED = re.compile(r"number\d+ (?:([a-z]+) )??([a-z]{3,}s)\b")
# Counted, and no things: measures, money, parts, what things are in; and what is no noun.
_MEASURES = re.compile(
    r"(?:acre|buck|bushel|calorie|cent|centimeter|cup|day|degree|dime|dollar|dozen|gallon|game|gram|hour|inche|kilogram"
    r"|kilometer|kick|lap|lb|leg|live|liter|load|meter|mile|minute|month|nickel|ounce|package|pack|pair|pennie|percent|pic"
    r"|piece|point|pound|problem|quarter|question|ride|row|section|set|sheet|slice|specie|step|time|ton|treasure|week|yard"
    r"|year|wa|ha|doe)s"
)
_PEOPLE = re.compile(
    r"(?:adult|boy|cousin|customer|employee|friend|girl|grader|guest|kid|member|passenger|player|student|teacher|visitor"
    r"|worker)s"
)
_NO_KIND = re.compile(
    r"and|are|as|dozen|dollar|different|equal|extra|fewer|for|in|less|more|of|on|other|the|to|were|with"
)
# A question about more than one thing or person; what is not wanted might be wanted then.
_ALL = re.compile(
    r"\b(?:all|altogether|animals|both|each|every|everyone|fruits?|items|kinds|objects|people|pets|sum|they|things|together"
    r"|total|toys|vegetables|we)\b"
)
# A word that may mean the thing before it; another thing there would be meant as well.
_POINTS = re.compile(
    r"\b(?:it|them|those|these|rest|remaining|others?|all|each|every|half)\b|number\d+ (?:\W|of|in|on|from|to)"
)


@dataclass(frozen=True)
class Surroundings:
    """What else the problems of a set tell of."""

    sentences: list[str]
    """Those that stand on their own and tell one number, `number0` in each."""
    things: list[str]
    people: list[str]
    kinds: dict[str, list[str]]
    """The words that stand before a thing: balloons → blue, green, red."""
    names: list[str]


def surroundings(problems: Sequence[Problem]) -> Surroundings:
    """What `with_aside` puts into problems, out of `problems`; the same problems give the same, in the same order."""
    counted: Counter[str] = Counter()
    names: Counter[str] = Counter()
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for problem in problems:
        if name := _name(problem.question):
            names[name] += 1
        for kind, noun in _COUNTED.findall(problem.question):
            if kind == "":
                counted[noun] += 1
            elif not _NO_KIND.fullmatch(kind):
                kinds[noun][kind] += 1
    nouns = sorted(noun for noun, times in counted.items() if times > 2 and not _MEASURES.fullmatch(noun))
    return Surroundings(
        standing_alone(problems),
        [noun for noun in nouns if not _PEOPLE.fullmatch(noun)],
        [noun for noun in nouns if _PEOPLE.fullmatch(noun)],
        {noun: sorted(words) for noun, words in kinds.items() if len(words) > 1 and noun in nouns},
        sorted(name for name, times in names.items() if times > 2 and len(name) > 1),
    )


def _name(question: str) -> str:
    """The name that the question begins with, or nothing."""
    name = question.split(" ", 1)[0]
    return name if name.isalpha() and name.istitle() and not _NO_NAME.fullmatch(name) else ""


def standing_alone(problems: Sequence[Problem]) -> list[str]:
    """Sentences of the problems' stories that stand on their own and tell one number, `number0` in each."""
    found = []
    for problem in problems:
        for sentence in _SENTENCE_END.split(problem.question)[:-1]:
            first = sentence.split(" ", 1)[0]
            if len(NUMBER.findall(sentence)) == 1 and first[:1].isupper() and not _LEANS.search(sentence):
                found.append(NUMBER.sub("number0", sentence))
    return found


def with_aside(problem: Problem, around: Surroundings, generator: random.Random, near: float = 0.0) -> Problem:
    """The problem with a number more that is not wanted, itself where nothing fits; worked out, both are the same.

    With the chance `near` it is near to what is asked, where the problem has room for that; else far.
    """
    if near and generator.random() < near:
        ways = [_in_front, _beside, _of_another]
        generator.shuffle(ways)
        for way in ways:
            if told := way(problem, around, generator):
                return Problem(told, (*problem.numbers, _like(problem.numbers, generator)), problem.equation)
    return _far(problem, around.sentences, generator)


def _far(problem: Problem, sentences: Sequence[str], generator: random.Random) -> Problem:
    """A sentence of another story, in front, or about the problem's own person."""
    extra = len(problem.numbers)
    parts = _SENTENCE_END.split(problem.question)
    name = _name(problem.question)
    if name and generator.random() < 0.6:
        aside = generator.choice(_ASIDES)
        number = Decimal(generator.randint(3, 15) if "{small}" in aside else generator.randint(10, 80))
        sentence = aside.format(name=name, small=f"number{extra}", large=f"number{extra}")
        parts.insert(generator.choice((0, len(parts) - 1)) if len(parts) > 1 else 0, sentence)
    elif sentences:
        number = Decimal(generator.randint(2, 90))
        parts.insert(0, generator.choice(sentences).replace("number0", f"number{extra}"))
    else:
        return problem
    return Problem(" ".join(parts), (*problem.numbers, number), problem.equation)


def _like(numbers: Sequence[Decimal], generator: random.Random) -> Decimal:
    """A whole number about as large as one of `numbers`, and none of them."""
    whole = [int(number) for number in numbers if 1 < number < 100_000] or [9]
    size = generator.choice(whole)
    drawn = Decimal(generator.randint(2, 20) if size <= 12 else round(size * generator.uniform(0.4, 2.2)))
    while drawn in numbers:
        drawn += 1
    return drawn


def _other(sentence: str, question: str, whole: str, around: Surroundings, generator: random.Random) -> tuple[str, str]:
    """What the sentence counts and the question asks for, and something else in its place; empty where there is none."""
    found = _COUNTED.search(sentence)
    if found is None or _MEASURES.fullmatch(found[2]) or len(NUMBER.findall(sentence)) != 1:
        return "", ""
    kind, noun = found[1] or "", found[2]
    words = set(re.findall(r"[a-z]+", whole.lower()))
    if kind and not _NO_KIND.fullmatch(kind) and f"{kind} {noun}" in question and generator.random() < 0.7:
        fitting = [other for other in around.kinds.get(noun, ()) if other not in words]
        return (f"{kind} {noun}", f"{generator.choice(fitting)} {noun}") if fitting else ("", "")
    if _NO_KIND.fullmatch(kind) or f" {noun} " not in question:
        return "", ""
    fitting = [other for other in (around.people if _PEOPLE.fullmatch(noun) else around.things) if other not in words]
    return (f"{kind} {noun}".strip(), generator.choice(fitting)) if fitting else ("", "")


def _parts(problem: Problem) -> tuple[list[str], str]:
    """The sentences before the question, and the question."""
    *story, question = _SENTENCE_END.split(problem.question)
    return story, question


def _in_front(problem: Problem, around: Surroundings, generator: random.Random) -> str:
    """ "There are 5 maple trees in the park . There are 4 walnut trees in the park …": the first sentence with other things."""
    story, question = _parts(problem)
    if not story or _ALL.search(question):
        return ""
    old, new = _other(story[0], question, problem.question, around, generator)
    extra = f"number{len(problem.numbers)}"
    if not old or _LEANS.search(story[0].removeprefix("There ")):
        return ""
    copy = NUMBER.sub(extra, story[0].replace(old, new))
    return " ".join([copy, problem.question])


def _beside(problem: Problem, around: Surroundings, generator: random.Random) -> str:
    """ "He ate 4 apples and 3 pears ." for "He ate 4 apples .", where no word leans on the apples."""
    story, question = _parts(problem)
    if not story or _ALL.search(question) or _POINTS.search(problem.question):
        return ""
    at = generator.randrange(len(story))
    old, new = _other(story[at], question, problem.question, around, generator)
    if not old or " more " in story[at] or set(problem.equation) & set("*/"):
        return ""
    extra = f"number{len(problem.numbers)} {new}"
    told = re.sub(
        rf"(number\d+) {old}\b",
        rf"\1 {old} and {extra}" if generator.random() < 0.5 else rf"{extra} and \1 {old}",
        story[at],
    )
    return " ".join([*story[:at], told, *story[at + 1 :], question])


def _of_another(problem: Problem, around: Surroundings, generator: random.Random) -> str:
    """ "Sara has 5 apples . Tom has 9 apples …": the first sentence of another person, where the question names the first."""
    story, question = _parts(problem)
    name = _name(problem.question)
    if not story or not name or _ALL.search(question) or f" {name} " not in question or _LEANS.search(story[0]):
        return ""
    others = [other for other in around.names if other not in problem.question]
    if len(NUMBER.findall(story[0])) != 1 or len(re.findall(r"\b[A-Z][a-z]+", story[0])) != 1 or not others:
        return ""
    copy = NUMBER.sub(f"number{len(problem.numbers)}", story[0]).replace(name, generator.choice(others))
    return " ".join([copy, problem.question] if generator.random() < 0.6 else [*story[:1], copy, *story[1:], question])
