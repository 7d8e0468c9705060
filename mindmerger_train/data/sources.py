"""Read the published training sets that the embedded default is made of.

Each reader takes the folder of one set, in the layout of its publisher, and returns examples. Rows that cannot be used are
counted and reported (rows.py). What this module does not know: tokens, prompts, stages, the general formats (readers.py).
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from mindmerger.errors import DataError
from mindmerger_train.data.annotations import number_text
from mindmerger_train.data.asides import surroundings, with_aside
from mindmerger_train.data.rows import (
    ALLOWED,
    BadRow,
    BadRows,
    checked_text,
    decoded,
    json_rows,
    lines_of,
    text_lines,
    text_of,
)
from mindmerger_train.data.tidy import as_written
from mindmerger_train.data.variants import Problem, renumbered, worked


@dataclass(frozen=True)
class Example:
    """A text in `language`; what it says in English ("" where that is not known); and, for a question, the response.

    `origin`: what examples that are made of the same have in common, where their English differs.
    """

    language: str
    query: str
    english: str
    response: str = ""
    origin: str = ""


def gsm8k(folder: Path, languages: Sequence[str], allowed_bad: float = ALLOWED) -> list[Example]:
    """GSM8K questions in `languages` (`en.jsonl` and translations joined by `gsm8k_index`) with the English solutions."""
    bad = BadRows(f"GSM8K in {folder}", allowed_bad)
    english: dict[int, tuple[str, str]] = {}
    for number, row in json_rows(folder / "en.jsonl", bad):
        try:
            english[number - 1] = text_of(row, "question"), text_of(row, "answer")
        except BadRow as reason:
            bad.add(folder / "en.jsonl", number, reason)
    examples = []
    for language in languages:
        if language == "en":
            examples += [Example("en", question, question, answer) for question, answer in english.values()]
            bad.good += len(english)
            continue
        path = folder / f"{language}.jsonl"
        for number, row in json_rows(path, bad):
            try:
                index = row.get("gsm8k_index")
                if not isinstance(index, int) or isinstance(index, bool) or index not in english:
                    raise BadRow(f"gsm8k_index {index!r} is no row of en.jsonl")
                examples.append(Example(language, text_of(row, "question"), *english[index]))
                bad.good += 1
            except BadRow as reason:
                bad.add(path, number, reason)
    bad.close()
    return examples


def mawps_asdiv(
    path: Path,
    seed: int = 0,
    variants: int = 0,
    asides: float = 0.0,
    near: float = 0.0,
    allowed_bad: float = ALLOWED,
) -> list[Example]:
    """MAWPS and ASDiv-A word problems with solutions worked out from their equations.

    Each is followed by `variants` of it with other numbers; a share `asides` of the variants tells something that is not
    wanted, a share `near` of these about what the story counts (asides.py). Half of the questions stand as the set has them,
    many in lower case and with spaced punctuation, half as people write (tidy.py), so that the LLM reads both.
    """
    bad = BadRows(str(path), allowed_bad)
    generator = random.Random(seed)
    try:
        text = b"\n".join(lines_of(path)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        missing = [name for name in ("Question", "Numbers", "Equation") if name not in (reader.fieldnames or ())]
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: no CSV ({error})") from error
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}")
    problems = []
    for number, row in rows:
        try:
            # As they are written in the question: thirds come as 0.3333333333333333, and what is shown should add up.
            numbers = tuple(Decimal(number_text(Decimal(text))) for text in text_of(row, "Numbers").split())
            problem = Problem(text_of(row, "Question"), numbers, text_of(row, "Equation"))
            problem.text(), worked(problem)
        except (IndexError, ValueError, ArithmeticError, RecursionError) as error:
            bad.add(path, number, error)
            continue
        problems.append(problem)
        bad.good += 1
    bad.close()
    around = surroundings(problems) if variants else None
    examples = []
    for problem in problems:
        for index in range(variants + 1):
            variant = renumbered(problem, generator) if index else problem
            if index and around and generator.random() < asides:
                variant = with_aside(variant, around, generator, near)
            question = variant.text() if generator.random() < 0.5 else as_written(variant.text())
            examples.append(Example("en", question, question, worked(variant), origin=problem.question))
    return examples


def tatoeba(folder: Path, languages: Sequence[str] = (), allowed_bad: float = ALLOWED) -> list[Example]:
    """Sentence pairs, one `LANGUAGE.tsv` each (language TAB English); all languages of the folder by default."""
    bad = BadRows(f"the pairs in {folder}", allowed_bad)
    examples = []
    for path in sorted(folder.glob("*.tsv")):
        if languages and path.stem not in languages:
            continue
        for number, line in text_lines(path, bad):
            try:
                parts = line.split("\t")
                if len(parts) != 2:
                    raise BadRow(f"expected two columns, found {len(parts)}")
                query, english = checked_text(parts[0], path.stem), checked_text(parts[1], "en")
                examples.append(Example(path.stem, query, english))
                bad.good += 1
            except BadRow as reason:
                bad.add(path, number, reason)
    bad.close()
    if not examples:
        raise DataError(f"no sentence pairs for {list(languages) or 'any language'} in {folder}")
    return examples


def ntrex(
    folder: Path, languages: Sequence[str] = (), longest: int = 10_000, allowed_bad: float = ALLOWED
) -> list[Example]:
    """News sentences, `LANGUAGE.txt` line-aligned with `en.txt`; English sentences over `longest` characters left out."""
    bad = BadRows(f"the texts in {folder}", allowed_bad)
    examples = []
    for path in sorted(folder.glob("*.txt")):
        if path.stem != "en" and (not languages or path.stem in languages):
            pairs = aligned_lines([path, folder / "en.txt"], bad)
            examples += [Example(path.stem, text, english) for _, (text, english) in pairs if len(english) <= longest]
    bad.close()
    return examples


def aligned_lines(paths: Sequence[Path], bad: BadRows) -> list[tuple[int, list[str]]]:
    """(number, one line of each file), the files aligned line by line; a line that is empty in any of them is bad.

    Raises DataError when a file is missing or they have not equally many lines.
    """
    files = [lines_of(path) for path in paths]
    for path, lines in zip(paths, files, strict=True):
        if len(lines) != len(files[0]):
            raise DataError(
                f"{paths[0]} has {len(files[0])} lines and {path} has {len(lines)}: aligned files have equally many"
            )
    rows = []
    for number, row in enumerate(zip(*files, strict=True), start=1):
        try:
            texts = [checked_text(decoded(line), path.name) for path, line in zip(paths, row, strict=True)]
        except BadRow as reason:
            bad.add(paths[0], number, reason)
            continue
        bad.good += 1
        rows.append((number, texts))
    return rows
