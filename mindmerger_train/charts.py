"""`training.svg`: the loss of a run over its tokens and, where the log has them, the gate's two weights per language.

Drawn from the lines of `metrics.jsonl` alone, with no library: the file is self-contained and opens in any browser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from mindmerger_train.files import whole
from mindmerger_train.runlog import read_metrics
from mindmerger_train.runstate import saving

Points = list[tuple[float, float]]


class Curve(NamedTuple):
    """One line of a panel. `dash`: SVG's dash array, empty for a whole line."""

    name: str
    points: Points
    colour: str
    width: float = 1.8
    dash: str = ""
    opacity: float = 1.0


WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM = 860, 330, 64, 150, 44, 46
# Okabe and Ito's colours, which people with any colour vision tell apart; a language beyond them starts over, dashed.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8a6d00")
STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#222}.t{font-size:15px;font-weight:600}.a{fill:#666}"
    "path{fill:none;stroke-width:1.8;stroke-linejoin:round}line{stroke:#ddd}</style>"
)


def write_chart(folder: Path) -> Path | None:
    """Draw the log in `folder`; returns the chart's path, or None when there is nothing to draw yet."""
    picture = draw(read_metrics(folder), folder.resolve().name)
    if picture is None:
        return None
    path = folder / "training.svg"
    with saving("the chart", folder), whole(path) as part:
        part.write_text(picture, encoding="utf-8")
    return path


def draw(lines: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """The SVG of a log, or None when it has fewer than two points."""
    train = _points(lines, "loss")
    held_out = _points(lines, "held_out_loss")
    if len(train) + len(held_out) < 2:
        return None
    smooth = _smooth(train)
    curves = [
        Curve("" if smooth else "train", train, COLOURS[0], 1.0, opacity=0.35 if smooth else 1.0),
        Curve("train", smooth, COLOURS[0]),
        Curve("held out", held_out, COLOURS[1]),
    ]
    panels = [_panel(f"{name}: loss per answer token", [curve for curve in curves if curve.points], None)]
    for source, title in (("encoder", "encoder weight"), ("llm", "LLM weight")):
        weights = _weights(lines, source)
        if weights:
            panels.append(_panel(f"{title} by language (mean over held-out questions)", weights, (0.0, 2.0)))
    body = "".join(f'<g transform="translate(0 {index * PANEL})">{panel}</g>' for index, panel in enumerate(panels))
    height = PANEL * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img"><title>{escape(name)}: training</title>{STYLE}'
        f'<rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
    )


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [
        (float(line["tokens"]), float(line[key]))
        for line in lines
        if isinstance(line.get(key), int | float) and math.isfinite(line[key]) and "tokens" in line
    ]


def _smooth(points: Points, share: float = 0.05) -> Points:
    """Running mean over `share` of the points on each side; nothing when there are too few for that to differ."""
    reach = int(len(points) * share)
    if reach < 1:
        return []
    return [
        (x, sum(y for _, y in near) / len(near))
        for index, (x, _) in enumerate(points)
        for near in [points[max(0, index - reach) : index + reach + 1]]
    ]


def _weights(lines: Sequence[Mapping[str, Any]], source: str) -> list[Curve]:
    curves: dict[str, Points] = {}
    for line in lines:
        for language, both in (line.get("weights") or {}).items():
            curves.setdefault(language, []).append((float(line["tokens"]), float(both[source][0])))
    return [
        Curve(language, points, COLOURS[index % len(COLOURS)], dash="5 3" if index >= len(COLOURS) else "")
        for index, (language, points) in enumerate(sorted(curves.items()))
    ]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span [low, high], some `about` of them."""
    span = (high - low) or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _bounded(value: float) -> float:
    """Differences of what is drawn must stay finite numbers."""
    return min(max(value, -1e30), 1e30)


def _panel(title: str, curves: Sequence[Curve], bounds: tuple[float, float] | None) -> str:
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [_bounded(y) for curve in curves for _, y in curve.points]
    x_high = max(xs) or 1.0
    low, high = bounds or (min(ys), max(ys))
    if high - low < 1e-6 * max(1.0, abs(high)):
        # A flat line in the middle; half a unit is nothing beside a number that diverged.
        margin = max(0.5, 1e-3 * abs(high))
        low, high = low - margin, high + margin
    if bounds is None:
        low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    right, bottom = WIDTH - RIGHT, PANEL - BOTTOM

    def at_x(x: float) -> float:
        return LEFT + (right - LEFT) * x / x_high

    def at_y(y: float) -> float:
        return bottom - (bottom - TOP) * (_bounded(y) - low) / (high - low)

    parts = [f'<text class="t" x="{LEFT}" y="26">{escape(title)}</text>']
    for value in ticks(low, high):
        y = at_y(value)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="a" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(0.0, x_high, 6):
        parts.append(
            f'<text class="a" x="{at_x(value):.1f}" y="{bottom + 18}" text-anchor="middle">{_short(value)}</text>'
        )
    parts.append(
        f'<text class="a" x="{(LEFT + right) / 2:.0f}" y="{bottom + 36}" text-anchor="middle">tokens seen by the LLM</text>'
    )
    parts += [_path(curve, at_x, at_y) for curve in curves]
    parts += _labels(curves, at_y, right)
    return "".join(parts)


def _path(curve: Curve, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> str:
    if len(curve.points) == 1:
        ((x, y),) = curve.points
        return f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{curve.colour}"/>'
    path = " ".join(f"{'L' if index else 'M'}{at_x(x):.1f} {at_y(y):.1f}" for index, (x, y) in enumerate(curve.points))
    dash = f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
    return f'<path d="{path}" stroke="{curve.colour}" stroke-width="{curve.width}" stroke-opacity="{curve.opacity}"{dash}/>'


def _labels(curves: Sequence[Curve], at_y: Callable[[float], float], right: float) -> list[str]:
    """Each curve's name beside its end, moved apart where they would overlap."""
    wanted = sorted((at_y(c.points[-1][1]), c.name, c.colour, c.points[-1][1]) for c in curves if c.name)
    distance = min(15.0, (PANEL - TOP) / max(1, len(wanted)))
    places: list[float] = []
    for y, *_ in wanted:
        places.append(max(y, places[-1] + distance) if places else y)
    # What was pushed out below the panel moves the whole column up.
    over = max(0.0, places[-1] - (PANEL - BOTTOM + 30))
    return [
        f'<text x="{right + 10}" y="{place - over + 4:.1f}" style="fill:{colour}">{escape(name)} {value:.3g}</text>'
        for place, (_, name, colour, value) in zip(places, wanted, strict=True)
    ]


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
