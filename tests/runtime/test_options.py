"""Options of a question: checked, contradictions refused, and each does what it says; streaming, whole and in a batch."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mindmerger
from mindmerger.deadline import Deadline
from mindmerger.errors import InputError, MindMergerError
from mindmerger.llama import LLM, Cancelled
from mindmerger.model import MergedModel
from mindmerger.options import OptionKeywords, Options, SourceKeywords
from mindmerger.sampling import Sampling
from mindmerger.transcript import Transcript
from tests import tiny

ARITHMETIC = "<<48/2=24>>#### 7"


@pytest.fixture
def arithmetic(arithmetic_bundle: Path) -> Iterator[MergedModel]:
    with mindmerger.load(arithmetic_bundle, threads=1) as model:
        yield model


@pytest.fixture
def model(random_bundle: Path) -> Iterator[MergedModel]:
    with mindmerger.load(random_bundle, threads=1) as model:
        yield model


def both_ways(model: MergedModel, question: str, **options: Any) -> mindmerger.Generation:
    """The answer, the same from the stream, from `answer` and from a batch."""
    stream = model.generate(question, **options)
    assert "".join(stream) == stream.result.text
    (item,) = model.generate_batch([question], **options)
    assert item.generation is not None
    for found in (item.generation, model.answer(question, **options)):
        assert (found.text, found.token_ids, found.finish_reason, found.stop_id) == (
            stream.result.text, stream.result.token_ids, stream.result.finish_reason, stream.result.stop_id,
        )  # fmt: skip
    return stream.result


def test_keywords_are_the_fields() -> None:
    names = {field.name for field in dataclasses.fields(Options)}
    assert set(OptionKeywords.__annotations__) == names
    assert set(SourceKeywords.__annotations__) < names
    assert all(f"{name} " in OptionKeywords.__doc__ or f"{name}," in OptionKeywords.__doc__ for name in names)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0}, {"max_new_tokens": True}, {"timeout": 0}, {"timeout": -1}, {"timeout": "1"},
        {"timeout": float("nan")}, {"timeout": float("inf")}, {"calculator": 1}, {"soft_prompt": None},
        {"stop": ""}, {"stop": ["a", ""]}, {"stop": ["a"] * 17}, {"stop": "x" * 201}, {"stop": 5}, {"stop": b"a"},
        {"stop": [1]}, {"repeat_penalty": 0}, {"repeat_penalty": 11}, {"grammar": 5}, {"grammar": ""},
        {"grammar": "root ::= \0"}, {"grammar": "\ud800"}, {"grammar": "#" * 70_000},
        {"grammar": "root ::= " + "(" * 101 + "a" + ")" * 101}, {"grammar": 'root ::= "a"{1,1000000}'},
        {"grammar": 'root ::= "a"', "calculator": True}, {"top_k": 5, "temperature": 0.0}, {"top_p": 0.5},
        {"min_p": 0.5}, {"soft_prompt": False, "question_in_prompt": False},
    ],
)  # fmt: skip
def test_refused_before_any_work(model: MergedModel, options: dict[str, Any]) -> None:
    for call in (model.generate, lambda question, **given: model.generate_batch([question], **given)):
        with pytest.raises(InputError):
            call("hola", **options)


def test_unknown_options_are_a_type_error(model: MergedModel) -> None:
    with pytest.raises(TypeError, match="nonsense"):
        model.generate("hola", nonsense=1)  # type: ignore[call-arg]


# --------------------------------------------------------------------------------------------------------- stop


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("####", "<<48/2=24>>"),
        ("<", ""),
        ("7", "<<48/2=24>>#### "),
        ("=2", "<<48/2"),  # begins in a drawn token, ends in a forced one
        (["absent", "##### ", "# 8"], ARITHMETIC),  # held back again and again, never complete
        (["4>>", "24"], "<<48/2="),  # the first in the text, not in the list
        ([], ARITHMETIC),
    ],
)
def test_stop(arithmetic: MergedModel, stop: Any, text: str) -> None:
    result = both_ways(arithmetic, "hola", stop=stop)
    assert result.text == text and result.finish_reason == "stop"
    assert (result.stop_id is None) == (text != ARITHMETIC)


def test_limit_shows_what_was_held_back(arithmetic: MergedModel) -> None:
    result = both_ways(arithmetic, "hola", stop="<<48/2=24>>#### 8", max_new_tokens=9)
    assert result.finish_reason == "length" and result.text == "<<48/2=24>>"


def test_stop_across_the_bytes_of_a_character(tmp_path: Path) -> None:
    """The text that is looked through is whole characters, however tokens cut them."""
    llm = LLM(tiny.random_llm(tmp_path / "t.gguf"), context=64, threads=1)
    with llm:
        transcript = Transcript(llm, {tiny.STOP}, 50, calculator=False, stop=["😀b"])
        shown = [transcript.take(token) for token in llm.tokenise("a😀c😀b!")[:-1]]
        assert "".join(shown) == "a😀c" == transcript.text and transcript.finish == "stop"


@settings(max_examples=200, deadline=None)
@given(st.text("ab😀", max_size=12), st.lists(st.text("ab😀", min_size=1, max_size=4), max_size=3), st.integers(1, 60))
def test_stop_is_as_if_looked_for_in_the_whole(text: str, stop: list[str], limit: int) -> None:
    llm = _shared()
    tokens = llm.tokenise(text) if text else []
    transcript = Transcript(llm, {tiny.STOP}, limit, calculator=False, stop=stop)
    shown = ""
    for token in [*tokens, tiny.STOP]:
        if transcript.finish is not None:
            break
        shown += transcript.take(token)
    assert shown == transcript.text
    whole = llm.detokenise(tokens[:limit]).decode("utf-8", "replace")
    cuts = [place for each in stop if (place := whole.find(each)) >= 0]
    if cuts:
        # found at once, and so before an earlier but longer one that was not yet complete could be
        assert transcript.finish == "stop" and whole.startswith(shown)
        assert not any(each in shown for each in stop) and len(shown) in cuts
    else:
        assert shown == whole


_kept: list[LLM] = []


def _shared() -> LLM:
    if not _kept:
        import tempfile

        _kept.append(LLM(tiny.random_llm(Path(tempfile.mkdtemp()) / "t.gguf"), context=64, threads=1))
    return _kept[0]


# ------------------------------------------------------------------------------------------------------- timeout


def test_timeout_ends_an_answer(tmp_path: Path) -> None:
    endless = tiny.bundle(tmp_path / "b", recipe=tiny.Recipe(stop_ids=()))
    with mindmerger.load(endless, threads=1, context=8192) as model:
        result = model.answer("hola", max_new_tokens=8000, timeout=0.1)
        assert result.finish_reason == "timeout" and 0 < len(result.token_ids) < 8000
        found = list(model.generate_batch(["uno", "dos"], max_new_tokens=8000, timeout=0.1))
        assert [item.generation and item.generation.finish_reason for item in found] == ["timeout"] * 2
        # the next answer is not hit by the clock of the last
        result = model.answer("hola", max_new_tokens=20, timeout=60)
        assert result.finish_reason == "length"
        assert model.answer("hola", max_new_tokens=20).finish_reason == "length"


def test_timeout_stops_native_code(smollm2: Path) -> None:
    with LLM(smollm2, context=1024, threads=1) as llm:
        began = time.perf_counter()
        with pytest.raises(Cancelled), Deadline(0.05, llm.cancel) as deadline:
            for _ in range(200):
                llm.clear()
                llm.decode_tokens(list(range(100, 600)))
        assert deadline.expired and time.perf_counter() - began < 20.0  # 200 prefills would take minutes


def test_a_deadline_that_is_over_stops_nobody() -> None:
    stopped = threading.Event()
    for _ in range(50):
        with Deadline(0.002, stopped.set) as deadline:
            time.sleep(random.uniform(0.001, 0.003))
        if not deadline.expired:
            stopped.clear()
            time.sleep(0.003)
            assert not stopped.is_set()
        stopped.clear()
    with Deadline(None, stopped.set) as deadline:
        pass
    assert not deadline.expired


def test_a_timeout_holds_where_its_thread_sleeps(arithmetic: MergedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short answer was over before the other thread woke, on a busy machine, and then said `stop`."""
    monkeypatch.setattr(threading.Timer, "start", lambda self: None)
    monkeypatch.setattr(threading.Timer, "cancel", lambda self: None)
    for timeout, reason in ((None, "stop"), (30.0, "stop"), (1e-6, "timeout")):
        stream = arithmetic.generate("x", timeout=timeout)
        "".join(stream)
        assert stream.result.finish_reason == reason


