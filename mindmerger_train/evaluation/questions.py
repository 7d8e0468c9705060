"""Stand-in for mindmerger_train.data.benchmarks until that has landed: qa and msvamp."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mindmerger.errors import DataError

_MSVAMP = {
    "Bengali": "bn", "Chinese": "zh", "English": "en", "French": "fr", "German": "de",
    "Japanese": "ja", "Russian": "ru", "Spanish": "es", "Swahili": "sw", "Thai": "th",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    language: str
    index: int
    text: str
    target: str
    kind: str


def read_benchmark(kind: str, path: Path, languages: Sequence[str] = ()) -> list[Question]:
    found: list[Question] = []
    if kind == "msvamp":
        for name, language in _MSVAMP.items():
            lines = (path / f"test_{name}.jsonl").read_text(encoding="utf-8").splitlines()
            for index, row in enumerate(map(json.loads, lines)):
                found.append(Question(language, index, row["m_query"], str(row["response"]), kind))
        return found
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    with path.open(encoding="utf-8", newline="") as stream:
        for index, row in enumerate(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)):
            found.append(Question(row["language"], index, row["question"], row["answer"], kind))
    return found
