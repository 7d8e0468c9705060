"""Bars as SVG without a library: rows of constant height, widths in per cent, so that they read on a phone as on a desk.

Colours are the page's (`report_html.py`): classes c0 … c3. Knows nothing about what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

ROW = 20
# Per cent of the width: where bars begin, and where the longest ends. On a phone what is left holds a dozen characters.
_LABEL, _END = 24.0, 74.0


class Bar(NamedTuple):
    """One row. `parts`: lengths side by side with their colours; `text` stands at the end of the row."""

    label: str
    parts: Sequence[tuple[float, int]]
    text: str


def bars(rows: Sequence[Bar], title: str, label: float = _LABEL) -> str:
    """Bars from zero, the longest as long as there is room."""
    most = max((sum(length for length, _ in row.parts) for row in rows), default=0.0) or 1.0
    drawn = []
    for index, row in enumerate(rows):
        x = label
        for length, colour in row.parts:
            width = (_END - label) * max(length, 0.0) / most
            drawn.append(_rect(x, index, width, colour))
            x += width
        drawn.append(_texts(index, row.label, row.text))
    return _svg(drawn, len(rows), title)


def log_bars(
    rows: Sequence[tuple[str, float, str]],
    title: str,
    colour: int = 0,
    label: float = _LABEL,
    scale: Sequence[float] = (),
) -> str:
    """Bars over the orders of magnitude from the smallest positive value to the largest; zero has none.

    `scale`: other values that the same lengths shall hold for.
    """
    values = [value for value in (*scale, *(value for _, value, _ in rows)) if value > 0]
    low = math.floor(math.log10(min(values))) if values else 0
    high = math.log10(max(values)) if values else 1.0
    span = max(high - low, 1e-9)
    drawn = []
    for index, (name, value, text) in enumerate(rows):
        share = 0.04 + 0.96 * (math.log10(value) - low) / span if value > 0 else 0.0
        drawn.append(_rect(label, index, (_END - label) * share, colour))
        drawn.append(_texts(index, name, text))
    return _svg(drawn, len(rows), title)


def _rect(x: float, index: int, width: float, colour: int) -> str:
    return f'<rect class="c{colour}" x="{x:.2f}%" y="{index * ROW + 4}" width="{width:.2f}%" height="{ROW - 7}"/>'


def _texts(index: int, label: str, text: str) -> str:
    y = index * ROW + 14
    return (
        f'<text x="0" y="{y}">{escape(label)}</text>'
        f'<text class="v" x="100%" y="{y}" text-anchor="end">{escape(text)}</text>'
    )


def _svg(drawn: Sequence[str], rows: int, title: str) -> str:
    return (
        f'<svg width="100%" height="{rows * ROW + 4}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f"{''.join(drawn)}</svg>"
    )
