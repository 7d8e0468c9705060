"""A small piece of tests/bench/soak.py: any question and any options end in an answer or a MindMergerError."""

from __future__ import annotations

from pathlib import Path

import mindmerger
from tests.bench.soak import Tally, crowd, soak


def test_any_question_and_any_options(random_bundle: Path) -> None:
    tally = Tally()
    with mindmerger.load(random_bundle, threads=1) as model:
        soak(model, 200, tally, hang=300)
        assert model.answer("hola").text
    assert tally.asked >= 200
    assert tally.outcomes["InputError"] > 20 and tally.outcomes["batch"] > 20 and tally.outcomes["length"] > 5
    assert set(tally.outcomes) <= {"InputError", "batch", "length", "stop", "closed", "timeout"}


def test_a_crowd_gets_the_answers_of_one(random_bundle: Path) -> None:
    with mindmerger.load(random_bundle, threads=1) as model:
        assert crowd(model, 8) == {"threads": 8, "questions": 50, "different": 0}
