"""The quantities of a story, the rules between them, and how one is worked out from those that are told.

A rule is a sum or a product, written in any direction: `left = start - gone` says the same as `start = left + gone`. So one
story gives many problems: any quantity may be asked for, and any others that determine it may be told.
What this module does not know: words.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from mindmerger.errors import DataError
from mindmerger_train.data.annotations import annotated

Values = dict[str, Fraction]
_RULE = re.compile(r"^(\w+) = (\w+(?: (?:[-+*/%]|//|/\^) \w+)+)$")
_ONE_WAY = ("//", "/^", "%")


@dataclass(frozen=True)
class Rule:
    """`whole` is the sum (`+`) or the product (`*`) of `parts`; a part may be a number.

    Three operators cannot be turned around: `//` and `/^` divide and round down or up; `a % b` is b percent of a.
    """

    whole: str
    operator: str
    parts: tuple[str, ...]

    def ways(self) -> Iterable[tuple[str, tuple[str, ...], str]]:
        """(what is worked out, its operands in order, the operator between them)."""
        yield self.whole, self.parts, self.operator
        if self.operator in _ONE_WAY:
            return
        inverse = "-" if self.operator == "+" else "/"
        for index, part in enumerate(self.parts):
            if not part.isdigit():
                yield part, (self.whole, *self.parts[:index], *self.parts[index + 1 :]), inverse


@dataclass(frozen=True)
class Step:
    """One line of a solution: `target` is worked out as its operands with the operator between them."""

    target: str
    operands: tuple[str, ...]
    operator: str


def parse_rule(text: str) -> Rule:
    """`left = start - gone` → a rule. Raises DataError."""
    match = _RULE.match(text)
    operators = set(match[2].split()[1::2]) if match else set()
    if match is None or len(operators) != 1:
        raise DataError(f"{text!r} is no rule: write `name = name + name`, with one operator of + - * / // /^ %")
    operator = operators.pop()
    operands = tuple(match[2].split()[::2])
    if operator in ("+", "*", *_ONE_WAY):
        return Rule(match[1], operator, operands)
    return Rule(operands[0], "+" if operator == "-" else "*", (match[1], *operands[1:]))


_OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: Fraction(a // b),
    "/^": lambda a, b: Fraction(-(-a // b)),
    "%": lambda a, b: a * b / 100,
}


def compute(step: Step, values: Mapping[str, Fraction]) -> Fraction | None:
    """The value of a step; None when it divides by zero or an operand is not known."""
    operands = []
    for name in step.operands:
        if name.isdigit():
            operands.append(Fraction(name))
        elif name in values:
            operands.append(values[name])
        else:
            return None
    value = operands[0]
    for operand in operands[1:]:
        if "/" in step.operator and operand == 0:
            return None
        value = _OPERATIONS[step.operator](value, operand)
    return value


def complete(values: Values, rules: Iterable[Rule]) -> Values | None:
    """All quantities that the rules give, from those drawn; None when one is not positive or has more than 2 decimals."""
    known = dict(values)
    waiting = list(rules)
    while waiting:
        rest = []
        for rule in waiting:
            unknown = [name for name in (rule.whole, *rule.parts) if not name.isdigit() and name not in known]
            if len(unknown) > 1:
                rest.append(rule)
                continue
            for target, operands, operator in rule.ways():
                if unknown and target != unknown[0]:
                    continue
                value = compute(Step(target, operands, operator), known)
                if value is None or value <= 0 or (value * 100).denominator != 1:
                    return None
                if not unknown and known[target] != value:
                    return None
                known[target] = value
                break
        if len(rest) == len(waiting):
            raise DataError(f"the rules leave {sorted({n for r in rest for n in r.parts} - set(known))} open")
        waiting = rest
    return known


def solve(asked: str, told: Iterable[str], rules: Iterable[Rule]) -> list[Step] | None:
    """The shortest chain of steps from what is told to what is asked; None when there is none.

    Costs are those of derivation trees (what two steps share counts twice), lowered until they stand still.
    """
    cost: dict[str, float] = dict.fromkeys(told, 0.0)
    best: dict[str, Step] = {}
    ways = [Step(*way) for rule in rules for way in rule.ways()]
    changed = True
    while changed:
        changed = False
        for step in ways:
            names = [name for name in step.operands if not name.isdigit()]
            if all(name in cost for name in names):
                # Ties go to the step with fewer operands, and to those that add or multiply.
                total = (
                    1
                    + 0.3 * (len(step.operands) - 2)
                    + 0.01 * (step.operator in "-/")
                    + sum(map(cost.__getitem__, names))
                )
                if total < cost.get(step.target, float("inf")) - 1e-9:
                    cost[step.target], best[step.target] = total, step
                    changed = True
    if asked not in best:
        return None
    chain: list[Step] = []

    def visit(name: str) -> None:
        step = best.get(name)
        if step is None or step in chain:
            return
        for operand in step.operands:
            visit(operand)
        chain.append(step)

    visit(asked)
    return chain


def tellings(
    asked: str,
    units: Iterable[frozenset[str]],
    rules: tuple[Rule, ...],
    steps: int,
    given: frozenset[str] = frozenset(),
) -> list[tuple[frozenset[str], int]]:
    """The smallest sets of quantities that determine `asked` in at most `steps` steps, and how many each takes.

    `units`: what can be told at once; `given`: what is known anyhow.
    """
    found: list[tuple[frozenset[str], int]] = []
    usable = sorted({unit for unit in units if unit and asked not in unit and not unit & given}, key=sorted)
    sets = {
        frozenset().union(*chosen) for size in range(1, steps + 2) for chosen in itertools.combinations(usable, size)
    }
    for told in sorted(sets, key=lambda told: (len(told), sorted(told))):
        if any(known <= told for known, _ in found):
            continue
        chain = solve(asked, told | given, rules)
        if chain is not None:
            found.append((told, len(chain)))
    return [(told, length) for told, length in found if length <= steps]


def worked(step: Step, operands: list[str], value: Fraction) -> str:
    """`12 - 3 = <<12-3=9>>9`; a division that is to be rounded shows what comes out before."""
    if step.operator == "%":
        operator, operands = "*", [operands[0], f"{operands[1]} / 100"]
    else:
        operator = step.operator[0]
    shown = f" {operator} ".join(operands)
    if step.operator in ("//", "/^"):
        value = Fraction(operands[0]) / Fraction(operands[1])
    return annotated(shown, value)


def _between(low: int, high: int, step: int = 1) -> Callable[[random.Random, int], Fraction]:
    return lambda rng, top: Fraction(rng.randrange(low, high + 1, step))


def _count(rng: random.Random, top: int) -> Fraction:
    """Small numbers are more frequent than large ones, round ones more frequent than they would be by chance."""
    value = rng.randint(2, top) if rng.random() < 0.6 else int(2 * (top / 2) ** rng.random())
    if value >= 40 and rng.random() < 0.25:
        value -= value % (10 if value < 400 else 50)
    return Fraction(value)


def _price(rng: random.Random, top: int) -> Fraction:
    roll = rng.random()
    return Fraction(rng.randint(2, 12) if roll < 0.55 else rng.randint(8, 60) if roll < 0.9 else 5 * rng.randint(5, 24))


def _cents(rng: random.Random, top: int) -> Fraction:
    roll = rng.random()
    if roll < 0.5:
        return _price(rng, top)
    return rng.randint(0, 15) + Fraction(rng.choice((25, 50, 75)) if roll < 0.8 else 5 * rng.randint(1, 19), 100)


DRAWS: dict[str, Callable[[random.Random, int], Fraction]] = {
    "n": _count,
    "price": _price,
    "cents": _cents,
    "few": _between(2, 10),
    "small": _between(2, 20),
    "times": lambda rng, top: Fraction(rng.choice((2, 2, 2, 3, 3, 4, 5, 6))),
    "per": lambda rng, top: Fraction(rng.randint(2, 12) if rng.random() < 0.7 else rng.randint(5, 48)),
}
"""How a number may be drawn: (random, the story's greatest count) → value. A range is written `5-40` or `10-90/5`."""


def drawer(text: str) -> Callable[[random.Random, int], Fraction]:
    """`few`, `5-40`, `10-90/5` → how to draw. Raises DataError."""
    if text in DRAWS:
        return DRAWS[text]
    match = re.fullmatch(r"(\d+)-(\d+)(?:/(\d+))?", text)
    if match is None:
        raise DataError(f"{text!r} is no way to draw a number: use {', '.join(DRAWS)}, or a range 5-40 or 10-90/5")
    return _between(int(match[1]), int(match[2]), int(match[3] or 1))
