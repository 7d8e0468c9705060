"""The file of generations: every answer is written when it ends, and an interrupted run goes on from what is there.

JSON lines. The first line is the head: what was asked, and of whom. A head may be repeated when a model is added; a run whose
head contradicts the file is refused, because its answers would be mixed with another model's. A last line that a crash cut
in half is dropped. What this module does not know: how questions are answered or scored.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mindmerger.errors import DataError

FORMAT = "mindmerger-evaluation"
FORMAT_VERSION = "1.0"
FILE_NAME = "generations.jsonl"


@dataclass(frozen=True)
class Mark:
    """What a model was, by content: the whole, and the LLM that is asked alone."""

    engine: str
    name: str
    method: str
    fingerprint: str
    llm: str


@dataclass(frozen=True)
class Head:
    """What the generations of a file have in common. `models` maps a model's name in this run to what it is."""

    benchmark: str
    max_tokens: int
    calculator: bool | None
    models: dict[str, Mark]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}


@dataclass(frozen=True)
class Entry:
    """One answer. `model` and `mode` say who was asked how; `language` and `index` which question of the benchmark."""

    model: str
    mode: str
    language: str
    index: int
    kind: str
    question: str
    target: str
    text: str
    predicted: float | str
    right: bool
    finish: str
    tokens: int
    forced: int
    error: str | None = None

    @property
    def key(self) -> str:
        return key_of(self.model, self.mode, self.language, self.index)


def key_of(model: str, mode: str, language: str, index: int) -> str:
    return f"{model}/{mode}/{language}/{index}"


def read(path: Path) -> tuple[Head | None, dict[str, Entry]]:
    """The head (of all models) and the entries by key. A file that is not there is empty.

    Raises DataError with the line number for a damaged line that is not the last.
    """
    head: Head | None = None
    entries: dict[str, Entry] = {}
    for number, document in _documents(path):
        try:
            if "format" in document:
                head = _joined(head, _head(document), path)
            else:
                entry = Entry(**{name: value for name, value in document.items() if name != "key"})
                entries[entry.key] = entry
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path}, line {number}: no generation of mm-eval ({error}); choose another --out"
            ) from None
    if entries and head is None:
        raise DataError(f"{path} does not begin with the head of mm-eval: choose another --out")
    return head, entries


def _documents(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    whole = _whole_lines(path)
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            document = json.loads(line)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise DataError(f"{path}, line {number} is damaged: remove the line, or choose another --out")
        yield number, document


def _whole_lines(path: Path) -> bytes:
    """The file up to its last line end: what follows was being written when the machine stopped."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): choose another --out") from None
    return data[: data.rfind(b"\n") + 1]


def _head(document: dict[str, Any]) -> Head:
    if document["format"] != FORMAT or str(document["format_version"]).split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise KeyError(f"format {document['format']} {document.get('format_version')}")
    models = {name: Mark(**mark) for name, mark in document["models"].items()}
    return Head(document["benchmark"], document["max_tokens"], document["calculator"], models)


def _joined(head: Head | None, other: Head, path: Path) -> Head:
    """Both heads in one. Raises DataError, which says what differs, where they contradict each other."""
    if head is None:
        return other
    for name in ("benchmark", "max_tokens", "calculator"):
        before, now = getattr(head, name), getattr(other, name)
        if before != now:
            raise DataError(
                f"{path} was made with another {name.replace('_', ' ')} ({before} there, {now} now): "
                "choose another --out, or the same options"
            )
    for name, mark in other.models.items():
        if head.models.get(name, mark).fingerprint != mark.fingerprint:
            raise DataError(
                f"{path} was made with another model {name!r} (its files have changed since): choose another --out"
            )
    return Head(other.benchmark, other.max_tokens, other.calculator, {**head.models, **other.models})


class Journal:
    """A file of generations, open for appending; a context manager. Without a folder, generations are only remembered."""

    def __init__(self, folder: Path | None, head: Head) -> None:
        """Raises DataError where the file cannot be used or belongs to another run."""
        self.entries: dict[str, Entry] = {}
        self._stream: io.FileIO | None = None
        if folder is None:
            return
        path = folder / FILE_NAME
        before, self.entries = read(path)
        joined = _joined(before, head, path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                os.truncate(path, len(_whole_lines(path)))
            self._stream = io.FileIO(path, "a")
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror}): choose another --out") from None
        if joined != before:
            self._write(joined.to_json())

    def add(self, entry: Entry) -> None:
        """Remember an answer; on disk when this returns (as far as the operating system says)."""
        self.entries[entry.key] = entry
        self._write({"key": entry.key, **asdict(entry)})

    def _write(self, document: dict[str, Any]) -> None:
        if self._stream is None:
            return
        try:
            # Without a buffer: a signal cannot come between the halves of a line.
            left = memoryview((json.dumps(document, ensure_ascii=False) + "\n").encode())
            while left:
                left = left[self._stream.write(left) :]
        except OSError as error:
            raise DataError(f"{self._stream.name} cannot be written ({error.strerror}): free some space") from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
