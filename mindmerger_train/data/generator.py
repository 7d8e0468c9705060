"""Short arithmetic word problems in many languages, made from templates: parallel data with worked solutions.

One draw of numbers, names and objects is rendered twice, in the language asked for and in English, so every problem is
also a pair of parallel sentences. The answer is computed, never written by hand, and the solution marks each step as
GSM8K does (`<<15+27=42>>`). The wordings live in `templates/LANG.toml`, one file a language, written for this project:
no wording was taken from a benchmark, and none may be, or the evaluation would no longer measure anything.

A template is text with slots:

* `{a}`: a number; `{a.x}`: the number with its noun in the form that the language's plural rule asks for;
  `{a.x.acc}`: the same, preferring the noun's `_acc` forms (Russian feminine accusative);
* `{x}`, `{y}` (objects), `{g}` (container), `{m}` (money), `{page}` …: a noun; `{x.unit}`: one of its named forms;
* `{p}`, `{r}`: the people; `{p.gen}`: a named form of the name; `{p?he|she}`, `{x?cuántos|cuántas}`: by gender;
* `{e}`: the bare expression; `{1}`, `{2.x}`: the steps of a solution (English only).
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mindmerger.errors import DataError

LANGUAGES: tuple[str, ...] = ("en", "es", "fr", "de", "ru", "zh", "ja", "sw", "bn", "th", "hi", "te", "ar")
"""The languages that have a template file, by ISO 639-1 code."""

_TEMPLATES = Path(__file__).parent / "templates"
_SLOT = re.compile(r"\{([^{}]+)\}")
_SYMBOL = re.compile(r"[+*/×÷=−]|\} ?- ?\{")
_SENTENCE_START = re.compile(r"(^|[.?!]\s+)([a-zà-ÿœа-яё])")
_NATIVE_DIGITS = {"bn": "০১২৩৪৫৬৭৮৯", "hi": "०१२३४५६७८९", "ar": "٠١٢٣٤٥٦٧٨٩", "th": "๐๑๒๓๔๕๖๗๘๙", "te": "౦౧౨౩౪౫౬౭౮౯"}
# Telugu is nearly always written with ASCII digits today.
_NATIVE_RATE = {"bn": 0.1, "hi": 0.1, "ar": 0.1, "th": 0.1, "te": 0.02}
_WORDS_RATE = 0.07
_EDIBLE = ("apple", "egg", "orange")
_NOT_FOR_SALE = ("coin", "stone")
_TOO_LARGE_TO_PACK = ("chair",)


@dataclass(frozen=True)
class Problem:
    """One problem: the question in its language and in English, the worked solution in English, and the answer."""

    language: str
    query: str
    english: str
    response: str
    answer: int
    kind: str


Numbers = dict[str, int]
Draw = Callable[[random.Random, int], Numbers]


def _scale(rng: random.Random, top: int) -> int:
    """An upper bound for a number: mostly small, sometimes up to a hundred, at times up to `top`."""
    roll = rng.random()
    return min(top, 20 if roll < 0.4 else 100 if roll < 0.85 else 1000)


def _sum(rng: random.Random, top: int) -> Numbers:
    scale = _scale(rng, top)
    return {"a": rng.randint(2, scale), "b": rng.randint(2, scale)}


def _less(rng: random.Random, top: int) -> Numbers:
    a = rng.randint(4, _scale(rng, top))
    return {"a": a, "b": rng.randint(2, a - 1)}


def _grow(rng: random.Random, top: int) -> Numbers:
    low = _less(rng, top)
    return {"a": low["b"], "b": low["a"]}


def _few(rng: random.Random, top: int) -> Numbers:
    """Something that one person eats."""
    return _less(rng, min(top, 30))


def _product(rng: random.Random, top: int) -> Numbers:
    a, b = rng.randint(2, 12), rng.randint(2, max(12, _scale(rng, min(top, 100))))
    return {"a": a, "b": b} if rng.random() < 0.5 else {"a": b, "b": a}


def _groups(rng: random.Random, top: int) -> Numbers:
    return {"a": rng.randint(2, min(top, 20)), "b": rng.randint(2, min(top, rng.choice((12, 12, 50))))}


def _quotient(rng: random.Random, top: int) -> Numbers:
    b = rng.randint(2, 10)
    return {"a": b * rng.randint(2, max(2, min(top // b, rng.choice((10, 10, 25, 90))))), "b": b}


def _even(rng: random.Random, top: int) -> Numbers:
    return {"a": 2 * rng.randint(2, max(2, _scale(rng, top) // 2))}


def _one(rng: random.Random, top: int) -> Numbers:
    return {"a": rng.randint(2, _scale(rng, top))}


def _sum_less(rng: random.Random, top: int) -> Numbers:
    numbers = _sum(rng, top)
    return {**numbers, "c": rng.randint(2, min(top, numbers["a"] + numbers["b"] - 1))}


def _groups_and(rng: random.Random, top: int) -> Numbers:
    return {**_groups(rng, top), "c": rng.randint(2, min(top, 30))}


def _sum_share(rng: random.Random, top: int) -> Numbers:
    c = rng.randint(2, 10)
    total = c * rng.randint(2, max(2, min(top // c, rng.choice((10, 25)))))
    a = rng.randint(2, max(2, total - 2))
    return {"a": a, "b": total - a, "c": c}


def _two_costs(rng: random.Random, top: int) -> Numbers:
    a = rng.randint(8, max(10, _scale(rng, top)))
    b = rng.randint(2, a - 4)
    return {"a": a, "b": b, "c": rng.randint(2, a - b - 1)}


def _price_change(rng: random.Random, top: int) -> Numbers:
    a, b = rng.randint(2, 10), rng.randint(2, 20)
    cost = a * b
    # People pay with round sums more often than not.
    paid = -(-(cost + 1) // 10) * 10 if rng.random() < 0.7 else cost + rng.randint(2, 30)
    return {"a": a, "b": b, "c": paid}


def _days(rng: random.Random, top: int) -> Numbers:
    return {"a": rng.randint(3, min(top, 60)), "b": rng.randint(2, 14)}


def _extra(rng: random.Random, top: int) -> Numbers:
    scale = _scale(rng, top)
    return {name: rng.randint(2, scale) for name in "abc"}


@dataclass(frozen=True)
class _Kind:
    """What a problem is: how its numbers are drawn, the steps that solve it, and which question ends it.

    A step is `left operator right`; an operand is a slot (`a`), an earlier step (`1`) or a constant (`=2`).
    """

    draw: Draw
    steps: tuple[str, ...]
    question: str | None = None
    objects: str = "any"
    symbols: tuple[str, ...] = ()


_KINDS: dict[str, _Kind] = {
    "add": _Kind(_sum, ("a + b",), symbols=("{a} + {b}", "{a}+{b}")),
    "sub": _Kind(_less, ("a - b",), symbols=("{a} - {b}", "{a} − {b}", "{a}-{b}")),
    "mul": _Kind(_product, ("a * b",), symbols=("{a} × {b}", "{a} * {b}", "{a}×{b}")),
    "div": _Kind(_quotient, ("a / b",), symbols=("{a} ÷ {b}", "{a} / {b}", "{a}÷{b}")),
    "add_mul": _Kind(_groups_and, ("a + b", "1 * c"), symbols=("({a} + {b}) × {c}", "({a} + {b}) * {c}")),
    "mul_add": _Kind(_groups_and, ("a * b", "1 + c"), symbols=("{a} × {b} + {c}", "{a} * {b} + {c}")),
    "add_sub": _Kind(_sum_less, ("a + b", "1 - c"), symbols=("{a} + {b} - {c}", "{a} + {b} − {c}")),
    "combine": _Kind(_sum, ("a + b",), "together"),
    "buy": _Kind(_sum, ("a + b",), "now"),
    "find": _Kind(_sum, ("a + b",), "now"),
    "receive": _Kind(_sum, ("a + b",), "now"),
    "give": _Kind(_less, ("a - b",), "left"),
    "sell": _Kind(_less, ("a - b",), "left"),
    "lose": _Kind(_less, ("a - b",), "left"),
    "eat": _Kind(_few, ("a - b",), "left", objects="edible"),
    "half": _Kind(_even, ("a / =2", "a - 1"), "left"),
    "compare_more": _Kind(_less, ("a - b",), "more_than"),
    "compare_given": _Kind(_sum, ("a + b",), "has_r"),
    "compare_fewer": _Kind(_less, ("a - b",), "has_r"),
    "twice": _Kind(_one, ("=2 * a",), "has_r"),
    "twice_total": _Kind(_one, ("=2 * a", "a + 1"), "together"),
    "change_unknown": _Kind(_grow, ("b - a",), "bought"),
    "start_unknown": _Kind(_less, ("a - b",), "first"),
    "groups": _Kind(_groups, ("a * b",), "in_all", objects="small"),
    "groups_plus": _Kind(_groups_and, ("a * b", "1 + c"), "in_all", objects="small"),
    "share": _Kind(_quotient, ("a / b",), "each"),
    "combine_share": _Kind(_sum_share, ("a + b", "1 / c"), "each"),
    "pack": _Kind(_quotient, ("a / b",), "containers", objects="small"),
    "price": _Kind(_groups, ("a * b",), "pay", objects="for sale"),
    "change": _Kind(_grow, ("b - a",), "change", objects="for sale"),
    "price_change": _Kind(_price_change, ("a * b", "c - 1"), "change", objects="for sale"),
    "days": _Kind(_days, ("a * b",), "pages"),
    "buy_give": _Kind(_sum_less, ("a + b", "1 - c"), "now"),
    "spend": _Kind(_two_costs, ("b + c", "a - 1"), "money_left"),
    "extra": _Kind(_extra, ("a + c",), "now"),
}
KINDS: tuple[str, ...] = tuple(_KINDS)
"""Every kind of problem, the same in all languages."""


@dataclass(frozen=True)
class _Scene:
    """One draw: everything that both renderings share. Nouns are keys, people are rows of the name table."""

    kind: str
    numbers: Mapping[str, int]
    people: Mapping[str, list[str]]
    nouns: Mapping[str, str]


@cache
def _load(language: str) -> dict[str, Any]:
    if language not in LANGUAGES:
        raise DataError(
            f"there are no problem templates for the language {language!r}; use one of {', '.join(LANGUAGES)}"
        )
    path = _TEMPLATES / f"{language}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the template file {path} cannot be read ({error}); reinstall the package") from error


def _plural(rule: str, n: int) -> str:
    """The CLDR plural category of a whole number, for the rules that the template files use."""
    if rule == "ru":
        if n % 10 == 1 and n % 100 != 11:
            return "one"
        return "few" if 2 <= n % 10 <= 4 and not 12 <= n % 100 <= 14 else "many"
    if rule == "ar":
        if n == 1:
            return "one"
        if 3 <= n % 100 <= 10:
            return "few"
        return "many" if 11 <= n % 100 <= 99 else "other"
    return "one" if rule == "one_other" and n == 1 else "other"


class _Renderer:
    """Fills templates of one language for one scene."""

    def __init__(self, language: str, scene: _Scene, *, words: bool = False) -> None:
        self._data = _load(language)
        self._scene = scene
        # In English the Latin form of a name stands for the native one.
        self._name_column = 1 if language == "en" else 0
        self._words: list[str] = self._data.get("number_words", []) if words else []
        self.extra: dict[str, tuple[str, int]] = {}

    def _number(self, value: int) -> str:
        # Not 0 and 1: those agree with their noun in most languages.
        return self._words[value] if 2 <= value < len(self._words) else str(value)

    def _noun(self, slot: str) -> dict[str, str]:
        key = self._scene.nouns.get(slot)
        table = {"x": "nouns", "y": "nouns", "g": "containers", "m": "money"}.get(slot, "misc")
        noun: dict[str, str] = self._data[table][key or slot]
        return noun

    def _counted(self, text: str, value: int, noun: dict[str, str], case: str) -> str:
        category = _plural(self._data["plural"], value)
        word = noun.get(f"{category}_{case}", noun[category]) if case else noun[category]
        pattern: str = noun.get("counted") or self._data["counted"]
        return pattern.format(n=text, w=word, c=noun.get("c", ""))

    def _gender(self, slot: str) -> str:
        return self._scene.people[slot][2] if slot in self._scene.people else self._noun(slot)["gender"]

    def _slot(self, match: re.Match[str]) -> str:
        body = match[1]
        if "?" in body:
            slot, _, choice = body.partition("?")
            masculine, _, feminine = choice.partition("|")
            return masculine if self._gender(slot) == "m" else feminine
        slot, *forms = body.split(".")
        if slot in self.extra or slot in self._scene.numbers:
            text, value = self.extra[slot] if slot in self.extra else ("", self._scene.numbers[slot])
            text = text or self._number(value)
            return self._counted(text, value, self._noun(forms[0]), "".join(forms[1:])) if forms else text
        if slot in self._scene.people:
            row = self._scene.people[slot]
            if not forms:
                return row[self._name_column]
            columns: list[str] = self._data["name_forms"]
            return row[3 + columns.index(forms[0])]
        noun = self._noun(slot)
        return noun[forms[0] if forms else "other"]

    def fill(self, template: str) -> str:
        """The template with every slot replaced and its sentences capitalised."""
        text = _SLOT.sub(self._slot, template)
        return _SENTENCE_START.sub(lambda m: m[1] + m[2].upper(), text)


def wordings(language: str, kind: str) -> list[str]:
    """All templates of a kind in a language, bare kinds with symbols included."""
    data, spec = _load(language), _KINDS[kind]
    if spec.question is None:
        expressions = [*spec.symbols, *data["bare"].get(kind, [])]
        whole: list[str] = data["bare_whole"].get(kind, [])
        return [wrap.replace("{e}", expression) for wrap in data["bare"]["wrap"] for expression in expressions] + whole
    joiner = data["joiner"]
    return [
        setup + joiner + question for setup in data["setups"][kind] for question in data["questions"][spec.question]
    ]


def _draw_scene(language: str, kind: str, rng: random.Random, top: int) -> _Scene:
    data, spec = _load(language), _KINDS[kind]
    numbers = spec.draw(rng, top)
    # Arabic counts one and two with the noun alone, without a figure.
    while data["plural"] == "ar" and spec.question is not None and min(numbers.values()) < 3:
        numbers = spec.draw(rng, top)
    first, second = rng.sample(data["names"], 2)
    keys = list(data["nouns"])
    if spec.objects == "edible":
        keys = [key for key in keys if key in _EDIBLE]
    elif spec.objects == "for sale":
        keys = [key for key in keys if key not in _NOT_FOR_SALE]
    elif spec.objects == "small":
        keys = [key for key in keys if key not in _TOO_LARGE_TO_PACK]
    x, y = rng.sample(keys, 2)
    nouns = {"x": x, "y": y, "g": rng.choice(list(data["containers"])), "m": rng.choice(list(data["money"]))}
    return _Scene(kind, numbers, {"p": first, "r": second}, nouns)


def _solve(scene: _Scene) -> dict[str, tuple[str, int]]:
    """The steps by number: the text with GSM8K's annotation, and the value."""
    steps: dict[str, tuple[str, int]] = {}
    value_of = dict(scene.numbers)
    for index, step in enumerate(_KINDS[scene.kind].steps, start=1):
        left, operator, right = step.split()
        a, b = (int(name[1:]) if name.startswith("=") else value_of[name] for name in (left, right))
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[operator]
        value_of[str(index)] = result
        steps[str(index)] = (f"{a} {operator} {b} = <<{a}{operator}{b}={result}>>{result}", result)
    return steps