# ----------------------------------------------------------------------------------------- grammar and penalties


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 4, "top_p": 0.9}, {"repeat_penalty": 1.3}])
def test_grammar(model: MergedModel, options: dict[str, Any]) -> None:
    result = both_ways(model, "hola", grammar='root ::= "yes: " [0-9] [0-9]* "!"', **options)
    if result.finish_reason == "stop":
        assert result.text.startswith("yes: ") and result.text.endswith("!") and result.text[5:-1].isdigit()
    else:
        assert result.text.startswith("yes: ") and result.text[5:].rstrip("!").isdigit()
    result = both_ways(model, "hola", grammar='root ::= "ñ" | "😀"', **options)
    assert result.text in ("ñ", "😀") and result.finish_reason == "stop" and result.answer is None
    assert result.forced_tokens == 0


def test_grammar_of_a_bundle_with_other_stops(tmp_path: Path) -> None:
    """The token that ends a grammar is the GGUF's, whatever the bundle stops at."""
    with mindmerger.load(tiny.bundle(tmp_path / "b", recipe=tiny.Recipe(stop_ids=(0,))), threads=1) as model:
        result = both_ways(model, "hola", grammar='root ::= "ab"')
        assert result.text == "ab" and result.stop_id in model.llm.end_ids


@pytest.mark.parametrize("grammar", ['foo ::= "a"', "root ::= missing", "nonsense", 'root ::= root "a" | "b"'])
def test_grammar_that_does_not_parse(model: MergedModel, grammar: str) -> None:
    with pytest.raises(InputError, match="grammar"):
        model.generate("hola", grammar=grammar)
    with pytest.raises(InputError, match="grammar"):
        model.generate_batch(["hola"], grammar=grammar)
    assert model.answer("hola").text


