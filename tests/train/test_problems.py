"""Word problems from stories: each question can be answered from what it tells, and each solution computes to the answer."""

from __future__ import annotations

import itertools
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindmerger.calculator import calculate
from mindmerger.errors import DataError
from mindmerger_train.data import problems
from mindmerger_train.data.problems import Problem, english, generate, make
from mindmerger_train.data.problems.quantities import complete, parse_rule, solve
from mindmerger_train.data.problems.story import Story, parse_story, stories, variants
from mindmerger_train.data.problems.template import count, expand, parse
from mindmerger_train.data.problems.words import number_word, plural, verb
from mindmerger_train.data.readers import read_source

STORIES = stories(english.FOLDER)
_STEP = re.compile(r"([^\n]*)<<([^<>=]+)=([^<>]+)>>([^\s,]+)")
_WORDS = {number_word(value): value for value in range(1, 21)}
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def told_numbers(text: str) -> set[Fraction]:
    """Every number of a question: in digits, and in words."""
    found = {Fraction(run.rstrip(",").replace(",", "")) for run in _NUMBER.findall(text)}
    found |= {Fraction(_WORDS[word]) for word in re.findall(r"[a-z]+(?:-[a-z]+)?", text.lower()) if word in _WORDS}
    times = {"twice": 2, "half": 2, "third": 3, "quarter": 4, "fifth": 5, "sixth": 6}
    return found | {Fraction(value) for word, value in times.items() if re.search(rf"\b{word}\b", text)}


def check(problem: Problem) -> None:
    """The chain: each operand was told, or worked out before, or is a unit's constant; the last result is the answer."""
    body, _, final = problem.response.rpartition("\n#### ")
    assert final == problem.answer
    known = told_numbers(problem.query) | {Fraction(number) for number in (2, 3, 60, 100)}
    lines = body.split("\n")
    assert len(lines) == problem.steps
    for line in lines:
        steps = _STEP.findall(line)
        assert len(steps) == 1, problem
        before, expression, result, repeated = steps[0]
        assert calculate(expression) == result, problem
        assert repeated.rstrip(".%") == result or repeated.startswith(result), problem
        assert before.replace(" ", "").endswith((expression + "=", expression + "=" + before[-1:])), problem
        operands = {Fraction(run) for run in re.findall(r"\d+(?:\.\d+)?", expression)}
        assert operands <= known, (operands - known, problem)
        known.add(Fraction(result))
        # A division that is rounded says what it is rounded to.
        known |= {Fraction(run) for run in re.findall(r", so (\d+)", line)}
    assert Fraction(final) in known
    assert re.search(rf"(>>|, so ){re.escape(final)}(?![\d.]*\d)", lines[-1]), problem


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9))
def test_solutions_follow_from_the_question(seed: int) -> None:
    check(make(random.Random(seed)))


@pytest.mark.parametrize("story", [story.name for story in STORIES])
def test_each_story(story: str) -> None:
    rng = random.Random(f"test:{story}")
    seen = set()
    for _ in range(40):
        problem = make(rng, story=story)
        check(problem)
        seen.add(problem.query)
        assert not re.search(r"[{}\[\]<>|_]|\s\s|^\s|\s$|\s[.,?]|[.,?][.,?]|\b[Aa] [aeio]\w", problem.query), (
            problem.query
        )
        assert problem.query.count("?") == 1
        assert problem.query[0].isupper() or problem.query[0].isdigit()
        assert all(
            part[0].isupper() or not part[0].isalpha()
            for part in re.split(r"(?<!\bMr)(?<!\bMs)(?<!Mrs)[.?] ", problem.query)
        )
    assert len(seen) == 40


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_every_question_of_a_story_can_be_put_and_every_step_has_a_name(story: Story) -> None:
    choices, weights = variants(english.FOLDER, STORIES.index(story))
    assert {ask for ask, _ in choices} == set(story.ask)
    assert min(weights) > 0
    for ask, told in choices:
        asked, *known = ask.split()
        others = story.tellable() - told - {asked, *known}
        for extra in itertools.chain([()], ((name,) for name in others), itertools.combinations(others, 2)):
            steps = solve(asked, told.union(known, extra), story.rules)
            assert steps is not None
            assert {step.target for step in steps} <= set(story.say), (story.name, ask, told, extra)


def test_same_story_other_question_other_operation() -> None:
    rng = random.Random(3)
    operations = {
        re.sub(r"\d+", "", expression)
        for _ in range(60)
        for _, expression, _, _ in _STEP.findall(make(rng, story="groups").response)
    }
    assert {"*", "/", "-", "+"} <= operations


