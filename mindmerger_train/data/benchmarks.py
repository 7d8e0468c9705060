"""Read the benchmarks in their published formats, with the papers' prompts (docs/data.md).

A question's text is what the encoder gets and, in the LLM's prompt template, the LLM too. For X-CSQA and XNLI that text is the
papers' whole prompt (`Options:` …, `Premise:` …), so their template is `{question}` alone. What this module does not know:
scoring, models, training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindmerger.errors import DataError
from mindmerger_train.data.languages import code_of
from mindmerger_train.data.rows import ALLOWED, BadRow, BadRows, checked_text, json_rows, text_lines, text_of, tsv_rows

KINDS = ("mgsm", "msvamp", "xcsqa", "xnli", "qa")
"""What `read_benchmark` reads."""

XNLI_LABELS = ("entailment", "neutral", "contradiction")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
# MultiNLI's translated training files say "contradictory".
_LABEL_NAMES = {**{label: label for label in XNLI_LABELS}, "contradictory": "contradiction"}


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    `index` counts from 0 within the language in the file's order; in the parallel sets (all but `qa`) the same index is the
    same question in every language. `target`: the number as text (mgsm, msvamp), the letter (xcsqa), the label (xnli), or
    the answer (qa).
    """

    language: str
    index: int
    text: str
    target: str
    kind: str


def read_benchmark(
    kind: str, path: Path, languages: Sequence[str] = (), *, allowed_bad: float = ALLOWED
) -> list[Question]:
    """The questions of `path` (a file, or the folder of the published set), languages in the order asked for.

    All the languages that are there by default. Bad rows are reported on stderr; their indices stay empty.
    Raises DataError when the kind is unknown, nothing is there, a language has no questions, a column is missing, or more
    than the share `allowed_bad` of rows is bad.
    """
    reader = _READERS.get(kind)
    if reader is None:
        raise DataError(f"unknown kind of benchmark {kind!r}: known are {', '.join(KINDS)}")
    found: dict[str, list[Question]] = {}
    for language, file in _files(kind, path, languages):
        bad = BadRows(str(file), allowed_bad)
        counts: dict[str, int] = {}
        for number, row in reader.rows(file, bad):
            # A row whose language cannot be read belongs to no count.
            own = _own_language(row, language)
            index = number - 1 if reader.one_language else counts.get(own or "", 0)
            counts[own or ""] = index + 1
            try:
                if own is None:
                    raise BadRow("no 'language'")
                text, target = reader.fields(row)
            except BadRow as reason:
                bad.add(file, number, reason)
                continue
            bad.good += 1
            found.setdefault(own, []).append(Question(own, index, text, target, kind))
        bad.close()
    wanted = tuple(languages) or tuple(sorted(found))
    for language in wanted:
        if not found.get(language):
            there = {*found, *(own for own, _ in _files(kind, path, ()) if own)}
            has = ", ".join(sorted(there)) or "none at all"
            raise DataError(f"{path} has no {kind} questions in {language!r}: it has {has}")
    return [question for language in wanted for question in found[language]]


def _own_language(row: dict[str, Any], of_file: str | None) -> str | None:
    """The row's own language where it names one, else the file's."""
    for name in ("language", "lang", "source_language"):
        if isinstance(row.get(name), str):
            return code_of(row[name]) or of_file
    return of_file


# Where a set's files are within its folder; the group is the language. The first pattern that fits any file is taken.
_LAYOUTS: dict[str, tuple[str, ...]] = {
    "mgsm": (r"mgsm_(\w+)\.tsv",),
    "msvamp": (r"test_(\w+)\.jsonl",),
    "xcsqa": (r"(\w+)/dev\.jsonl", r"dev_(\w+)\.jsonl", r"(\w+)/train\.jsonl", r"train_(\w+)\.jsonl", r"(\w+)\.jsonl"),
    "xnli": (r"xnli\.test\.tsv", r"test\.json", r"xnli\.dev\.tsv", r"xnli_dev\.json", r"multinli\.train\.(\w+)\.tsv"),
    "qa": (r"([a-z]{2,3})\.(?:tsv|jsonl)", r".*\.(?:tsv|jsonl)"),
}


def _files(kind: str, path: Path, languages: Sequence[str]) -> list[tuple[str | None, Path]]:
    """(language, file), the language None where only the rows can tell."""
    if path.is_dir():
        names = sorted(str(file.relative_to(path)) for depth in ("*", "*/*") for file in path.glob(depth))
        for pattern in _LAYOUTS[kind]:
            fits = [(match, name) for name in names if (match := re.fullmatch(pattern, name.replace("\\", "/")))]
            if fits:
                files = [(code_of(m[1]) if m.re.groups else None, path / name) for m, name in fits]
                chosen = [(own, file) for own, file in files if own is None or not languages or own in languages]
                return chosen or files
        expected = _LAYOUTS[kind][0].replace("\\.", ".").replace(r"(\w+)", "LANGUAGE")
        raise DataError(f"no {kind} files in {path}: expected {expected}")
    if not path.is_file():
        raise DataError(f"there is no benchmark at {path}")
    for pattern in _LAYOUTS[kind]:
        match = re.fullmatch(r"(?:.*/)?" + pattern, str(path.resolve()).replace("\\", "/"))
        if match and match.re.groups and (language := code_of(match[1])):
            return [(language, path)]
    return [(languages[0] if len(languages) == 1 else None, path)]


