"""The calculator: exact, bounded, and silent about what is not arithmetic."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindmerger.calculator import MAX_EXPRESSION, calculate, evaluate, format_number, pending_expression


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("48/2", "24"),
        ("48+24", "72"),
        ("15 + 27", "42"),
        ("0.1+0.2", "0.3"),
        (".5*30", "15"),
        ("3.", "3"),
        ("1,000*2", "2000"),
        ("1,234,567+1", "1234568"),
        ("20%*150", "30"),
        ("150*20%", "30"),
        ("100%", "1"),
        ("-3+5", "2"),
        ("5--3", "8"),
        ("2*-3", "-6"),
        ("3x4", "12"),
        ("3×4", "12"),
        ("12÷4", "3"),
        ("$12/4", "3"),
        ("(2+3)*(4-1)", "15"),
        ("((((1))))", "1"),
        ("2+3*4", "14"),
        ("10-4-3", "3"),
        ("100/10/2", "5"),
        ("1/8", "0.125"),
        ("10/3", "3.33"),
        ("2/3", "0.67"),
        ("5/1000", "0.005"),
        ("1/300", "0.0033"),
        ("-10/3", "-3.33"),
        ("0*-1", "0"),
        ("1/8000000", "0.00000013"),
    ],
)
def test_values(expression: str, result: str) -> None:
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    ["", " ", "1/0", "5/(3-3)", "1+", "*3", "(1", "1)", "1 2", "abc", "2^3", "2**3", "1..2", "__import__('os')", "1=1",
     "9" * 31, "%", "1,00", "٣+٤", "(" * 100 + "1" + ")" * 100, "1" * (MAX_EXPRESSION + 1)],
)  # fmt: skip
def test_not_computable(expression: str) -> None:
    assert calculate(expression) is None


@given(st.text(max_size=300))
def test_any_text_is_safe(text: str) -> None:
    value = calculate(text)
    assert value is None or Fraction(value) is not None


numbers = st.decimals(min_value=0, max_value=10**6, places=2, allow_nan=False).map(lambda d: format(d, "f"))
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"(-{text})"),
    ),
    max_leaves=8,
)


@given(expressions)
def test_agrees_with_python_on_fractions(expression: str) -> None:
    """Python's own grammar over Fractions is the reference."""
    import re

    if len(expression) > MAX_EXPRESSION:
        return
    try:
        expected = eval(re.sub(r"[0-9]+(\.[0-9]+)?", lambda m: f"Fraction('{m[0]}')", expression))
    except ZeroDivisionError:
        expected = None
    assert evaluate(expression) == expected


@given(st.fractions())
def test_format_is_near_and_plain(value: Fraction) -> None:
    text = format_number(value)
    if text is None:
        assert abs(value) >= 10**30
        return
    assert not text.endswith(".")
    assert text not in ("-0", "")
    # two decimals, or two significant digits
    assert abs(Fraction(text) - value) <= max(Fraction(1, 200), abs(value) / 20)


@given(st.integers(min_value=-(10**29), max_value=10**29))
def test_integers_are_plain(value: int) -> None:
    assert format_number(Fraction(value)) == str(value)


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=5))
def test_decimals_that_end_are_exact(value: object) -> None:
    text = format_number(Fraction(str(value)))
    assert text is not None
    assert Fraction(text) == Fraction(str(value))


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("He has <<48/2=", "48/2"),
        ("<<1+1=2>> and <<2*3=", "2*3"),
        ("<<48/2=24>>", None),
        ("48/2=", None),
        ("<<=", None),
        ("<<a=b=", None),
        ("<<1+1\n=", None),
        ("<<48/2", None),
        ("", None),
        ("<<" + "1" * 400 + "=", None),
    ],
)
def test_pending(text: str, expression: str | None) -> None:
    assert pending_expression(text) == expression


def test_bounded_time() -> None:
    began = time.perf_counter()
    for hostile in ("9" * 199, "9*" * 99 + "9", "(" * 99 + "1" + ")" * 99, "-" * 199 + "1"):
        calculate(hostile)
    assert time.perf_counter() - began < 0.5