def test_grammar_that_leads_nowhere(model: MergedModel) -> None:
    """llama.cpp would end the process."""
    for grammar in ('root ::= "a" [z-a]', "root ::= [z-a]"):
        with pytest.raises(InputError, match="no further token"):
            model.answer("hola", grammar=grammar)
        found = list(model.generate_batch(["uno", "", "dos"], grammar=grammar))
        assert len(found) == 3 and all(isinstance(item.error, InputError) for item in found)
    assert model.answer("hola").text


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.sampled_from(['"a"', '"Ω"', "[0-9]", "[^a]", ".", "root", "x", '""', "[z-a]"]),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(" ".join),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: "(" + " | ".join(parts) + ")"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}"])).map(
                lambda pair: f"({pair[0]}){pair[1]}"
            ),
        ),
        max_leaves=8,
    )
)
def test_no_grammar_ends_the_process(rule: str) -> None:
    llm = _shared()
    try:
        with llm.sampler(Sampling(temperature=1.0, seed=1, grammar=f'root ::= {rule}\nx ::= "y"')) as sampler:
            llm.clear()
            llm.decode_tokens([tiny.BOS])
            for _ in range(12):
                token = llm.sample(sampler)
                if token in llm.end_ids:
                    break
                llm.step(token)
    except MindMergerError:
        pass


def test_repeat_penalty(model: MergedModel) -> None:
    plain = both_ways(model, "hola", max_new_tokens=60)
    strong = both_ways(model, "hola", max_new_tokens=60, repeat_penalty=10.0)
    repeated = [len(found.token_ids) - len(set(found.token_ids)) for found in (plain, strong)]
    assert repeated[0] > 5 > repeated[1]
    assert both_ways(model, "hola", max_new_tokens=60, repeat_penalty=1.0).token_ids == plain.token_ids
