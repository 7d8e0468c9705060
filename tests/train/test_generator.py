"""The problem generator: every language renders every kind, says the same in English, and its solutions compute."""

from __future__ import annotations

import random
import re
from fractions import Fraction

import pytest

from mindmerger.errors import DataError
from mindmerger_train.data import generator
from mindmerger_train.data.generator import KINDS, LANGUAGES, Problem, generate, make, wordings

_CALCULATION = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)")
_TO_ASCII = {ord(digit): str(value) for row in generator._NATIVE_DIGITS.values() for value, digit in enumerate(row)}


def numbers_of(text: str, language: str) -> list[int]:
    """The numbers in a question, sorted; words for numbers count too, where the language writes them."""
    found = [int(run) for run in re.findall(r"\d+", text.translate(_TO_ASCII))]
    words: list[str] = generator._load(language).get("number_words", [])
    # Longest first and nothing but hyphens and letters around: "dix-sept" is not "dix" and "sept".
    for token in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", text.lower()):
        if token in words[2:]:
            found.append(words.index(token))
    return sorted(found)


def samples(language: str, rounds: int) -> list[Problem]:
    rng = random.Random(f"test:{language}")
    return [make(language, kind, rng) for kind in KINDS for _ in range(rounds)]


def test_is_deterministic() -> None:
    first = list(generate("ru", 40, seed=3))
    assert first == list(generate("ru", 40, seed=3))
    assert first != list(generate("ru", 40, seed=4))
    assert len(first) == 40


def test_only_the_kinds_that_are_wanted() -> None:
    problems = list(generate("sw", 40, seed=1, kinds=("add", "div")))
    assert {problem.kind for problem in problems} == {"add", "div"}
    assert list(generate("sw", 9, seed=2, kinds=KINDS)) == list(generate("sw", 9, seed=2))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_wording_renders(language: str) -> None:
    rng = random.Random(0)
    for kind in KINDS:
        for template in wordings(language, kind):
            # Both genders and several plural forms come up within a few scenes.
            for _ in range(4):
                scene = generator._draw_scene(language, kind, rng, 1000)
                text = generator._Renderer(language, scene).fill(template)
                assert not re.search(r"[{}|]|\s{2}|^\s|\s$|\?\?", text), (kind, template, text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_question_and_english_have_the_same_numbers(language: str) -> None:
    for problem in samples(language, 12):
        assert numbers_of(problem.query, language) == numbers_of(problem.english, "en"), problem


@pytest.mark.parametrize("language", LANGUAGES)
def test_solutions_compute_to_the_answer(language: str) -> None:
    for problem in samples(language, 12):
        body, _, final = problem.response.rpartition("\n#### ")
        steps = _CALCULATION.findall(body)
        assert steps and body.count("<<") == len(steps)
        value = Fraction(-1)
        for left, operator, right, result, repeated in steps:
            a, b = Fraction(left), Fraction(right)
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a}[operator]
            assert value == Fraction(result) == Fraction(repeated), problem
        assert value == int(final) == problem.answer >= 0, problem
        assert "{" not in problem.response, problem


def bare_value(expression: str) -> Fraction | None:
    """The value of a bare expression in symbols, found in a question; None where it is in words."""
    ascii_text = expression.translate({**_TO_ASCII, ord("×"): "*", ord("÷"): "/", ord("−"): "-"})
    match = re.search(r"\(?\d+ ?[-+*/] ?\d+\)?(?: ?[-+*/] ?\d+)?", ascii_text)
    if match is None:
        return None
    return Fraction(eval(re.sub(r"(\d+)", r"Fraction(\1)", match[0]), {"Fraction": Fraction}))


@pytest.mark.parametrize("language", LANGUAGES)
def test_expressions_have_the_value_of_the_answer(language: str) -> None:
    rng = random.Random(5)
    seen = 0
    for kind in ("add", "sub", "mul", "div", "add_mul", "mul_add", "add_sub"):
        for _ in range(20):
            problem = make(language, kind, rng)
            for text in (problem.query, problem.english):
                value = bare_value(text)
                seen += value is not None
                assert value is None or value == problem.answer, problem
    assert seen > 60


def test_languages_have_the_same_kinds() -> None:
    reference = generator._load("en")
    assert set(reference["solutions"]) == set(KINDS)
    for language in LANGUAGES:
        data = generator._load(language)
        for section in ("setups", "questions", "bare", "bare_whole", "nouns", "containers"):
            assert set(data[section]) == set(reference[section]), (language, section)
        assert set(data["money"]) <= set(reference["money"])
        for kind in KINDS:
            assert len(set(wordings(language, kind))) >= 3, (language, kind)


def test_native_digits_only_in_the_question() -> None:
    problems = list(generate("bn", 400, seed=1))
    native = [problem for problem in problems if problem.query.translate(_TO_ASCII) != problem.query]
    assert 10 < len(native) < 90
    assert all(p.english.translate(_TO_ASCII) == p.english for p in native)


@pytest.mark.parametrize(
    ("number", "russian", "arabic"),
    [
        (1, "one", "one"),
        (2, "few", "other"),
        (5, "many", "few"),
        (11, "many", "many"),
        (14, "many", "many"),
        (21, "one", "many"),
        (22, "few", "many"),
        (100, "many", "other"),
        (103, "few", "few"),
        (112, "many", "many"),
    ],
)
def test_plural_categories(number: int, russian: str, arabic: str) -> None:
    assert generator._plural("ru", number) == russian
    assert generator._plural("ar", number) == arabic


def test_max_value_bounds_the_numbers_of_a_question() -> None:
    for language in ("en", "zh", "ar"):
        for problem in generate(language, 600, seed=2, max_value=50):
            # The price paid is a product and may be greater; everything else stays near the bound.
            if problem.kind != "price_change":
                assert max(numbers_of(problem.query, language)) <= 50, problem


def test_user_errors() -> None:
    with pytest.raises(DataError, match="'xx'"):
        generate("xx", 1, seed=0)
    with pytest.raises(DataError, match="-1"):
        generate("en", -1, seed=0)
    with pytest.raises(DataError, match="max_value"):
        generate("en", 1, seed=0, max_value=3)
    with pytest.raises(DataError, match="no kind of problem 'integral'; use one of add"):
        generate("en", 1, seed=0, kinds=("add", "integral"))
    with pytest.raises(DataError, match="kinds is empty"):
        generate("en", 1, seed=0, kinds=())
    with pytest.raises(DataError, match="kind"):
        make("en", "integral", random.Random(0))
