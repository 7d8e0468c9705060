"""A bundle with a gate over HTTP: the language told or found, both weights set and reported, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mindmerger
from mindmerger.model import MergedModel
from tests.serve.conftest import Served, serving
from tests.tiny_gate import LANGUAGES, WEIGHTS, gated_bundle

QUESTION = "¿Cuánto es 15 + 27?"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gated_bundle(tmp_path_factory.mktemp("gate") / "gated")


@pytest.fixture(scope="module")
def gated(bundle: Path) -> Iterator[Served]:
    with serving(bundle) as found:
        yield found
        assert found.stop() == 0
        assert "Traceback" not in found.said()


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[MergedModel]:
    with mindmerger.load(bundle, threads=1) as model:
        yield model


def test_explain(gated: Served, model: MergedModel) -> None:
    heard = gated.ask("/v1/explain", {"question": QUESTION}).json
    expected = model.explain(QUESTION)
    assert heard["language"] == pytest.approx(expected.language)
    assert sum(heard["language"].values()) == pytest.approx(1) and len(heard["language"]) > 1
    mixed = [sum(share * WEIGHTS[code][i] for code, share in heard["language"].items()) for i in (0, 1)]
    assert [heard["encoder_weight"], heard["llm_weight"]] == pytest.approx(mixed, abs=1e-5)
    for code in LANGUAGES:
        told = gated.ask("/v1/explain", {"question": QUESTION, "language": code}).json
        assert told["language"] == {code: 1.0}
        assert (told["encoder_weight"], told["llm_weight"]) == WEIGHTS[code]
        assert told["left_out"] == ("question" if code == "sw" else None)


@pytest.mark.parametrize("path", ["/v1/explain", "/v1/chat/completions"])
def test_a_language_that_the_gate_does_not_know(gated: Served, path: str) -> None:
    if path.endswith("explain"):
        refused = gated.ask(path, {"question": QUESTION, "language": "xx"})
    else:
        refused = gated.chat(QUESTION, mindmerger={"language": "xx"})
    assert refused.status == 400
    assert all(code in refused.json["error"]["message"] for code in ("xx", *LANGUAGES))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"language": "es"},
        {"language": "sw"},  # the gate filters the question
        {"encoder_weight": 0.5, "llm_weight": 1.25},
        {"language": "en", "encoder_weight": 0.01},  # the caller filters the soft prompt
        {"llm_weight": 2.0},
        {"soft_prompt": False},
        {"question_in_prompt": False},
    ],
    ids=str,
)
def test_what_is_wished_is_done_and_reported(gated: Served, model: MergedModel, given: dict[str, Any]) -> None:
    expected = model.answer(QUESTION, **given)
    whole = gated.chat(QUESTION, mindmerger=given).json
    events = [
        json.loads(line[6:])
        for line in gated.chat(QUESTION, mindmerger=given, stream=True).data.split(b"\n")
        if line.startswith(b"data: {")
    ]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert whole["choices"][0]["message"]["content"] == text == expected.text
    for said in (whole["mindmerger"], events[0]["mindmerger"], events[-1]["mindmerger"]):
        assert said["encoder_weight"] == pytest.approx(expected.encoder_weight)
        assert said["llm_weight"] == pytest.approx(expected.llm_weight)
        assert said["soft_prompt_rows"] == expected.soft_prompt_rows
        assert said["language"] == (None if expected.language is None else pytest.approx(expected.language))
    for name in ("encoder_weight", "llm_weight"):
        if given.get(name, 0) >= 0.1:
            assert whole["mindmerger"][name] == given[name]
    if "language" in given and "encoder_weight" not in given:
        assert whole["mindmerger"]["language"] == {given["language"]: 1.0}
    if given == {"language": "sw"}:
        assert (whole["mindmerger"]["llm_weight"], whole["mindmerger"]["prompt_tokens"]) == (0, 0)
    if given.get("encoder_weight") == 0.01:
        assert (whole["mindmerger"]["encoder_weight"], whole["mindmerger"]["soft_prompt_rows"]) == (0, 0)


def test_contradictions(gated: Served) -> None:
    for given in ({"soft_prompt": False, "encoder_weight": 1.0}, {"encoder_weight": 0.0, "llm_weight": 0.0},
                  {"encoder_weight": 2.5}, {"llm_weight": -1}):  # fmt: skip
        assert gated.chat(QUESTION, mindmerger=given).status == 400, given