def number_text(value: object, name: str) -> str:
    """A number as text, without the commas between digits (`1,450` → `1450`). Raises BadRow."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    text = checked_text(value, name).replace(",", "")
    if not _NUMBER.fullmatch(text):
        raise BadRow(f"{name!r} is no number: {text[:40]!r}")
    return text


def _mgsm_rows(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in text_lines(path, bad):
        question, tab, answer = line.rpartition("\t")
        if tab:
            yield number, {"question": question, "answer": answer}
        else:
            bad.add(path, number, "no tab between question and answer")


def _mgsm_fields(row: dict[str, Any]) -> tuple[str, str]:
    return text_of(row, "question"), number_text(row["answer"], "answer")


def _msvamp_fields(row: dict[str, Any]) -> tuple[str, str]:
    return text_of(row, "m_query"), number_text(row.get("response"), "response")


def xcsqa_fields(row: dict[str, Any]) -> tuple[str, str]:
    """The papers' prompt of an X-CSQA question and the letter of its answer. Raises BadRow."""
    question = row.get("question")
    if not isinstance(question, dict) or not isinstance(question.get("choices"), list):
        raise BadRow("no 'question' with 'stem' and 'choices'")
    choices = question["choices"]
    if not 2 <= len(choices) <= 26 or not all(isinstance(choice, dict) for choice in choices):
        raise BadRow(f"{len(choices)} choices, expected 2 to 26 with 'label' and 'text'")
    letters = [chr(ord("A") + index) for index in range(len(choices))]
    answer = text_of(row, "answerKey")
    # Letters are given by position, as the authors do; a file that labels its choices otherwise is translated.
    labels = [str(choice.get("label", letter)).strip() for letter, choice in zip(letters, choices, strict=True)]
    if labels.count(answer) != 1:
        raise BadRow(f"'answerKey' {answer[:20]!r} is not the label of one choice")
    options = [f"{letter}. {text_of(choice, 'text')}" for letter, choice in zip(letters, choices, strict=True)]
    prompt = f"{text_of(question, 'stem')}\nOptions:" + "\t".join(options) + "\nAnswer:"
    return prompt, letters[labels.index(answer)]


def _xnli_rows(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix != ".tsv":
        yield from json_rows(path, bad)
    elif path.name.startswith("multinli.train"):
        for number, row in tsv_rows(path, ("premise", "hypo", "label"), bad):
            yield number, {"sentence1": row["premise"], "sentence2": row["hypo"], "gold_label": row["label"]}
    else:
        yield from tsv_rows(path, ("language", "gold_label", "sentence1", "sentence2"), bad)


def xnli_fields(row: dict[str, Any]) -> tuple[str, str]:
    """The papers' prompt of an XNLI pair and its label. Raises BadRow."""
    label = text_of(row, "gold_label" if "gold_label" in row else "label")
    if label not in _LABEL_NAMES:
        raise BadRow(f"the label {label[:20]!r} is none of {', '.join(XNLI_LABELS)}")
    premise, hypothesis = text_of(row, "sentence1"), text_of(row, "sentence2")
    return f"Premise: {premise}\nHypothesis: {hypothesis}\nLabel:", _LABEL_NAMES[label]


def _qa_rows(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".tsv":
        yield from tsv_rows(path, ("question", "answer"), bad)
    else:
        yield from json_rows(path, bad)


def _qa_fields(row: dict[str, Any]) -> tuple[str, str]:
    answer = row.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    return text_of(row, "question"), checked_text(answer, "answer")


@dataclass(frozen=True)
class _Reader:
    """`one_language`: a file holds one language, so that the line tells which question it is even after unreadable lines."""

    rows: Callable[[Path, BadRows], Iterator[tuple[int, dict[str, Any]]]]
    fields: Callable[[dict[str, Any]], tuple[str, str]]
    one_language: bool


_READERS = {
    "mgsm": _Reader(_mgsm_rows, _mgsm_fields, one_language=True),
    "msvamp": _Reader(json_rows, _msvamp_fields, one_language=True),
    "xcsqa": _Reader(json_rows, xcsqa_fields, one_language=True),
    "xnli": _Reader(_xnli_rows, xnli_fields, one_language=False),
    "qa": _Reader(_qa_rows, _qa_fields, one_language=False),
}
