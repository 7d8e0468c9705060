"""Word problems once more, with other numbers.

A set of 3,000 problems is soon known by heart, numbers and all. Here a problem with its equation becomes many: numbers are
drawn anew such that the story still holds (nothing negative or broken where it was not, what was more is more). What this
module does not know: files, and what else a story may tell (asides.py).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from mindmerger_train.data.annotations import annotated, number_text

# Draws of numbers before a problem is given up and keeps its own.
TRIES = 200
# Numbers that often stand for something else than a count: one (a singular), a hundred (per cent), and fractions.
_FIXED = (Decimal(0), Decimal(1), Decimal(100))
NUMBER = re.compile(r"number(\d+)")
"""A number in a problem's text, by its place among the problem's numbers."""


@dataclass(frozen=True)
class Problem:
    """A question whose numbers are written `number0`, `number1` …, their values, and its equation in prefix notation."""

    question: str
    numbers: tuple[Decimal, ...]
    equation: str

    def text(self) -> str:
        """The question with its numbers written out."""
        return NUMBER.sub(lambda match: number_text(self.numbers[int(match[1])]), self.question)


@dataclass(frozen=True)
class Step:
    """One operation of an equation: `left operator right = result`."""

    operator: str
    left: Decimal
    right: Decimal
    result: Decimal


def solve(equation: str, numbers: Sequence[Decimal]) -> tuple[list[Step], Decimal]:
    """`* number0 number1` → its steps in the order of working, and the value; what goes on is a result as it is written down.

    Raises ValueError, IndexError or ArithmeticError when the equation does not parse or divides by zero.
    """
    tokens = equation.split()
    steps: list[Step] = []

    def value(index: int) -> tuple[Decimal, int]:
        token = tokens[index]
        if token in "+-*/":
            left, after = value(index + 1)
            right, after = value(after)
            result = {
                "+": lambda: left + right,
                "-": lambda: left - right,
                "*": lambda: left * right,
                "/": lambda: left / right,
            }[token]()
            result = Decimal(number_text(result))
            steps.append(Step(token, left, right, result))
            return result, after
        return (numbers[int(token.removeprefix("number"))] if token.startswith("number") else Decimal(token)), index + 1

    result, end = value(0)
    if end != len(tokens):
        raise ValueError(f"{equation!r} does not end where its operators say")
    return steps, result


def worked(problem: Problem) -> str:
    """The solution in GSM8K's annotated form, the equation step by step. Raises what `solve` raises."""
    steps, value = solve(problem.equation, problem.numbers)
    lines = []
    for step in steps:
        lines.append(annotated(f"{number_text(step.left)} {step.operator} {number_text(step.right)}", step.result))
    return "\n".join([*lines, f"#### {number_text(value)}"])


def _drawn(number: Decimal, generator: random.Random) -> Decimal:
    """Another number of the same kind: as large, as round, with as many decimals."""
    if number in _FIXED or number < 1:
        return number
    if number == number.to_integral_value():
        if number <= 12:
            return Decimal(generator.randint(2, 20))
        unit = next((unit for unit in (1000, 100, 10) if number % unit == 0 and number > unit), 1)
        if unit > 1 and generator.random() < 0.5:
            unit = 1
        drawn = float(number) * math.exp(generator.uniform(-1.1, 1.1))
        return Decimal(max(2, round(drawn / unit) * unit))
    places = -int(number.as_tuple().exponent)
    drawn = float(number) * math.exp(generator.uniform(-0.7, 0.7))
    return round(Decimal(drawn), places)


def _holds(old: Sequence[Decimal], new: Sequence[Decimal], equation: str) -> bool:
    """Whether the story still holds: the same order of numbers; no step that turns negative, broken or nothing."""
    for i, left in enumerate(old):
        for j in range(i):
            if (left > old[j]) != (new[i] > new[j]) or (left < old[j]) != (new[i] < new[j]):
                return False
    try:
        before, after = solve(equation, old)[0], solve(equation, new)[0]
    except ArithmeticError:
        return False
    for was, now in ((a.result, b.result) for a, b in zip(before, after, strict=True)):
        whole, finite = was == was.to_integral_value(), now == round(now, 4)
        if (
            (was > 0) != (now > 0)
            or (was >= 1) != (now >= 1)
            or not finite
            or (whole and now != now.to_integral_value())
        ):
            return False
    return True


def renumbered(problem: Problem, generator: random.Random) -> Problem:
    """The problem with other numbers; itself where none are found in `TRIES` draws."""
    tokens = problem.equation.split()
    for _ in range(TRIES):
        drawn = {number: _drawn(number, generator) for number in problem.numbers}
        new = [drawn[number] for number in problem.numbers]
        if len(tokens) == 3 and tokens[0] == "/" and tokens[1].startswith("number") and tokens[2].startswith("number"):
            # Two numbers seldom divide: the quotient is drawn instead.
            above, below = int(tokens[1].removeprefix("number")), int(tokens[2].removeprefix("number"))
            old = problem.numbers[above] / problem.numbers[below] if problem.numbers[below] else Decimal(0)
            if old == old.to_integral_value() and old > 1:
                new[above] = new[below] * _drawn(old, generator)
        if _holds(problem.numbers, new, problem.equation):
            return Problem(problem.question, tuple(new), problem.equation)
    return problem
