"""Scoring as the papers do it, statistics against known values, and which questions are asked in which order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindmerger.answer import final_answer
from mindmerger.errors import DataError
from mindmerger_train.data.benchmarks import Question
from mindmerger_train.evaluation.results import percent
from mindmerger_train.evaluation.scoring import is_number, last_number, score
from mindmerger_train.evaluation.selection import halving, select
from mindmerger_train.evaluation.statistics import (
    average,
    compare_averages,
    compare_shares,
    mcnemar_exact,
    share_interval,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 1,234,567.50.", 1234567.5),
        ("#### 5 apples, 2 each", 2),  # the last number, wherever the mark is
        ("It is -3.", 3),  # unsigned
        ("no number", 0),
        ("", 0),
        ("12.", 12),
        ("3.14.15", 15),  # one point to a number
        ("คำตอบคือ ๔๒", 42),
        ("1,2,3", 3),
    ],
)
def test_the_papers_number(text, number):
    assert last_number(text) == number


def test_where_the_runtime_reads_another_answer():
    """The runtime believes the mark and keeps the sign; the papers take the last number without it."""
    assert (final_answer("#### -3"), last_number("#### -3")) == ("-3", 3.0)
    assert (final_answer("#### 5 apples, 2 each"), last_number("#### 5 apples, 2 each")) == ("5", 2.0)


@given(st.text())
def test_any_text_has_a_number(text):
    assert math.isfinite(last_number(text)) or len(text) > 300
    assert score("mgsm", text, "-1").right == (last_number(text) == 1)


def test_what_is_right():
    assert score("msvamp", "so 8 left", "8.0").right
    assert not score("mgsm", "eight", "8").right
    assert score("mgsm", "none at all", "0").right  # as in the papers
    assert score("xcsqa", " B\n", "B").right
    assert not score("xcsqa", "B.", "B").right
    assert score("xnli", "entailment", "entailment").right
    assert score("qa", "That makes 1,200", "1200").right
    assert score("qa", "7", "He has 3 + 4.\n#### 7").right
    assert score("qa", " Paris ", "Paris").right
    assert not score("qa", "I think Paris", "Paris").right


def test_a_target_without_a_number_is_refused():
    with pytest.raises(DataError, match="no number"):
        score("mgsm", "0", "unknown")


def test_numbers_and_labels():
    assert all(map(is_number, ("42", "1,200", "-3", "8.0", " 7 ", "3 + 4 = 7\n#### 7")))
    assert not any(map(is_number, ("B", "42 km", "", "1.2.3")))


# ------------------------------------------------------------------------------------------------ statistics


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (1, 8, 20 / 512),  # 2 · (1 + 9) / 2⁹
        (8, 1, 20 / 512),
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 10, 2 / 1024),
        (10, 25, 0.016678),  # R: binom.test(10, 35)$p.value
    ],
)
def test_mcnemar(b, c, p):
    assert mcnemar_exact(b, c) == pytest.approx(p, abs=1e-5)


def test_mcnemar_of_thousands():
    """2ⁿ is no float there; the normal approximation with continuity correction is close."""
    z = (abs(2400 - 2610) - 1) / math.sqrt(2400 + 2610)
    assert mcnemar_exact(2400, 2610) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)


def test_intervals_cover():
    """Nominal 95 %: of 400 samples of 120 questions with chance 0.3 about 95 % have it in their interval."""
    rng = np.random.default_rng(7)
    hits = 0
    for seed, right in enumerate(rng.binomial(120, 0.3, 400)):
        interval = share_interval(int(right), 120, seed)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.92 <= hits / 400 <= 0.98


def test_all_right_is_not_certain():
    """Clopper & Pearson: of 10 right out of 10 the lower bound is 0.025^(1/10) = 0.6915."""
    assert share_interval(10, 10).low == pytest.approx(0.6915, abs=1e-4)
    assert share_interval(0, 10).high == pytest.approx(0.3085, abs=1e-4)


def test_the_average_is_that_of_the_languages():
    asked = np.array([[1.0, 1.0]] * 4 + [[1.0, 0.0]] * 4)
    right = np.array([[1.0, 0.0]] * 4 + [[1.0, 0.0]] * 4)
    value, _ = average(right, asked)
    assert value == 0.5  # 8 of 8 and 0 of 4: not 8 of 12


def test_translations_of_a_question_are_one_unit():
    """Ten copies of one language say no more than one of them, and the interval knows it."""
    column = np.random.default_rng(1).integers(0, 2, (200, 1)).astype(float)
    copies = np.repeat(column, 10, axis=1)
    _, one = average(column, np.ones_like(column))
    _, ten = average(copies, np.ones_like(copies))
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.1)
    # independent languages in units of their own do say more
    flat = np.zeros((2000, 10))
    asked = np.zeros_like(flat)
    for language in range(10):
        rows = slice(200 * language, 200 * (language + 1))
        flat[rows, language] = np.random.default_rng(language).integers(0, 2, 200)
        asked[rows, language] = 1
    _, independent = average(flat, asked)
    assert independent.high - independent.low < 0.5 * (ten.high - ten.low)


def test_average_intervals_cover():
    """Two languages whose questions are translations: the answers are correlated, and the interval still holds."""
    rng = np.random.default_rng(3)
    hits = 0
    for seed in range(120):
        hard = rng.random((80, 1))
        right = (rng.random((80, 2)) < 0.2 + 0.6 * hard).astype(float)  # mean ½
        _, interval = average(right, np.ones_like(right), seed)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.89 <= hits / 120 <= 0.99


def test_comparisons():
    first = np.array([True] * 8 + [False] * 1 + [True] * 20 + [False] * 20)
    second = np.array([False] * 8 + [True] * 1 + [True] * 20 + [False] * 20)
    comparison = compare_shares(first, second)
    assert (comparison.only_first, comparison.only_second) == (8, 1)
    assert comparison.difference == pytest.approx(7 / 49)
    assert comparison.p == pytest.approx(20 / 512)
    assert comparison.interval is not None and 0 < comparison.interval.low < 7 / 49 < comparison.interval.high
    assert compare_shares(first, first).interval is None


def test_the_permutation_test_is_mcnemars_where_there_is_one_language():
    """With single differences of ±1, flipping signs is drawing from Binomial(b + c, ½)."""
    first = np.array([[1.0]] * 8 + [[0.0]] * 1 + [[1.0]] * 30)
    second = np.array([[0.0]] * 8 + [[1.0]] * 1 + [[1.0]] * 30)
    comparison = compare_averages(first, second, np.ones_like(first))
    assert comparison.p == pytest.approx(20 / 512, abs=0.006)
    assert compare_averages(first, first, np.ones_like(first)).p == 1.0


def test_no_difference_is_rarely_found():
    """False alarms at 5 % are about 5 % (120 simulated benchmarks of two languages)."""
    rng = np.random.default_rng(11)
    alarms = 0
    for seed in range(120):
        hard = rng.random((60, 1))
        first, second = ((rng.random((60, 2)) < hard).astype(float) for _ in range(2))
        alarms += compare_averages(first, second, np.ones((60, 2)), seed).p < 0.05
    assert alarms <= 14


# ------------------------------------------------------------------------------------------------- selection


def questions(counts: dict[str, int]) -> list[Question]:
    return [
        Question(language, index, f"{language} {index}", "1", "qa")
        for language, n in counts.items()
        for index in range(n)
    ]


@given(st.integers(1, 300))
def test_halving_is_a_permutation_whose_beginnings_are_spread(count):
    order = halving(count)
    assert sorted(order) == list(range(count))
    if count >= 8:
        quarter = sorted(order[: count // 4])
        assert max(b - a for a, b in zip([-1, *quarter], [*quarter, count], strict=True)) <= 9


def test_selection_is_balanced_and_spread():
    chosen = select(questions({"es": 100, "sw": 50, "th": 100}), limit=20)
    assert len(chosen) == 60
    for begin in (6, 15, 30):
        counts = [sum(q.language == language for q in chosen[:begin]) for language in ("es", "sw", "th")]
        assert max(counts) - min(counts) <= 1
    assert sorted(q.index for q in chosen if q.language == "es") == list(range(0, 100, 5))
    assert [q.language for q in select(questions({"es": 3, "sw": 2}), ["sw"])] == ["sw", "sw"]
    with pytest.raises(DataError, match="no questions in xx"):
        select(questions({"es": 3}), ["xx"])


def test_one_rounding_in_every_table():
    """The sum of ten languages and the file's six digits say the same: 28.5 (they said 28.5 and 28.4)."""
    shares = [0.215, 0.27, 0.41, 0.295, 0.24, 0.275, 0.265, 0.325, 0.24, 0.31]
    assert percent(sum(shares) / 10) == percent(0.2845) == percent(0.28450000000000003) == "28.5"
    assert percent(0) == "0.0"
    assert percent(1) == "100.0"
    assert percent(0.1165, "+") == "+11.7"
    assert percent(-0.1165, "+") == "-11.7"