def test_is_deterministic_and_streams() -> None:
    first = list(generate("en", 30, seed=4))
    assert first == list(generate("en", 30, seed=4))
    assert first != list(generate("en", 30, seed=5))
    # Nothing is made before it is asked for.
    endless = generate("en", 10**12, seed=4)
    assert list(itertools.islice(endless, 30)) == first


def test_problems_differ_and_a_third_has_numbers_that_are_not_needed() -> None:
    made = list(generate("en", 1500, seed=2))
    assert len({problem.query for problem in made}) > 1490
    assert 0.25 < sum(problem.strange > 0 for problem in made) / len(made) < 0.42
    assert 0.45 < sum(problem.steps == 1 for problem in made) / len(made) < 0.7
    assert {problem.kind for problem in made} == set(problems.kinds())


def test_max_value_keeps_counts_small() -> None:
    for problem in generate("en", 200, seed=1, max_value=20):
        check(problem)
    rng = random.Random(0)
    for _ in range(50):
        problem = make(rng, max_value=30, story="join")
        assert max(told_numbers(problem.query)) <= 60


def test_is_a_data_source() -> None:
    examples = read_source("problems", Path(), {"languages": ["en"], "count": 25, "seed": 9})
    assert len(examples) == 25
    assert all(
        example.language == "en" and example.query == example.english and "####" in example.response
        for example in examples
    )
    assert len(read_source("mine", Path(), {"kind": "problems", "languages": ["en"], "count": 25, "cap": 5})) == 5


def test_user_errors() -> None:
    with pytest.raises(DataError, match="'xx'"):
        generate("xx", 1, seed=0)
    with pytest.raises(DataError, match="-1"):
        generate("en", -1, seed=0)
    with pytest.raises(DataError, match="max_value"):
        generate("en", 1, seed=0, max_value=3)
    with pytest.raises(DataError, match=r"data\.problems\.count"):
        read_source("problems", Path(), {"languages": ["en"], "count": "many"})


def test_rules_go_in_every_direction() -> None:
    rules = (parse_rule("left = start - gone"), parse_rule("start = boxes * per"))
    values = complete({"boxes": Fraction(4), "per": Fraction(6), "gone": Fraction(5)}, rules)
    assert values == {"boxes": 4, "per": 6, "gone": 5, "start": 24, "left": 19}
    for told in itertools.combinations(["boxes", "per", "gone", "left"], 3):
        asked = ({"boxes", "per", "gone", "left"} - set(told)).pop()
        steps = solve(asked, told, rules)
        assert steps is not None and len(steps) == 2 and steps[-1].target == asked
    assert solve("left", ["start"], rules) is None
    assert complete({"start": Fraction(7), "per": Fraction(2), "gone": Fraction(9)}, rules) is None


@pytest.mark.parametrize("text", ["a = b", "a = b + c - d", "a b = c + d", "a = b ^ c", ""])
def test_wrong_rules(text: str) -> None:
    with pytest.raises(DataError, match="no rule"):
        parse_rule(text)


def test_wrong_stories() -> None:
    whole = {
        "kind": "x",
        "draw": "a:few b:few",
        "rules": ["c = a + b"],
        "facts": {"a": ["{a}"]},
        "ask": {"c": ["?"]},
        "say": {},
    }
    assert parse_story("whole", whole).tellable() == {"a"}
    with pytest.raises(DataError, match="'rules'"):
        parse_story("broken", {key: value for key, value in whole.items() if key != "rules"})
    with pytest.raises(DataError, match="'colour'"):
        parse_story("broken", {**whole, "colour": "red"})


def test_templates() -> None:
    nodes = parse("[a|b[c|]] <has|had> {x}")
    assert count(nodes) == 3
    rng = random.Random(0)
    assert {expand(nodes, rng, 1, str.upper) for _ in range(50)} == {"a had X", "bc had X", "b had X"}
    for wrong in ("[a", "a]", "{x", "a|b", "<a|b]"):
        with pytest.raises(DataError):
            parse(wrong)


def test_word_forms() -> None:
    assert [plural(word) for word in ("apple", "box", "cherry", "toy", "peach")] == [
        "apples",
        "boxes",
        "cherries",
        "toys",
        "peaches",
    ]
    assert (verb("give away").third, verb("give away").past, verb("give away").participle) == (
        "gives away",
        "gave away",
        "given away",
    )
    assert (verb("carry").third, verb("bake").past, verb("win").ing) == ("carries", "baked", "winning")
    assert [number_word(value) for value in (0, 13, 40, 57)] == ["zero", "thirteen", "forty", "fifty-seven"]
