"""Results as a chart: bars per language and arm with their intervals, one SVG file that needs nothing else.

What this module does not know: anything but results.
"""

from __future__ import annotations

import math
from html import escape

from mindmerger_train.evaluation.results import AVERAGE, Results, Share, percent

# Okabe & Ito's colours, which people with colour vision deficiencies tell apart.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
_BAR, _GAP, _LEFT, _TOP, _HEIGHT, _RIGHT = 18, 16, 52, 58, 260, 16
_LEGEND_LINE, _CHARACTER = 20, 7.2


def draw(results: Results) -> str:
    """The chart as the text of an SVG file."""
    arms = results.arms
    group = len(arms) * _BAR + _GAP
    width = max(420, _LEFT + len(results.rows) * group + _GAP + _RIGHT)
    legend, lines = _legend(results, width)
    top = _TOP + (lines - 1) * _LEGEND_LINE
    height = top + _HEIGHT + 64
    full = max(1, math.ceil(5 * max(share.interval.high for arm in arms for share in arm.shares.values()))) / 5
    summary = "; ".join(f"{arm.title} {percent(arm.shares[AVERAGE].value)} %" for arm in arms)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="title summary" font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f'<title id="title">{escape(results.benchmark)}: right answers by language</title>',
        f'<desc id="summary">Average over languages: {escape(summary)}</desc>',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_LEFT}" y="22" font-size="14" font-weight="600">{escape(results.benchmark)}: right answers, %'
        f" ({results.asked} questions)</text>",
        *legend,
        *_axis(top, width, full),
    ]
    for number, row in enumerate(results.rows):
        left = _LEFT + _GAP + number * group
        if row == AVERAGE:
            parts.append(
                f'<line x1="{left - _GAP / 2}" x2="{left - _GAP / 2}" y1="{top}" y2="{top + _HEIGHT}" stroke="#bbb" '
                'stroke-dasharray="3 3"/>'
            )
        for place, arm in enumerate(arms):
            parts += _bar(
                left + place * _BAR, top, arm.shares[row], full, _COLOURS[place % len(_COLOURS)], f"{row}, {arm.title}"
            )
        weight = ' font-weight="600"' if row == AVERAGE else ""
        middle = left + len(arms) * _BAR / 2
        parts.append(f'<text x="{middle}" y="{top + _HEIGHT + 18}" text-anchor="middle"{weight}>{escape(row)}</text>')
    parts.append(
        f'<text x="{_LEFT}" y="{height - 14}" fill="#666">Lines: 95 % bootstrap intervals. '
        "Average: mean of the languages.</text>"
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(results: Results, width: int) -> tuple[list[str], int]:
    """The legend, broken into lines where it is wider than the chart."""
    parts, x, line = [], float(_LEFT), 0
    for place, arm in enumerate(results.arms):
        needs = 18 + _CHARACTER * len(arm.title) + 14
        if x > _LEFT and x + needs > width - _RIGHT:
            x, line = float(_LEFT), line + 1
        y = 34 + line * _LEGEND_LINE
        colour = _COLOURS[place % len(_COLOURS)]
        parts.append(f'<rect x="{x:.0f}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18:.0f}" y="{y + 10}">{escape(arm.title)}</text>')
        x += needs
    return parts, line + 1


def _axis(top: int, width: int, full: float) -> list[str]:
    """Lines every 20 %, up to the share `full`; closer where that would be one line."""
    parts = []
    for tick in range(0, round(100 * full) + 1, 20 if full > 0.4 else 5):
        y = top + _HEIGHT * (1 - tick / 100 / full)
        parts.append(
            f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y}" y2="{y}" stroke="{"#222" if tick == 0 else "#e2e2e2"}"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end" fill="#666">{tick}</text>')
    return parts


def _bar(left: float, top: int, share: Share, full: float, colour: str, name: str) -> list[str]:
    def y(value: float) -> float:
        return round(top + _HEIGHT * (1 - value / full), 1)

    middle, interval = left + (_BAR - 2) / 2, share.interval
    height = round(_HEIGHT * share.value / full, 1)
    words = f"{name}: {percent(share.value)} % [{percent(interval.low)}, {percent(interval.high)}], n = {share.n}"
    ends = [f"M{middle - 3} {y(bound)}h6" for bound in (interval.low, interval.high)]
    return [
        f"<g><title>{escape(words)}</title>"
        f'<rect x="{left}" y="{y(share.value)}" width="{_BAR - 2}" height="{height}" fill="{colour}"/>'
        f'<path d="M{middle} {y(interval.low)}V{y(interval.high)}{"".join(ends)}" stroke="#222" fill="none"/></g>'
    ]
