"""Variants of word problems: other numbers under which the story holds."""

from __future__ import annotations

import random
import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindmerger.calculator import format_number
from mindmerger_train.data.annotations import number_text
from mindmerger_train.data.variants import (
    Problem,
    renumbered,
    solve,
    worked,
)

SHARE = Problem(
    "Ana has number0 sweets . She gives them to number1 friends . How many does each get ?",
    (Decimal(12), Decimal(4)),
    "/ number0 number1",
)
GIVE = Problem(
    "Ben had number0 pens . He lost number1 . How many are left ?", (Decimal(9), Decimal(5)), "- number0 number1"
)


def problem(equation: str, *numbers: str) -> Problem:
    text = " and ".join(f"number{i}" for i in range(len(numbers)))
    return Problem(f"Take {text} .", tuple(map(Decimal, numbers)), equation)


def test_equations_become_annotated_steps():
    text = worked(problem("- * number0 number1 2.5", "4.0", "3"))
    assert text == "4 * 3 = <<4*3=12>>12\n12 - 2.5 = <<12-2.5=9.5>>9.5\n#### 9.5"
    assert worked(problem("number0", "7.00")) == "#### 7"
    with pytest.raises(ValueError, match="does not end"):
        solve("+ number0 number1 number0", [Decimal(1), Decimal(2)])
    with pytest.raises(IndexError):
        solve("+ number0", [Decimal(1)])


@given(st.integers(0, 10_000))
def test_stories_hold_under_other_numbers(seed):
    generator = random.Random(seed)
    for origin in (
        SHARE,
        GIVE,
        problem("* / number0 100 number1", "100", "45"),
        problem("+ number0 number1", "2.5", "0.25"),
    ):
        new = renumbered(origin, generator)
        before, after = solve(origin.equation, origin.numbers)[1], solve(new.equation, new.numbers)[1]
        assert after > 0
        assert after == after.to_integral_value() or before != before.to_integral_value()
        assert (new.numbers[0] > new.numbers[1]) == (origin.numbers[0] > origin.numbers[1])
        assert "number" not in new.text()
        for old, number in zip(origin.numbers, new.numbers, strict=True):
            assert number == old or old not in (0, 1, 100)
            assert -number.as_tuple().exponent <= max(0, -old.as_tuple().exponent)


def test_most_draws_change_the_numbers():
    generator = random.Random(0)
    for origin in (SHARE, GIVE):
        drawn = {renumbered(origin, generator).numbers for _ in range(50)}
        assert len(drawn) > 25


def test_numbers_that_cannot_be_others_stay():
    half = problem("* number0 number1", "0.5", "1")
    assert renumbered(half, random.Random(0)) == half


def test_a_step_goes_on_with_what_is_written():
    """129.9 - 76.7 is 53.2, of 76.7 that is 0.6936…: the calculator has written 0.69 and reads it again."""
    problem = Problem("?", (Decimal("129.9"), Decimal("76.7")), "* / - number0 number1 number1 100")
    assert worked(problem).splitlines()[1:] == [
        "53.2 / 76.7 = <<53.2/76.7=0.69>>0.69",
        "0.69 * 100 = <<0.69*100=69>>69",
        "#### 69",
    ]


@given(st.decimals(-10_000, 10_000, places=6))
def test_numbers_are_written_as_the_calculator_writes_them(number):
    text = number_text(number)
    assert text == format_number(Fraction(number)) and Decimal(text) == number and "E" not in text
    assert not re.search(r"\.\d*0$", text)
