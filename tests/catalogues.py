"""The catalogues of the runtime's sentences: brought up to date with the code, and compiled.

    python -m tests.catalogues

takes the sentences out of the code (Babel), adds what is new to each locale/<language>/LC_MESSAGES/mindmerger.po
without a translation, drops what is gone, and writes the .mo files. docs/translating.md says how to go on.
"""

from __future__ import annotations

import datetime
import string
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from mindmerger.i18n import DOMAIN, FOLDER, LANGUAGES

ROOT = Path(__file__).resolve().parents[1]
CODE = ROOT / "runtime" / "mindmerger"

# What click itself says to whoever uses our commands (click 8.2 and later; an older one says some of it in English).
CLICK: tuple[str | tuple[str, str], ...] = (
    "Usage:",
    "Options",
    "Positional arguments",
    "Commands",
    "Show this message and exit.",
    "Error: {message}",
    "Try '{command} {option}' for help.",
    "Invalid value: {message}",
    "Invalid value for {param_hint}: {message}",
    "Missing argument",
    "Missing option",
    "Missing command.",
    "No such option {name!r}.",
    "No such command {name!r}.",
    "Option {name!r} does not take a value.",
    "{value!r} is not a valid {number_type}.",
    "{value} is not in the range {range}.",
    "default: {default}",
    "env var: {var}",
    "required",
    ("Did you mean {possibility}?", "(Did you mean one of: {possibilities}?)"),
    ("Option {name!r} requires an argument.", "Option {name!r} requires {nargs} arguments."),
    ("Got unexpected extra argument ({args})", "Got unexpected extra arguments ({args})"),
    ("{value!r} is not {choice}.", "{value!r} is not one of {choices}."),
)


def po_file(language: str) -> Path:
    return FOLDER / language / "LC_MESSAGES" / f"{DOMAIN}.po"


def mo_file(language: str) -> Path:
    return po_file(language).with_suffix(".mo")


def read(language: str) -> Catalog:
    with po_file(language).open("rb") as file:
        return read_po(file, locale=language, abort_invalid=True)


def in_code() -> set[str]:
    """Every sentence that the code marks with `_()`."""
    found = set()
    for _file, _line, message, _comments, _context in extract_from_dir(
        CODE, [("**.py", "python")], keywords={"_": None}
    ):
        assert isinstance(message, str), "only _() with one sentence is used"
        found.add(message)
    return found


def placeholders(text: str) -> list[str]:
    """The figures of a sentence, in a fixed order."""
    return sorted(name for _text, name, _spec, _conversion in string.Formatter().parse(text) if name is not None)


def texts(message: Message) -> Iterator[tuple[str, str]]:
    """Each source form with each translation that must have its placeholders."""
    if isinstance(message.id, str):
        yield message.id, str(message.string)
    else:
        singular, plural = message.id
        for index, translation in enumerate(message.string):
            yield (singular if index == 0 and len(message.string) > 1 else plural), translation


def update(language: str) -> int:
    """Bring one catalogue up to date and compile it; returns how many sentences have no translation."""
    old = read(language) if po_file(language).exists() else Catalog(locale=language)
    never = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    new = Catalog(
        locale=language, domain=DOMAIN, project="mindmerger", creation_date=never, revision_date=never,
        header_comment="# MindMerger Edge. Apache-2.0. `python -m tests.catalogues` keeps this in step with the code.",
        last_translator="", language_team="", fuzzy=False,
    )  # fmt: skip
    for sentence in sorted(in_code()):
        before = old.get(sentence)
        new.add(sentence, before.string if before else "")
    for own in CLICK:
        before = old.get(own)
        new.add(own, before.string if before else "", auto_comments=["click"])
    po_file(language).parent.mkdir(parents=True, exist_ok=True)
    with po_file(language).open("wb") as file:
        write_po(file, new, width=110, no_location=True, sort_output=True)
    with mo_file(language).open("wb") as file:
        write_mo(file, new)
    return sum(1 for message in new if message.id and not any(translation for _id, translation in texts(message)))


if __name__ == "__main__":
    left = {language: update(language) for language in LANGUAGES}
    print(", ".join(f"{language}: {count} without a translation" for language, count in left.items()))
    sys.exit(any(left.values()))
