"""Sentences that do not matter: the solution stays, near ones are about other things, kinds and persons."""

from __future__ import annotations

import random
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindmerger_train.data.asides import Surroundings, standing_alone, surroundings, with_aside
from mindmerger_train.data.variants import Problem, worked


def problem(question: str, equation: str, *numbers: int) -> Problem:
    return Problem(question, tuple(map(Decimal, numbers)), equation)


SHARE = problem(
    "Ana has number0 sweets . She gives them to number1 friends . How many does each get ?", "/ number0 number1", 12, 4
)
GIVE = problem("Ben had number0 pens . He lost number1 . How many are left ?", "- number0 number1", 9, 5)
PARK = problem(
    "There are number0 oak trees in the park . Workers will plant number1 oak trees today . How many oak trees will the "
    "park have ?",
    "+ number0 number1",
    4,
    3,
)
TOM = problem(
    "Tom has number0 pears . Mary gave him number1 pears . How many pears does Tom have now ?",
    "+ number0 number1",
    9,
    6,
)
AROUND = Surroundings(
    sentences=["Ben had number0 pens ."],
    things=["apples", "pears", "trees"],
    people=["boys", "girls"],
    kinds={"trees": ["maple", "oak"]},
    names=["Ben", "Sara", "Tom"],
)


@pytest.mark.parametrize("near", [0.0, 1.0])
@given(seed=st.integers(0, 10_000))
def test_an_aside_changes_the_text_and_not_the_solution(near, seed):
    generator = random.Random(seed)
    for origin in (SHARE, GIVE, PARK, TOM):
        told = with_aside(origin, AROUND, generator, near)
        assert worked(told) == worked(origin)
        assert len(told.numbers) == len(origin.numbers) + 1
        assert told.text() != origin.text() and "{" not in told.text()
        assert told.question.endswith(origin.question.split(" . ")[-1])
        assert f"number{len(origin.numbers)}" in told.question
        # What the story tells, it tells in the same order.
        numbers = [int(number) for number in re.findall(r"number(\d+)", told.question)]
        assert [number for number in numbers if number < len(origin.numbers)] == [0, 1]


def test_near_asides():
    """Other kinds, other things and other people; in front of the story, after its first sentence, or beside the thing."""
    told = {
        with_aside(PARK, AROUND, random.Random(seed), 1).question.replace(PARK.question, "…") for seed in range(200)
    }
    assert told >= {
        "There are number2 maple trees in the park . …",
        PARK.question.replace("plant number1 oak trees", "plant number1 oak trees and number2 maple trees"),
        PARK.question.replace("plant number1 oak trees", "plant number2 maple trees and number1 oak trees"),
    }
    told = {with_aside(TOM, AROUND, random.Random(seed), 1).question.replace(TOM.question, "…") for seed in range(200)}
    assert told >= {
        "Tom has number2 apples . …",
        "Tom has number2 trees . …",
        "Sara has number2 pears . …",
        "Tom has number0 pears . Ben has number2 pears . Mary gave him number1 pears . How many pears does Tom have now ?",
        TOM.question.replace("number1 pears", "number1 pears and number2 apples"),
    }


@pytest.mark.parametrize(
    "question",
    [
        "Tom has number0 pears . He ate number1 . How many fruits are left in all ?",  # pears would not be all
        "Tom has number0 cents . He lost number1 cents . How many cents does the boy have ?",  # measures
        "A boy has number0 pears and number1 boxes . How many pears go into a box ?",  # two numbers in one sentence
    ],
)
def test_where_a_near_aside_could_matter_a_far_one_is_told(question):
    origin = problem(question, "- number0 number1", 9, 5)
    far = {with_aside(origin, AROUND, random.Random(seed), 0).question.replace("9", "") for seed in range(300)}
    for seed in range(50):
        assert with_aside(origin, AROUND, random.Random(seed), 1).question in far


def test_what_things_are_left_out_beside_words_that_point_at_them():
    """ "He lost number1 of them": of the pens alone, not of the pens and the apples."""
    origin = problem(
        "Ben had number0 pens . He lost number1 of them . How many pens does Ben have ?", "- number0 number1", 9, 5
    )
    for seed in range(100):
        assert "pens and" not in with_aside(origin, AROUND, random.Random(seed), 1).question


def test_surroundings_of_a_set():
    problems = [TOM, TOM, TOM, PARK, PARK, problem("Ida has number0 maple trees and number1 trees .", "number0", 3, 2)]
    found = surroundings(problems * 2)
    assert found.things == ["pears"]  # "trees" were counted without a kind twice only
    assert found.names == ["Tom"]
    problems += [problem("There were number0 trees , number1 boys and number2 miles .", "number0", 3, 2, 4)] * 3
    found = surroundings(problems)
    assert (found.things, found.people) == (["pears", "trees"], ["boys"])
    assert found.kinds == {"trees": ["maple", "oak"]}
    assert found.sentences == standing_alone(problems)


def test_nothing_fits():
    alone = problem("How many are number0 and number1 ?", "+ number0 number1", 1, 2)
    nothing = Surroundings([], [], [], {}, [])
    assert with_aside(alone, nothing, random.Random(0), 1) == alone


def test_sentences_that_lean_on_others_are_left_out():
    for lean in ("She ate number0 .", "Each box holds number0 .", "Tom has number0 and number1 .", "tom has number0 ."):
        assert standing_alone([problem(f"{lean} A .", "number0", 2, 3)]) == []
    assert standing_alone([problem("Take number0 .", "number0", 3), GIVE]) == ["Ben had number0 pens ."]
