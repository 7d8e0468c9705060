"""Results as Markdown, CSV and JSON, and their files.

What this module does not know: how figures came about.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mindmerger.errors import DataError
from mindmerger_train.evaluation.chart import draw
from mindmerger_train.evaluation.modes import ALONE
from mindmerger_train.evaluation.results import AVERAGE, ArmResult, Results, Share, percent
from mindmerger_train.evaluation.statistics import RESAMPLES, Comparison, Interval
from mindmerger_train.files import whole

FORMAT_VERSION = "1.0"
CSV_COLUMNS = (
    "benchmark", "model", "mode", "language", "questions", "right", "share", "low", "high",
    "minus_alone", "minus_alone_low", "minus_alone_high", "minus_alone_p", "only_this_right", "only_alone_right",
)  # fmt: skip


def markdown(results: Results) -> str:
    """Tables for people: per language; with more than two arms also each arm against the LLM alone and the first arm."""
    pair = len(results.arms) == 2 and results.arms[1].mode == ALONE.name
    parts = [_pair_table(results) if pair else _wide_table(results)]
    if not pair and len(results.arms) > 1:
        parts.append(_differences(results))
    parts.append("\n".join(_remarks(results)))
    return "\n\n".join(parts) + "\n"


def _pair_table(results: Results) -> str:
    first, alone = results.arms
    lines = _head(["language", "questions", first.title, alone.title, "difference", "p"])
    for row in results.rows:
        comparison = (first.against_alone or {})[row]
        cells = [_share(first.shares[row]), _share(alone.shares[row]), _difference(comparison), _p(comparison.p)]
        lines.append(_row([_name(row), str(first.shares[row].n), *cells]))
    return "\n".join(lines)


def _wide_table(results: Results) -> str:
    lines = _head(["language", "questions", *(arm.title for arm in results.arms)])
    for row in results.rows:
        shares = [arm.shares[row] for arm in results.arms]
        lines.append(_row([_name(row), str(shares[0].n), *map(_share, shares)]))
    return "\n".join(lines)


def _differences(results: Results) -> str:
    first = results.arms[0].title
    lines = _head(["average", "%", "minus the LLM alone", "p", f"minus {first}", "p"])
    for arm in results.arms:
        cells = []
        for comparisons in (arm.against_alone, arm.against_first):
            cells += ["–", "–"] if comparisons is None else _compared(comparisons[AVERAGE])
        lines.append(_row([arm.title, percent(arm.shares[AVERAGE].value), *cells]))
    return "\n".join(lines)


def _compared(comparison: Comparison) -> list[str]:
    return [_difference(comparison), _p(comparison.p)]


def _remarks(results: Results) -> list[str]:
    calculator = {None: "as the model says", True: "on", False: "off"}[results.calculator]
    remarks = [
        f"{results.benchmark}, greedy, at most {results.max_tokens} tokens, calculator {calculator}. The average is the mean "
        f"of the languages. In brackets 95 % bootstrap intervals ({RESAMPLES:,} resamples); p per language by McNemar's exact "
        "test, of the average by a paired sign-flip permutation test.",
    ]
    if results.asked < results.wanted:
        remarks.append(f"Unfinished: {results.asked} of {results.wanted} questions have been answered in all modes.")
    cut = [f"{arm.title} {arm.cut}" for arm in results.arms if arm.cut]
    if cut:
        remarks.append(f"Answers cut off at {results.max_tokens} tokens: {', '.join(cut)}.")
    errors = [f"{arm.title} {arm.errors}" for arm in results.arms if arm.errors]
    if errors:
        remarks.append(f"Questions that could not be asked, counted as wrong: {', '.join(errors)}.")
    remarks += [f"Left out: {note}." for note in results.notes]
    return [f"{'' if number == 0 else chr(10)}{remark}" for number, remark in enumerate(remarks)]


def _head(titles: Sequence[str]) -> list[str]:
    return [_row(titles), "|" + "|".join(["---"] + ["---:"] * (len(titles) - 1)) + "|"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _name(row: str) -> str:
    return f"**{row}**" if row == AVERAGE else row


def _interval(interval: Interval, sign: str = "") -> str:
    return f"[{percent(interval.low, sign)}, {percent(interval.high, sign)}]"


def _share(share: Share) -> str:
    return f"{percent(share.value)} {_interval(share.interval)}"


def _difference(comparison: Comparison) -> str:
    interval = "" if comparison.interval is None else " " + _interval(comparison.interval, "+")
    return percent(comparison.difference, "+") + interval


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def as_json(results: Results) -> str:
    """Everything, for programs. Shares and differences are between 0 and 1."""
    document: dict[str, Any] = {"format": "mindmerger-evaluation-results", "format_version": FORMAT_VERSION}
    document |= asdict(results)
    document["statistics"] = {
        "level": 0.95,
        "resamples": RESAMPLES,
        "interval": "percentile bootstrap; exact binomial where all are right or all are wrong",
        "p_language": "exact McNemar",
        "p_average": "paired sign-flip permutation",
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def as_csv(results: Results) -> str:
    """One line for each arm and language, the average among them. Shares between 0 and 1."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for arm in results.arms:
        for row in results.rows:
            writer.writerow(_csv_row(results.benchmark, arm, row))
    return stream.getvalue()


def _csv_row(benchmark: str, arm: ArmResult, row: str) -> list[Any]:
    share = arm.shares[row]
    cells: list[Any] = [benchmark, arm.model, arm.mode, row, share.n, share.right]
    cells += [_figure(share.value), _figure(share.interval.low), _figure(share.interval.high)]
    if arm.against_alone is None:
        return cells + [""] * 6
    comparison = arm.against_alone[row]
    bounds = (comparison.interval.low, comparison.interval.high) if comparison.interval else ("", "")
    return [
        *cells, _figure(comparison.difference), *map(_figure, bounds), f"{comparison.p:.6g}", comparison.only_first,
        comparison.only_second,
    ]  # fmt: skip


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6f}"


def write(results: Results, folder: Path) -> None:
    """Write results.md, .csv, .json and .svg; each to a temporary name, then renamed. Raises DataError where it cannot."""
    files = {
        "results.md": markdown(results),
        "results.csv": as_csv(results),
        "results.json": as_json(results),
        "results.svg": draw(results),
    }
    for name, text in files.items():
        try:
            with whole(folder / name) as part:
                part.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise DataError(f"{folder / name} cannot be written ({error.strerror}): choose another --out") from None
