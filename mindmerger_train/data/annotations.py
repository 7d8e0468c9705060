"""Solutions in GSM8K's annotated form, `12 - 3 = <<12-3=9>>9`, with numbers as the calculator writes them.

At inference the calculator writes the results, so in training they look as it writes them.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from mindmerger.calculator import format_number


def number_text(value: Fraction | Decimal) -> str:
    """As the calculator writes it. Raises ValueError where it would not: numbers of more than 30 digits."""
    text = format_number(Fraction(value))
    if text is None:
        raise ValueError(f"{value} is too long a number")
    return text


def annotated(shown: str, value: Fraction | Decimal) -> str:
    """A step as it is read (`12 - 3`) and its result → the annotated step."""
    result = number_text(value)
    return f"{shown} = <<{shown.replace(' ', '')}={result}>>{result}"