def _ask(language: str, scene: _Scene, rng: random.Random) -> str:
    """The problem in one language, in a random wording; now and then small numbers are spelled out."""
    template = rng.choice(wordings(language, scene.kind))
    # Nobody writes "nine × 33".
    words = rng.random() < _WORDS_RATE and not _SYMBOL.search(template)
    return _Renderer(language, scene, words=words).fill(template)


def _check_kind(kind: str) -> None:
    if kind not in _KINDS:
        raise DataError(f"there is no kind of problem {kind!r}; use one of {', '.join(KINDS)}")


def make(language: str, kind: str, rng: random.Random, *, max_value: int = 1000) -> Problem:
    """One problem of a given kind.

    Raises:
        DataError: for a language or a kind that does not exist, or a `max_value` under 20.
    """
    _load(language)
    _check_kind(kind)
    if max_value < 20:
        raise DataError(f"max_value is {max_value}; use 20 or more, or most kinds of problem have no numbers to draw")
    scene = _draw_scene(language, kind, rng, max_value)
    steps = _solve(scene)
    query = _ask(language, scene, rng)
    if rng.random() < _NATIVE_RATE.get(language, 0.0):
        query = query.translate(str.maketrans("0123456789", _NATIVE_DIGITS[language]))
    english = _ask("en", scene, rng)
    writer = _Renderer("en", scene)
    writer.extra = steps
    answer = list(steps.values())[-1][1]
    solution = writer.fill(rng.choice(_load("en")["solutions"][kind]))
    return Problem(language, query, english, f"{solution}\n#### {answer}", answer, kind)


def generate(
    language: str, count: int, seed: int, *, max_value: int = 1000, kinds: Sequence[str] = KINDS
) -> Iterator[Problem]:
    """Yield `count` problems in `language`; the same arguments give the same problems.

    Args:
        language: one of `LANGUAGES`.
        count: how many problems.
        seed: any whole number; languages with the same seed do not draw the same problems.
        max_value: about the greatest number that a question may contain (at least 20); answers can be greater.
        kinds: which of `KINDS` are drawn, each as often.

    Raises:
        DataError: for an unknown language or kind, no kind, a negative count or a `max_value` under 20: before the first
            problem.
    """
    _load(language)
    if not kinds:
        raise DataError(f"kinds is empty; use some of {', '.join(KINDS)}")
    for kind in kinds:
        _check_kind(kind)
    if count < 0:
        raise DataError(f"count is {count}; use 0 or more")
    if max_value < 20:
        raise DataError(f"max_value is {max_value}; use 20 or more, or most kinds of problem have no numbers to draw")
    rng = random.Random(f"{language}:{seed}")
    return (make(language, rng.choice(kinds), rng, max_value=max_value) for _ in range(count))
