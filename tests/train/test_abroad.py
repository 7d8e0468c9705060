"""English problems in other languages: dictionaries out of parallel texts, mixed questions, Apertium's translations."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindmerger.errors import DataError
from mindmerger_train.data import translator
from mindmerger_train.data.lexicon import english_words, lexicon, mixed, units
from mindmerger_train.data.readers import read_source

GERMAN = [
    ("Wie viele Äpfel hat Anna?", "How many apples does Anna have?"),
    ("Wie viele Äpfel hat Ben?", "How many apples does Ben have?"),
    ("Anna kauft Äpfel.", "Anna buys apples."),
    ("Wie viele Bücher hat er?", "How many books does he have?"),
    ("Er kauft Bücher und Äpfel.", "He buys books and apples."),
    ("Sie kauft Bücher für Anna.", "She buys books for Anna."),
    ("Anna hat Hunger.", "Anna is hungry."),
]


def test_a_dictionary_out_of_parallel_texts():
    found = lexicon(GERMAN, {"how many", "apples", "books", "buys", "for", "hungry"}, "de")
    # Not `hat`, which most texts have; not `for`, a function word; `hungry` stands in one text only.
    assert found == {"how many": "wie viele", "apples": "äpfel", "books": "bücher", "buys": "kauft"}
    assert lexicon([], {"apples"}, "de") == {}


def test_words_are_found_where_no_spaces_are_written():
    pairs = [("我有苹果。", "I have apples."), ("她买苹果", "She buys apples"), ("苹果在哪里", "Where are the apples")]
    others = [("我有书。", "I have books."), ("她买书", "She buys books"), ("书在哪里", "Where are the books")]
    found = lexicon([*pairs, *others], {"apples", "books"}, "zh")
    assert found == {"apples": "苹果", "books": "书"}


@given(st.text(alphabet="กีาำ้ abc,1", max_size=30), st.sampled_from(["th", "zh", "sw"]))
def test_a_unit_is_of_the_text_and_begins_with_a_letter(text, language):
    for unit in units(text, language):
        assert " ".join(unit.split()) == unit
        assert unit[0] not in "ีาำ้" or language == "sw" or " " + unit in " " + text
        assert unit.replace(" ", "") in "".join(letter if letter.isalpha() or letter in "ี้" else "" for letter in text)


def test_mixed_questions_keep_numbers_names_and_beginnings():
    words = {"how many": "wie viele", "apples": "äpfel", "ben": "falsch", "has": "hat"}
    text = "Ben has 3,5 apples. How many apples, Ben?"
    every = {mixed(text, words, random.Random(seed)) for seed in range(60)}
    assert "Ben hat 3,5 äpfel. Wie viele äpfel, Ben?" in every
    assert len(every) > 3
    assert all("Ben" in one and "3,5" in one and "falsch" not in one for one in every)
    assert mixed("", words, random.Random(1)) == ""


@given(st.text(max_size=60), st.dictionaries(st.sampled_from(["a", "b", "how many"]), st.text(max_size=3)))
def test_mixing_takes_any_text(text, words):
    assert mixed(text, {}, random.Random(1)) == text
    mixed(text, words, random.Random(1))
    assert all(word == word.lower() for word in english_words(text) if word.isascii())


def data_folder(folder: Path) -> Path:
    """A folder with three problems, and the translations of them all."""
    (folder / "mawps_asdiv").mkdir()
    rows = [
        (
            "Anna has number0 apples and buys number1 apples . How many apples does Anna have ?",
            "3 4",
            "+ number0 number1",
        ),
        ("Anna buys number0 books and loses number1 . How many books are left ?", "9 2", "- number0 number1"),
        ("Ben buys number0 apples . He eats number1 apples . How many are left ?", "6 5", "- number0 number1"),
    ]
    with (folder / "mawps_asdiv" / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("Question", "Numbers", "Equation"), *rows])
    (folder / "gsm8k").mkdir()
    for name, key in (("en", 1), ("de", 0)):
        with (folder / "gsm8k" / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for index, pair in enumerate(GERMAN):
                file.write(json.dumps({"question": pair[key], "answer": "#### 1", "gsm8k_index": index}) + "\n")
    return folder


def test_code_mixed_problems(tmp_path):
    folder = data_folder(tmp_path)
    options = {"languages": ["de"], "variants": 5, "seed": 3}
    found = read_source("code_mixed", folder, options)
    assert found == read_source("code_mixed", folder, options)
    assert len(found) == 18
    assert {example.language for example in found} == {"de"}
    assert any(e.query.endswith("äpfel. Wie viele äpfel does Anna have?") and " kauft " in e.query for e in found)
    for example in found:
        assert example.response.rpartition("#### ")[2].lstrip("-").isdigit()
        assert "apples" in example.english or "books" in example.english
    # What is made of one problem shares its origin, so that it is held out together.
    assert len({example.origin for example in found}) == 3
    # A language without GSM8K takes the stories; one without anything is refused.
    assert any(
        "ক" <= letter <= "হ" for e in read_source("code_mixed", folder, {"languages": ["bn"]}) for letter in e.query
    )
    for language in ("en", "ka"):
        with pytest.raises(DataError, match=f"no parallel texts in '{language}'"):
            read_source("code_mixed", folder, {"languages": [language]})
    for kind in ("code_mixed", "translated"):
        with pytest.raises(DataError, match=f"{kind}: .* shares from 0 to 1"):
            read_source(kind, folder, {"languages": ["de"], "asides": 2})


def apertium(folder: Path, script: str, monkeypatch) -> None:
    """A program of that name before all others in PATH."""
    folder.mkdir()
    program = folder / "apertium"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_what_apertium_may_do_wrong_is_told(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no translation into 'ka': there is one into es, fr, pt"):
        translator.translated(["One."], "ka")
    apertium(tmp_path / "a", 'echo "Error: Mode $2 does not exist" >&2; exit 1', monkeypatch)
    with pytest.raises(
        DataError, match=r"Mode eng-spa does not exist\): install them, as in `apt install apertium apertium-eng-spa`"
    ):
        translator.translated(["One."], "es")
    apertium(tmp_path / "b", "head -n 1", monkeypatch)
    with pytest.raises(DataError, match="1 lines of 2 came back"):
        translator.translated(["One.", "Two."], "fr")
    apertium(tmp_path / "c", "sed 's/ 4/ cuatro/'", monkeypatch)
    assert translator.translated(["Ana has 3\nand 5.", "Ana has 4."], "es") == ["Ana has 3 and 5.", None]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="cannot be started"):
        translator.translated(["One."], "es")


@pytest.mark.skipif(shutil.which("apertium") is None, reason="Apertium is not installed")
def test_translated_problems(tmp_path):
    found = read_source("translated", data_folder(tmp_path), {"languages": ["es"], "variants": 1})
    assert {example.language for example in found} == {"es"}
    assert any("manzanas" in example.query and "apples" in example.english for example in found)
    assert all(example.response.startswith(tuple("123456789")) for example in found)
