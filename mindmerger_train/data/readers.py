"""A recipe's `[data.NAME]` table → examples: the general formats, the benchmarks' formats, and the published sets.

docs/data.md describes every kind with an example. What all kinds share is here too: paths relative to the data folder, the
filter by language, the cap per language, the share of bad rows that is allowed. What this module does not know: weights.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindmerger.errors import DataError
from mindmerger_train.data import abroad, sources
from mindmerger_train.data.benchmarks import read_benchmark
from mindmerger_train.data.generator import KINDS, generate
from mindmerger_train.data.languages import code_of
from mindmerger_train.data.problems import generate as generate_problems
from mindmerger_train.data.rows import ALLOWED, BadRow, BadRows, json_rows, text_of, tsv_rows
from mindmerger_train.data.sources import Example, aligned_lines

FIELDS = ("language", "query", "english", "response")


def read_source(name: str, folder: Path, options: Mapping[str, Any]) -> list[Example]:
    """The examples of the source `name`; `options` are its table without `weight` and `solutions`.

    `kind` (default: the name) says which reader; `languages` keeps these only, and `cap` at most that many examples of each,
    the first in the order of the files. Raises DataError when a kind, an option or a file is wrong, too many rows are bad, or a
    language that is asked for has no data.
    """
    given = dict(options)
    kind = str(given.pop("kind", name))
    reader = READERS.get(kind)
    if reader is None:
        raise DataError(f"unknown data source {kind!r} (data.{name}): known kinds are {', '.join(READERS)}")
    cap = given.pop("cap", None)
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        raise DataError(f"data.{name}.cap is {cap!r}: give a whole number above 0, or leave it out")
    for key, value in given.items():
        right, what = _TYPES.get(key, (object, ""))
        if not isinstance(value, right) or (isinstance(value, bool) and right is not bool):
            raise DataError(f"data.{name}.{key} is {value!r}: it must be {what}")
    languages = given.get("languages", ())
    if not all(
        isinstance(entry, str) for entry in [*languages, *given.get("kinds", ()), *given.get("columns", {}).values()]
    ):
        raise DataError(f"data.{name}: languages, kinds and columns are texts")
    parameters = inspect.signature(reader).parameters
    unknown = sorted(set(given) - set(parameters) | {"folder"} & set(given))
    if unknown:
        known = ", ".join(["kind", "weight", "solutions", "cap", *(key for key in parameters if key != "folder")])
        raise DataError(f"data.{name} has the unknown key {unknown[0]!r}; a source of the kind {kind} knows {known}")
    required = [key for key, value in parameters.items() if value.default is value.empty and key != "folder"]
    missing = [key for key in required if key not in given]
    if missing:
        raise DataError(f"data.{name} needs the key {missing[0]!r}: sources of the kind {kind} do")
    if not 0 <= given.get("allowed_bad", ALLOWED) <= 1:
        raise DataError(f"data.{name}.allowed_bad is a share, from 0 to 1")
    return _chosen(name, reader(folder, **given), tuple(languages), cap, by_reader=kind in ("generator", "problems"))


_TYPES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("path", "english", "response", "language"), (str, "a text")),
    **dict.fromkeys(("count", "seed", "longest", "max_value"), (int, "a whole number")),
    "languages": (list | tuple, "a list of languages"),
    "kinds": (list | tuple, "a list of kinds of problem"),
    "columns": (dict, "a table"),
    **dict.fromkeys(("allowed_bad", "extras"), (int | float, "a number")),
    **dict.fromkeys(("english_only", "crowded"), (bool, "true or false")),
}


def _chosen(
    name: str, examples: list[Example], languages: Sequence[str], cap: int | None, *, by_reader: bool
) -> list[Example]:
    """The languages asked for, each cut to `cap`; every one of them must be there."""
    counts: dict[str, int] = {}
    kept = []
    for example in examples:
        if by_reader or not languages or example.language in languages:
            counts[example.language] = counts.get(example.language, 0) + 1
            if cap is None or counts[example.language] <= cap:
                kept.append(example)
    empty = [language for language in languages if not by_reader and language not in counts]
    if empty or not kept:
        found = ", ".join(sorted({example.language for example in examples})) or "no rows at all"
        what = f"no data in {empty[0]!r}" if empty else "no data"
        raise DataError(f"the data source {name!r} has {what}: it has {found}")
    return kept


def _paths(folder: Path, pattern: str, languages: Sequence[str]) -> Iterator[tuple[str | None, Path]]:
    """(language, path) for a path with `{language}` in it, for each language asked for or found; else (None, the path)."""
    if "{language}" not in pattern:
        yield None, folder / pattern
        return
    if not languages:
        raise DataError(f"the path {pattern!r} has {{language}} in it: say which with languages = […]")
    for language in languages:
        yield language, folder / pattern.replace("{language}", language)


def _aligned(
    folder: Path,
    path: str,
    english: str,
    response: str = "",
    language: str = "",
    languages: Sequence[str] = (),
    allowed_bad: float = ALLOWED,
) -> list[Example]:
    """Text files aligned line by line: `path` in the language, `english`, and `response` if there is one."""
    examples = []
    for own, file in _paths(folder, path, languages):
        named = own or language
        if not named:
            raise DataError(f"nothing says what language {path!r} is in: set language, or put {{language}} in the path")
        bad = BadRows(str(file), allowed_bad)
        others = [folder / other.replace("{language}", named) for other in (english, response) if other]
        rows = aligned_lines([file, *others], bad)
        bad.close()
        examples += [Example(named, *texts) for _, texts in rows]
    return examples


def _table(*, tsv: bool) -> Callable[..., list[Example]]:
    """The reader of TSV whose first line names the columns, or of JSON lines and one `.json` list of objects.

    Rows have the fields `language`, `query`, `english`, `response`; `columns` renames them to what the file has. `query` is
    needed, and `language` unless the path or the option says it; the others only where they are named.
    """

    def read(
        folder: Path,
        path: str,
        columns: Mapping[str, str] | None = None,
        language: str = "",
        languages: Sequence[str] = (),
        allowed_bad: float = ALLOWED,
    ) -> list[Example]:
        renamed = dict(columns or {})
        wrong = sorted(set(renamed) - set(FIELDS))
        if wrong:
            raise DataError(f"columns names {wrong[0]!r}: a row has {', '.join(FIELDS)}")
        names = {field: renamed.get(field, field) for field in FIELDS}
        examples = []
        for own, file in _paths(folder, path, languages):
            bad = BadRows(str(file), allowed_bad)
            fixed = own or language
            needed = ["query", *([] if fixed else ["language"]), *(field for field in renamed if field != "language")]
            rows: Iterator[tuple[int, Mapping[str, Any]]]
            rows = (
                tsv_rows(file, [names[field] for field in dict.fromkeys(needed)], bad) if tsv else json_rows(file, bad)
            )
            for number, row in rows:
                try:
                    name = fixed or text_of(row, names["language"])
                    code = code_of(name)
                    if code is None:
                        raise BadRow(f"{name[:20]!r} is no language")
                    # What the file names it must fill; what it need not have may be missing.
                    texts = [
                        text_of(row, names[field]) if names[field] in row or field in needed else ""
                        for field in ("query", "english", "response")
                    ]
                except BadRow as reason:
                    bad.add(file, number, reason)
                    continue
                bad.good += 1
                examples.append(Example(code, *texts))
            bad.close()
        return examples

    return read


def _benchmark(kind: str) -> Callable[..., list[Example]]:
    def read(folder: Path, path: str, languages: Sequence[str] = (), allowed_bad: float = ALLOWED) -> list[Example]:
        questions = read_benchmark(kind, folder / path, languages, allowed_bad=allowed_bad)
        english: dict[int, str] = {}
        if kind != "qa":
            # The sets are parallel: the English question of the same index says the same. A set may come without English.
            with contextlib.suppress(DataError):
                own = [question for question in questions if question.language == "en"]
                same = own or read_benchmark(kind, folder / path, ("en",), allowed_bad=allowed_bad)
                english = {question.index: question.text for question in same}
        return [
            Example(question.language, question.text, english.get(question.index, ""), question.target)
            for question in questions
        ]

    return read


def _gsm8k(folder: Path, languages: Sequence[str], path: str = "gsm8k", allowed_bad: float = ALLOWED) -> list[Example]:
    return sources.gsm8k(folder / path, languages, allowed_bad)


def _variants_checked(kind: str, variants: int, asides: float, near: float) -> None:
    if variants < 0 or not 0 <= asides <= 1 or not 0 <= near <= 1:
        raise DataError(
            f"{kind}: variants must be at least 0, asides and near shares from 0 to 1, not {variants}, {asides} and {near}"
        )


def _mawps_asdiv(
    folder: Path,
    path: str = "mawps_asdiv/train.csv",
    variants: int = 0,
    asides: float = 0.0,
    near: float = 0.0,
    seed: int = 0,
    allowed_bad: float = ALLOWED,
) -> list[Example]:
    """`variants` of each problem besides itself, with other numbers, a share `asides` of them with one that is not wanted.

    A share `near` of these tells of what the story counts (asides.py).
    """
    _variants_checked("mawps_asdiv", variants, asides, near)
    return sources.mawps_asdiv(folder / path, int(seed), int(variants), float(asides), float(near), allowed_bad)


def _tatoeba(
    folder: Path, path: str = "tatoeba", languages: Sequence[str] = (), allowed_bad: float = ALLOWED
) -> list[Example]:
    return sources.tatoeba(folder / path, languages, allowed_bad)


def _ntrex(
    folder: Path,
    path: str = "ntrex",
    languages: Sequence[str] = (),
    longest: int = 10_000,
    allowed_bad: float = ALLOWED,
) -> list[Example]:
    return sources.ntrex(folder / path, languages, longest, allowed_bad)


def _generator(
    folder: Path,
    languages: Sequence[str],
    count: int,
    seed: int = 1,
    english_only: bool = False,
    kinds: Sequence[str] = KINDS,
) -> list[Example]:
    """`english_only`: the English renderings, with the names and units of all the languages."""
    return [
        Example(
            "en" if english_only else language,
            problem.english if english_only else problem.query,
            problem.english,
            problem.response,
        )
        for language in languages
        for problem in generate(language, int(count), int(seed), kinds=kinds)
    ]


def _problems(
    folder: Path,
    languages: Sequence[str],
    count: int,
    seed: int = 1,
    max_value: int = 5000,
    extras: float | None = None,
    crowded: bool = False,
) -> list[Example]:
    """Word problems from stories; the English text says the same, and the worked solution is English."""
    return [
        Example(language, problem.query, problem.english, problem.response)
        for language in languages
        for problem in generate_problems(
            language, int(count), int(seed), max_value=int(max_value), extras=extras, crowded=crowded
        )
    ]


def _in_other_languages(kind: str, make: Callable[..., list[Example]]) -> Callable[..., list[Example]]:
    """The reader of MAWPS and ASDiv in `languages`, by a translator or word by word."""

    def read(
        folder: Path,
        languages: Sequence[str],
        path: str = "mawps_asdiv/train.csv",
        variants: int = 1,
        asides: float = 0.0,
        near: float = 0.0,
        seed: int = 0,
        allowed_bad: float = ALLOWED,
    ) -> list[Example]:
        _variants_checked(kind, variants, asides, near)
        examples = []
        for language in languages:
            english = abroad.problems(folder / path, language, seed, variants, asides, near, allowed_bad)
            examples += make(folder, language, english, seed, allowed_bad)
        return examples

    return read


READERS: dict[str, Callable[..., list[Example]]] = {
    "aligned": _aligned,
    "tsv": _table(tsv=True),
    "jsonl": _table(tsv=False),
    "mgsm": _benchmark("mgsm"),
    "msvamp": _benchmark("msvamp"),
    "xcsqa": _benchmark("xcsqa"),
    "xnli": _benchmark("xnli"),
    "qa": _benchmark("qa"),
    "gsm8k": _gsm8k,
    "mawps_asdiv": _mawps_asdiv,
    "tatoeba": _tatoeba,
    "ntrex": _ntrex,
    "generator": _generator,
    "problems": _problems,
    "code_mixed": _in_other_languages("code_mixed", abroad.code_mixed),
    "translated": _in_other_languages("translated", abroad.translations),
}
"""Every `kind` of a data source."""


def check_fit(name: str, examples: Sequence[Example], stage: str, retold: bool = False) -> None:
    """Raises DataError when examples lack what the stage learns: `mapping` the English text, the others the response.

    `retold`: texts without a response are retold in English, so either will do.
    """
    wanted = "english" if stage == "mapping" else "response"
    lacking = sum(not (getattr(example, wanted) or (retold and example.english)) for example in examples)
    if lacking:
        raise DataError(
            f"the stage {stage} learns from {wanted!r}, and {lacking} of {len(examples)} examples of {name!r} have none"
        )
