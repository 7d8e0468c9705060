"""Steering: the gate's opinion, the caller's wishes, what is weighted and what is left out, down to the LLM's logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindmerger.errors import InputError
from mindmerger.manifest import GateInfo
from mindmerger.steering import (
    Opinion,
    Wish,
    given_language,
    left_out,
    named_distribution,
    steer,
    wished_sources,
)

GATE = GateInfo(("en", "sw"))
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((5, 8)).astype(np.float32)
PROMPT = RNG.standard_normal((3, 8)).astype(np.float32)


def opinion(encoder: Any, llm: Any) -> Opinion:
    return Opinion(
        np.atleast_2d(np.asarray(encoder, dtype=np.float32)),
        np.atleast_2d(np.asarray(llm, dtype=np.float32)),
        np.array([0.2, 0.1, 0.7], dtype=np.float32),
    )


def steered(said: Opinion | None, **wish: Any) -> Any:
    asked = Wish(**wish)
    return steer(ROWS, PROMPT, said, asked, 0.1, wished_sources(asked, 0.1))


def test_without_gate_and_wish_nothing_changes() -> None:
    found = steered(None)
    assert found.soft_prompt is ROWS and found.prompt is None and found.question
    assert (found.encoder_weight, found.llm_weight) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("encoder", "llm"),
    [
        (0.5, 1.5),
        (np.linspace(0.2, 1.8, 8), np.linspace(1.8, 0.4, 8)),
        (np.linspace(0.2, 1.8, 4)[:, None], np.array([[0.3], [1.0], [1.9]])),
    ],
    ids=["scalar", "vector", "token"],
)
def test_weights_are_applied_and_the_boundary_row_is_not(encoder: Any, llm: Any) -> None:
    found = steered(opinion(encoder, llm))
    assert np.array_equal(found.soft_prompt[:-1], ROWS[:-1] * np.asarray(encoder, dtype=np.float32))
    assert np.array_equal(found.soft_prompt[-1], ROWS[-1])
    assert np.array_equal(found.prompt, PROMPT * np.asarray(llm, dtype=np.float32))
    assert found.prompt.dtype == found.soft_prompt.dtype == np.float32
    assert found.encoder_weight == pytest.approx(np.mean(encoder))
    assert found.llm_weight == pytest.approx(np.mean(llm))


def test_a_weight_of_exactly_one_leaves_the_prompt_as_tokens() -> None:
    assert steered(opinion(0.5, 1.0)).prompt is None
    assert steered(opinion(0.5, 0.7), llm_weight=1).prompt is None
    assert steered(opinion(0.5, np.nextafter(np.float32(1), np.float32(2)))).prompt is not None


def test_a_wish_replaces_rows_and_dimensions_by_a_scalar() -> None:
    found = steered(
        opinion(np.linspace(0.2, 1.8, 8), np.array([[0.3], [1.0], [1.9]])), encoder_weight=2, llm_weight=0.25
    )
    assert np.array_equal(found.soft_prompt[:-1], 2 * ROWS[:-1])
    assert np.array_equal(found.prompt, np.float32(0.25) * PROMPT)
    # what is told is what was asked for, not its nearest float32
    assert steered(None, llm_weight=1.2).llm_weight == 1.2


@pytest.mark.parametrize(
    ("said", "wish", "kept", "weights"),
    [
        # the gate filters; what is left is alone, and has nothing to be weighed against
        (opinion(0.05, 0.7), {}, (False, True), (0, 1)),
        (opinion(0.7, 0.05), {}, (True, False), (1, 0)),
        # both below: the larger stays
        (opinion(0.05, 0.04), {}, (True, False), (1, 0)),
        (opinion(0.04, 0.05), {}, (False, True), (0, 1)),
        (opinion(0.04, 0.04), {}, (False, True), (0, 1)),
        # the mean counts, not one dimension or row
        (opinion([0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 1.9], 1.0), {}, (True, True), (0.24625, 1)),
        # the caller filters, whatever the gate says
        (opinion(0.7, 0.05), {"encoder_weight": 0}, (False, True), (0, 1)),
        (opinion(0.7, 0.05), {"encoder_weight": 0.09}, (False, True), (0, 1)),
        (opinion(0.05, 0.7), {"llm_weight": 0}, (True, False), (1, 0)),
        (None, {"encoder_weight": 0}, (False, True), (0, 1)),
        (None, {"llm_weight": 0}, (True, False), (1, 0)),
        # the caller's other weight still counts
        (opinion(0.05, 0.7), {"llm_weight": 0.5}, (False, True), (0, 0.5)),
        (opinion(0.7, 0.05), {"encoder_weight": 0, "llm_weight": 1.5}, (False, True), (0, 1.5)),
        (opinion(0.05, 0.7), {"encoder_weight": 0.1}, (True, True), (0.1, 0.7)),
        (None, {"encoder_weight": 0.05, "llm_weight": 0.02}, (True, False), (0.05, 0)),
        (None, {"encoder_weight": 0.02, "llm_weight": 0.05}, (False, True), (0, 0.05)),
    ],
)
def test_filtering(
    said: Opinion | None, wish: dict[str, float], kept: tuple[bool, bool], weights: tuple[float, float]
) -> None:
    found = steered(said, **wish)
    assert (found.soft_prompt is not None, found.question) == kept
    assert (found.encoder_weight, found.llm_weight) == pytest.approx(weights)
    if not kept[1]:
        assert found.prompt is None


def test_a_weight_of_zero_filters_even_where_the_threshold_is_zero() -> None:
    assert wished_sources(Wish(encoder_weight=0), 0.0) == (False, True)
    assert wished_sources(Wish(encoder_weight=0.001), 0.0) == (True, True)


def test_langbridge_has_the_prompt_only_when_asked_or_alone() -> None:
    assert wished_sources(Wish(), 0.1, False) == (True, False)
    assert wished_sources(Wish(llm_weight=0.5), 0.1, False) == (True, True)
    assert wished_sources(Wish(encoder_weight=0), 0.1, False) == (False, True)


def test_no_source_left() -> None:
    with pytest.raises(InputError, match="no question left"):
        wished_sources(Wish(encoder_weight=0, llm_weight=0), 0.1)


@pytest.mark.parametrize("value", [-0.1, 2.1, float("nan"), float("inf"), "1", True, [1]])
@pytest.mark.parametrize("name", ["encoder_weight", "llm_weight"])
def test_weights_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        Wish(**{name: value})


def test_languages() -> None:
    assert given_language(None, None) is None
    assert given_language(None, GATE).tolist() == [0, 0, 0]  # type: ignore[union-attr]
    assert given_language("sw", GATE).tolist() == [0, 0, 1]  # type: ignore[union-attr]
    assert given_language("unknown", GATE).tolist() == [1, 0, 0]  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"'xx'.*en, sw.*'unknown'"):
        given_language("xx", GATE)
    with pytest.raises(InputError, match="no gate"):
        given_language("sw", None)
    with pytest.raises(InputError, match="no language"):
        given_language("sw", GateInfo((), language_input="none"))
    with pytest.raises(InputError, match="code"):
        given_language(3, GATE)  # type: ignore[arg-type]


def test_what_is_shown() -> None:
    assert left_out(opinion(0.05, 0.7), 0.1) == "soft prompt"
    assert left_out(opinion(0.7, 0.05), 0.1) == "question"
    assert left_out(opinion(0.7, 0.7), 0.1) is None
    shown = named_distribution(opinion(1, 1), GATE)
    assert list(shown) == ["sw", "unknown", "en"] and shown["sw"] == pytest.approx(0.7)


WEIGHTS = st.none() | st.floats(0, 2, width=32)


@given(st.floats(0, 2, width=32), st.floats(0, 2, width=32), WEIGHTS, WEIGHTS, st.floats(0, 2))
def test_whatever_is_said_and_wished_something_is_left(
    encoder: float, llm: float, wished: float | None, wished_llm: float | None, threshold: float
) -> None:
    wish = Wish(None, wished, wished_llm)
    try:
        sources = wished_sources(wish, threshold)
    except InputError:
        assert wished == wished_llm and wished is not None and (wished == 0 or wished < threshold)
        return
    found = steer(ROWS, PROMPT, opinion(encoder, llm), wish, threshold, sources)
    assert found.soft_prompt is not None or found.question
    assert (found.soft_prompt is None) == (found.encoder_weight == 0)
    assert found.question == (found.llm_weight > 0)
    for wanted, used in ((wished, found.encoder_weight), (wished_llm, found.llm_weight)):
        assert wanted is None or used in (0, wanted)
