"""The calculator of GSM8K's annotations: when the LLM has written `<<48/2=`, compute what must follow.

Exact (fractions, no floating point), no `eval`, bounded. An expression that is not plain arithmetic gives None, and the
LLM is left to write what it would have written.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_EXPRESSION = 200
_MAX_DEPTH = 32
_MAX_DIGITS = 30  # more than any word problem needs; a longer result is a model that runs wild
_MAX_DECIMALS = 6

_TOKEN = re.compile(r"\s*(?:([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+\.?[0-9]*|\.[0-9]+)|([-+*/()%]))")
_SPELLINGS = str.maketrans({"x": "*", "X": "*", "×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "$": " ", "€": " "})


def pending_expression(text: str) -> str | None:
    """The expression of an annotation that `text` ends in the middle of: `… <<48/2=` gives `48/2`."""
    if not text.endswith("="):
        return None
    # two for the brackets: the search must not cost more as the text grows
    tail = text[-(MAX_EXPRESSION + 3) : -1]
    start = tail.rfind("<<")
    if start < 0:
        return None
    expression = tail[start + 2 :]
    if not expression.strip() or any(mark in expression for mark in "<>=\n"):
        return None
    return expression


def calculate(expression: str) -> str | None:
    """The value of `expression`, written as GSM8K writes it, or None when it is not computable arithmetic."""
    value = evaluate(expression)
    return None if value is None else format_number(value)


def evaluate(expression: str) -> Fraction | None:
    """The exact value: + - * / ( ) decimals, thousands commas, postfix %, unary signs; None for anything else."""
    if len(expression) > MAX_EXPRESSION:
        return None
    tokens = _tokens(expression.translate(_SPELLINGS))
    if not tokens:
        return None
    try:
        parser = _Parser(tokens)
        value = parser.sum()
    except (_NotArithmetic, ZeroDivisionError):
        return None
    return value if parser.at_end() else None


def format_number(value: Fraction) -> str | None:
    """Integers plain, decimals that end plain, others to 2 decimals (to 2 significant digits where that is 0)."""
    if len(str(abs(value.numerator) // value.denominator)) > _MAX_DIGITS:
        return None
    decimals = _decimals(value)
    if decimals is None:
        decimals = 2
        # 1/300 is not 0
        while decimals < 12 and abs(value) * 10**decimals < Fraction(1, 2):
            decimals += 1
        if decimals > 2:
            decimals += 1
    # Half away from zero, as people round; Python's round() goes to even.
    scaled = (abs(value.numerator) * 10**decimals * 2 + value.denominator) // (2 * value.denominator)
    digits = str(scaled).rjust(decimals + 1, "0")
    text = digits if decimals == 0 else f"{digits[:-decimals]}.{digits[-decimals:]}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 and text.strip("0.") else text


def _decimals(value: Fraction) -> int | None:
    """How many decimals write `value` exactly; None when none do, or too many."""
    for decimals in range(_MAX_DECIMALS + 1):
        if (value.numerator * 10**decimals) % value.denominator == 0:
            return decimals
    return None


class _NotArithmetic(Exception):
    pass


def _tokens(text: str) -> list[str]:
    tokens = []
    place = 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            return []
        number, operator = match.groups()
        tokens.append(number or operator)
        place = match.end()
    return tokens


class _Parser:
    """Recursive descent with a bounded depth: sum → product → sign → value with percent signs."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.place = 0
        self.depth = 0

    def at_end(self) -> bool:
        return self.place == len(self.tokens)

    def peek(self) -> str:
        return "" if self.at_end() else self.tokens[self.place]

    def take(self) -> str:
        token = self.peek()
        self.place += 1
        return token

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while self.peek() in ("*", "/"):
            value = value * self.signed() if self.take() == "*" else value / self.signed()
        return value

    def signed(self) -> Fraction:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.value()
        return -value if negative else value

    def value(self) -> Fraction:
        token = self.take()
        if token == "(":
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise _NotArithmetic
            value = self.sum()
            if self.take() != ")":
                raise _NotArithmetic
            self.depth -= 1
        elif token and token[0] in "0123456789.":
            value = Fraction(token.replace(",", "").rstrip("."))
        else:
            raise _NotArithmetic
        while self.peek() == "%":
            self.take()
            value /= 100
        return value
