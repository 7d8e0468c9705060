"""A benchmark's result as text, Markdown, CSV or JSON. Knows nothing about how it was measured."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from mindmerger.benchmark import Figure, Result

Machine = dict[str, Any]


def as_text(result: Result, machine: Machine) -> str:
    """For people: facts, a table of metrics by contestants, notes."""
    header, rows = _table(result)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [f"{key:<18} {value}" for key, value in {**machine, **result.settings}.items()]
    lines.append("")
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *_footer(result)])


def as_markdown(result: Result, machine: Machine) -> str:
    """A table for a document, the facts in a sentence below it."""
    header, rows = _table(result)
    lines = [_line(header), "|---|" + "---:|" * (len(header) - 1)]
    lines += [_line(row) for row in rows]
    facts = "; ".join(f"{key} {value}" for key, value in {**machine, **result.settings}.items())
    return "\n".join([*lines, "", facts + ".", *_footer(result)])


def as_csv(result: Result, machine: Machine) -> str:
    """One line a figure, with a header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [field.name for field in fields(Figure)]
    writer.writerow(names)
    for figure in result.figures:
        values = asdict(figure)
        writer.writerow(["" if values[name] is None else values[name] for name in names])
    return out.getvalue().rstrip("\n")


def as_json(result: Result, machine: Machine) -> str:
    """Everything."""
    return json.dumps({"machine": machine, **asdict(result)}, ensure_ascii=False, indent=2)


FORMATS: dict[str, Callable[[Result, Machine], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "json": as_json,
}


def _table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row for each metric, a column for each contestant, targets where there are any."""
    contestants = list(dict.fromkeys(figure.contestant for figure in result.figures))
    metrics = list(dict.fromkeys((figure.metric, figure.unit) for figure in result.figures))
    cells = {(figure.metric, figure.contestant): figure for figure in result.figures}
    targets = any(figure.target for figure in result.figures)
    rows = []
    for metric, unit in metrics:
        own = [cells.get((metric, name)) for name in contestants]
        row = [f"{metric}, {unit}" if unit != "×" else metric, *("" if one is None else _value(one) for one in own)]
        if targets:
            row.append(next((one.target for one in own if one is not None and one.target), ""))
        rows.append(row)
    return ["mean ± sd", *contestants, *(["target"] if targets else [])], rows


def _value(figure: Figure) -> str:
    digits = 3 if figure.unit == "×" else 0 if figure.mean >= 1000 else 1 if figure.mean >= 10 else 2
    text = f"{figure.mean:.{digits}f}"
    return text if figure.sd is None else f"{text} ± {figure.sd:.{digits}f}"


def _footer(result: Result) -> list[str]:
    return ["", *result.notes] if result.notes else []


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
