"""Read the published training sets that the embedded default is made of.

Each reader takes the folder of one set, in the layout of its publisher, and returns examples. Rows that cannot be read raise
DataError with file and line. What this module does not know: tokens, prompts, stages.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from mindmerger.errors import DataError


@dataclass(frozen=True)
class Example:
    """A text in `language`; what it says in English; and, for a question, the English solution."""

    language: str
    query: str
    english: str
    response: str = ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"training data {path} is missing") from error
    except UnicodeDecodeError as error:
        raise DataError(f"training data {path} is not UTF-8: {error}") from error


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: no JSON object ({error})") from error
    return rows


def gsm8k(folder: Path, languages: Sequence[str]) -> list[Example]:
    """GSM8K questions in `languages` (`en.jsonl` and translations joined by `gsm8k_index`) with the English solutions."""
    english = _json_lines(folder / "en.jsonl")
    examples = []
    for language in languages:
        path = folder / f"{language}.jsonl"
        for number, row in enumerate(english if language == "en" else _json_lines(path), start=1):
            try:
                source = row if language == "en" else english[row["gsm8k_index"]]
                examples.append(Example(language, row["question"], source["question"], source["answer"]))
            except (KeyError, IndexError, TypeError) as error:
                raise DataError(f"{path}, line {number}: missing or wrong field {error}") from error
    return examples


_OPERATORS = "+-*/"


def _plain(number: Decimal) -> str:
    """Shortest plain decimal, at most four places."""
    text = f"{round(number, 4):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def solve_prefix(equation: str, numbers: Sequence[str]) -> tuple[list[str], Decimal]:
    """`* number0 number1` → worked steps in GSM8K's annotated form, and the value.

    Raises ValueError when the equation does not parse.
    """
    tokens = equation.split()
    steps: list[str] = []

    def value(index: int) -> tuple[Decimal, int]:
        token = tokens[index]
        if token in _OPERATORS:
            left, after = value(index + 1)
            right, after = value(after)
            result = {
                "+": lambda: left + right,
                "-": lambda: left - right,
                "*": lambda: left * right,
                "/": lambda: left / right,
            }[token]()
            expression = f"{_plain(left)}{token}{_plain(right)}"
            shown = f"{_plain(left)} {token} {_plain(right)}"
            steps.append(f"{shown} = <<{expression}={_plain(result)}>>{_plain(result)}")
            return result, after
        text = numbers[int(token.removeprefix("number"))] if token.startswith("number") else token
        return Decimal(text), index + 1

    result, end = value(0)
    if end != len(tokens):
        raise ValueError(f"{equation!r} does not end where its operators say")
    return steps, result


def _tidy(text: str) -> str:
    """Join what the set's tokenisation has separated: `books .` → `books.`"""
    text = re.sub(r"\s+([.,?!;:%'])", r"\1", text)
    return re.sub(r"\$\s+", "$", re.sub(r"\s{2,}", " ", text)).strip()


def mawps_asdiv(path: Path, seed: int = 0) -> list[Example]:
    """MAWPS and ASDiv-A word problems with solutions worked out from their equations.

    Half of the questions keep the set's spaced punctuation, so that the LLM reads both.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError as error:
        raise DataError(f"training data {path} is missing") from error
    generator = random.Random(seed)
    examples = []
    for number, row in enumerate(rows, start=2):
        try:
            numbers = [_plain(Decimal(text)) for text in row["Numbers"].split()]
            steps, result = solve_prefix(row["Equation"], numbers)
            question = re.sub(r"number(\d+)", lambda match: numbers[int(match[1])], row["Question"])  # noqa: B023
        except (KeyError, IndexError, ValueError, ArithmeticError) as error:
            raise DataError(f"{path}, row {number}: {error}") from error
        if generator.random() < 0.5:
            question = _tidy(question)
        examples.append(Example("en", question, question, "\n".join(steps) + f"\n#### {_plain(result)}"))
    return examples


def tatoeba(folder: Path, languages: Sequence[str] = ()) -> list[Example]:
    """Sentence pairs, one `LANGUAGE.tsv` each (language TAB English); all languages of the folder by default."""
    examples = []
    for path in sorted(folder.glob("*.tsv")):
        if languages and path.stem not in languages:
            continue
        for number, line in enumerate(_lines(path), start=1):
            parts = line.split("\t")
            if len(parts) != 2:
                raise DataError(f"{path}, line {number}: expected two columns, found {len(parts)}")
            examples.append(Example(path.stem, parts[0], parts[1]))
    if not examples:
        raise DataError(f"no sentence pairs for {list(languages) or 'any language'} in {folder}")
    return examples


def ntrex(folder: Path, languages: Sequence[str] = (), longest: int = 10_000) -> list[Example]:
    """News sentences, `LANGUAGE.txt` line-aligned with `en.txt`; English sentences over `longest` characters left out."""
    english = _lines(folder / "en.txt")
    examples = []
    for path in sorted(folder.glob("*.txt")):
        if path.stem == "en" or (languages and path.stem not in languages):
            continue
        lines = _lines(path)
        if len(lines) != len(english):
            raise DataError(f"{path} has {len(lines)} lines, {folder / 'en.txt'} has {len(english)}")
        examples += [
            Example(path.stem, text, source)
            for text, source in zip(lines, english, strict=True)
            if len(source) <= longest
        ]
    return examples
