"""Word problems from stories: each question can be answered from what it tells, and each solution computes to the answer."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindmerger.calculator import calculate
from mindmerger.errors import DataError
from mindmerger_train.data import problems
from mindmerger_train.data.problems import LANGUAGES, Problem, english, generate, make, phrases
from mindmerger_train.data.problems.quantities import complete, parse_rule, solve
from mindmerger_train.data.problems.story import Story, parse_story, plan, stories, variants
from mindmerger_train.data.problems.template import count, expand, parse
from mindmerger_train.data.problems.words import number_word, plural, verb
from mindmerger_train.data.readers import read_source

STORIES = stories(english.FOLDER)
WORLD = stories(phrases.STORIES)
CROWDED = stories(english.CROWDED)
CROWDED_WORLD = stories(phrases.CROWDED)
OTHERS = [language for language in LANGUAGES if language != "en"]
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
    known = told_numbers(problem.english) | {Fraction(number) for number in (2, 3, 60, 100)}
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


@pytest.mark.parametrize(
    ("story", "crowded"), [*((one.name, False) for one in STORIES), *((one.name, True) for one in CROWDED)]
)
def test_each_story(story: str, crowded: bool) -> None:
    rng = random.Random(f"test:{story}")
    seen = set()
    for _ in range(40):
        problem = make(rng, story=story, crowded=crowded)
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


@pytest.mark.parametrize(
    ("folder", "story"),
    [
        (folder, story)
        for folder in (english.FOLDER, phrases.STORIES, english.CROWDED, phrases.CROWDED)
        for story in stories(folder)
    ],
    ids=lambda value: value.name,
)
def test_every_question_of_a_story_can_be_put_and_every_step_has_a_name(folder: Path, story: Story) -> None:
    choices, weights = variants(folder, stories(folder).index(story))
    assert {ask for ask, _ in choices} == set(story.ask)
    assert min(weights) > 0
    for ask, told in choices:
        asked, *known = ask.split()
        others = story.tellable() - told - {asked, *known}
        for extra in itertools.chain([()], ((name,) for name in others), itertools.combinations(others, 2)):
            steps = solve(asked, told.union(known, extra), story.rules)
            assert steps is not None
            assert {step.target for step in steps} <= set(story.say), (story.name, ask, told, extra)


def test_languages_of_the_evaluation_and_of_low_resources_are_there() -> None:
    assert {"bn", "th", "te", "sw", "hi", "ur", "ar", "yo", "ha", "am", "id", "vi", "tr", "ja", "zh"} <= set(OTHERS)
    assert {"es", "fr", "de", "ru"} <= set(OTHERS) and len(OTHERS) >= 20


@pytest.mark.parametrize("language", OTHERS)
def test_a_language_says_what_english_says(language: str) -> None:
    spoken = phrases.language(language)
    ascii_digits = {ord(digit): str(value) for value, digit in enumerate(spoken.digits)}
    rng = random.Random(f"test:{language}")
    words = 0
    for story in WORLD:
        for _ in range(8):
            problem = make(rng, language=language, story=story.name)
            check(problem)
            for text in (problem.query, problem.english):
                assert not re.search(r"[{}|_]|\s\s|^\s|\s$|\?\?|\.\.", text), text
            said = Counter(int(run) for run in re.findall(r"\d+", problem.query.translate(ascii_digits)))
            meant = Counter(int(run) for run in re.findall(r"\d+", problem.english))
            # `1本9円`: nine yen for one.
            assert set(said - meant) <= ({1} if language == "ja" else set()), problem
            for number in meant - said:
                words += 1
                assert spoken.number_words[number] in problem.query.lower(), problem
    assert bool(words) == bool(spoken.number_words)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_wording_finds_its_forms(language: str) -> None:
    spoken, rng = phrases.language(language), random.Random(0)
    names = spoken.names or phrases.language("es").names
    stories_plan = plan(phrases.STORIES, 0, rng, 100, 0.0)
    of_people = ("there_are", "q_there")
    for name, wordings in spoken.phrases.items():
        for wording in wordings:
            for x in spoken.things if name not in of_people else ("child", "boy", "girl"):
                container, money = rng.choice(spoken.containers), rng.choice(spoken.money)
                scene = phrases.Scene(
                    dict(zip("pr", rng.sample(names, 2), strict=True)), {"x": x, "g": container, "m": money}
                )
                teller = phrases.Teller(stories_plan, scene, spoken, rng)
                teller.bound = {parameter: parameter for parameter in phrases.SIGNATURES[name].split()}
                for value in (2, 5, 11, 21, 101):
                    stories_plan.values.update(n=Fraction(value), k=Fraction(value))
                    text = phrases.fill(teller, wording)
                    assert not re.search(r"[{}|]", text) and "None" not in text, (name, wording, text)
    # The same phrases speak of containers and of money.
    for name in ("has", "sells", "q_has", "q_left", "now_has", "some", "gives", "q_first"):
        for thing in (*spoken.containers, *spoken.money):
            scene = phrases.Scene(dict(zip("pr", rng.sample(names, 2), strict=True)), {"x": thing})
            teller = phrases.Teller(stories_plan, scene, spoken, rng)
            teller.bound = {parameter: parameter for parameter in phrases.SIGNATURES[name].split()}
            assert all(phrases.fill(teller, wording) for wording in spoken.phrases[name])


@pytest.mark.parametrize(
    ("rule", "number", "category"),
    [
        ("ru", 1, "one"),
        ("ru", 3, "few"),
        ("ru", 12, "many"),
        ("ru", 101, "one"),
        ("ar", 2, "two"),
        ("ar", 7, "few"),
        ("ar", 11, "many"),
        ("ar", 100, "other"),
        ("ar", 111, "many"),
        ("one_other", 1, "one"),
        ("one_other", 21, "other"),
        ("from_two", 1, "one"),
        ("none", 1, "other"),
    ],
)
def test_plural_categories(rule: str, number: int, category: str) -> None:
    assert phrases.plural_form(rule, number) == category


@pytest.mark.parametrize("folder", [english.FOLDER, phrases.STORIES], ids=lambda folder: folder.name)
def test_nothing_else_happens_where_it_would_change_the_question(folder: Path) -> None:
    rng = random.Random(8)
    seen = 0
    for index, story in enumerate(stories(folder)):
        assert story.exact <= {ask.split()[0] for ask in story.ask}
        for _ in range(60 if story.exact else 0):
            chosen = plan(folder, index, rng, 100, extra_rate=1.0)
            seen += chosen.asked in story.exact
            assert chosen.extra == 0 or chosen.asked not in story.exact
    assert seen > 10


def test_native_digits_now_and_then() -> None:
    made = list(generate("bn", 300, seed=1))
    native = [problem for problem in made if re.search("[০-৯]", problem.query)]
    assert 40 < len(native) < 150
    assert not any(re.search("[০-৯]", problem.english + problem.response) for problem in made)
    assert made == list(generate("bn", 300, seed=1))
    assert len({problem.query for problem in made}) > 290


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


@pytest.mark.parametrize("language", ["en", "sw"])
def test_extras_tell_more_than_is_needed(language):
    def told(share):
        return sum(problem.strange > 0 for problem in generate(language, 200, seed=3, extras=share))

    few, many = told(0.0), told(0.9)
    assert many > few + 40
    if language == "sw":
        assert few == 0
    with pytest.raises(DataError, match="extras is"):
        generate(language, 1, seed=0, extras=1.5)


@pytest.mark.parametrize("language", LANGUAGES)
def test_crowded_stories_tell_more_than_is_needed_in_every_language(language: str) -> None:
    made = list(generate(language, 80, seed=5, extras=1.0, crowded=True))
    for problem in made:
        check(problem)
    assert sum(problem.strange > 0 for problem in made) > 55
    assert sum(problem.strange > 1 for problem in made) > 20
    assert {problem.story for problem in made} == {
        story.name for story in (CROWDED if language == "en" else CROWDED_WORLD)
    }


def test_in_crowded_stories_the_place_of_a_number_does_not_tell_whether_it_is_needed() -> None:
    pairs: Counter[tuple[int, ...]] = Counter()
    for problem in generate("en", 1500, seed=6, extras=1.0, crowded=True):
        told = [run.rstrip(",").replace(",", "") for run in _NUMBER.findall(problem.query)]
        if problem.steps == 1 and len(told) == len(set(told)) == 4:
            operands = re.findall(r"\d+", _STEP.findall(problem.response)[0][1])
            pairs[tuple(sorted(told.index(run) for run in operands if run in told))] += 1
    four = {pair: number for pair, number in pairs.items() if len(pair) == 2}
    assert len(four) == 6
    assert max(four.values()) < 0.5 * sum(four.values())


def test_max_value_keeps_counts_small() -> None:
    for problem in generate("en", 200, seed=1, max_value=20):
        check(problem)
    rng = random.Random(0)
    for _ in range(50):
        problem = make(rng, max_value=30, story="join")
        # Each of the two is at most 30; a number that has nothing to do with them may be a little greater.
        assert max(told_numbers(problem.query)) <= 90


def test_is_a_data_source() -> None:
    examples = read_source("problems", Path(), {"languages": ["en"], "count": 25, "seed": 9})
    assert len(examples) == 25
    assert all(
        example.language == "en" and example.query == example.english and "####" in example.response
        for example in examples
    )
    both = read_source("problems", Path(), {"languages": ["sw", "en"], "count": 5})
    assert [example.language for example in both] == ["sw"] * 5 + ["en"] * 5
    assert all(example.query != example.english for example in both[:5])
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
