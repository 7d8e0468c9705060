"""Rows of data files: lines, TSV columns, JSON objects; what cannot be used is counted with file and line, never swallowed.

A reader takes rows from here, checks its fields with `text_of`, and hands what is wrong to its `BadRows`. When a source has
been read, `BadRows.close` reports the count and the first few on stderr, and refuses the source when too large a share is bad.
What this module does not know: which fields a data set has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindmerger.errors import DataError

ALLOWED = 0.01
"""Share of bad rows that a source may have, unless told otherwise."""
_SHOWN = 3


class BadRow(ValueError):
    """This row cannot be used; the message says why. Never leaves a reader."""


class BadRows:
    """Counts the rows of one source, good and bad."""

    def __init__(self, name: str, allowed: float = ALLOWED) -> None:
        """`allowed`: the share of bad rows, 0 to 1, above which the source is refused."""
        self.name = name
        self.allowed = allowed
        self.good = 0
        self.bad = 0
        self.first: list[str] = []

    def add(self, path: Path, number: int, reason: object) -> None:
        """Row `number` of `path` (counted from 1) cannot be used."""
        self.bad += 1
        if len(self.first) < _SHOWN:
            self.first.append(f"{path}, line {number}: {reason}")

    def close(self) -> None:
        """Report bad rows on stderr. Raises DataError when their share is above what is allowed."""
        if not self.bad:
            return
        total = self.good + self.bad
        more = f" and {self.bad - len(self.first)} more" if self.bad > len(self.first) else ""
        places = "; ".join(self.first) + more
        if self.bad > self.allowed * total:
            raise DataError(
                f"{self.bad} of {total} rows of {self.name} cannot be used ({self.bad / total:.1%}, "
                f"{self.allowed:.1%} are allowed): {places}"
            )
        print(f"warning: {self.bad} of {total} rows of {self.name} left out: {places}", file=sys.stderr, flush=True)


def text_of(row: Mapping[str, Any], name: str) -> str:
    """The text in the field `name`, without the spaces around it. Raises BadRow when it is missing, empty or no text."""
    if name not in row:
        raise BadRow(f"no field {name!r}")
    return checked_text(row[name], name)


def checked_text(value: object, name: str) -> str:
    """`value` without the spaces around it. Raises BadRow when it is no text, empty, or has characters that are none."""
    if not isinstance(value, str):
        raise BadRow(f"{name!r} is no text")
    text = value.strip()
    if not text:
        raise BadRow(f"{name!r} is empty")
    # A JSON string may hold half of a surrogate pair; no tokenizer takes it. llama.cpp reads NUL as the end of the text.
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise BadRow(f"{name!r} has a character that is none")
    return text


def _open(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"the data file {path} is missing") from error
    except OSError as error:
        raise DataError(f"the data file {path} cannot be read: {error.strerror}") from error


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file, cut at newlines only: other separators (U+2028, form feed) belong to the text.

    Raises DataError when the file is missing.
    """
    data = _open(path).removeprefix(b"\xef\xbb\xbf")
    lines = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return lines[:-1] if lines and not lines[-1] else lines


def decoded(line: bytes) -> str:
    """UTF-8 → text. Raises BadRow."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 at byte {error.start}") from error


def text_lines(path: Path, bad: BadRows) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not blank. Raises DataError when the file is missing."""
    for number, line in enumerate(lines_of(path), start=1):
        if not line.strip():
            continue
        try:
            yield number, decoded(line)
        except BadRow as reason:
            bad.add(path, number, reason)


def json_rows(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of a JSON lines file, or of a file `*.json` that holds one list of objects (or `{"data": […]}`).

    Raises DataError when the file is missing, or when a `*.json` file cannot be parsed.
    """
    if path.suffix == ".json":
        yield from _json_list(path, bad)
        return
    for number, line in text_lines(path, bad):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            bad.add(path, number, f"no JSON ({error})")
            continue
        except ValueError as error:  # an integer of thousands of digits
            bad.add(path, number, error)
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            bad.add(path, number, "no JSON object")


def _json_list(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        rows = json.loads(_open(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if isinstance(rows, dict):
        rows = rows.get("data")
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no list of objects")
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield number, row
        else:
            bad.add(path, number, "no JSON object")


def tsv_rows(path: Path, columns: Sequence[str], bad: BadRows) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, row) of a TSV whose first line names the columns; quotes are text, as the published sets have them.

    Raises DataError when the file is missing or lacks one of `columns`.
    """
    lines = text_lines(path, bad)
    _, header = next(lines, (1, ""))
    names = [name.strip() for name in header.split("\t")]
    missing = [column for column in columns if column not in names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}: its first line names {', '.join(names) or 'nothing'}")
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) == len(names):
            yield number, dict(zip(names, fields, strict=True))
        else:
            bad.add(path, number, f"{len(fields)} columns, the first line names {len(names)}")
