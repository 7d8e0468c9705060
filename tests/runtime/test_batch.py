"""Many questions at once: the same answers as one after another, and nothing lost when something goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mindmerger
from mindmerger.batch import BatchItem
from mindmerger.errors import BundleError, InputError, ModelError
from mindmerger.llama import LLM, Cancelled
from mindmerger.model import MergedModel
from mindmerger.sampling import Sampling
from mindmerger.sequences import Sequences
from tests import tiny

# of 1 to 40 bytes, not in order of length
QUESTIONS = [("¿Cuánto es " + "9+7 " * (5 * i % 8))[: 1 + (11 * i) % 40] for i in range(24)]


@pytest.fixture
def model(random_bundle: Path) -> Iterator[MergedModel]:
    with mindmerger.load(random_bundle, threads=1) as model:
        yield model


def by_index(items: Iterator[BatchItem]) -> list[BatchItem]:
    return sorted(items, key=lambda item: item.index)


@pytest.mark.parametrize("slots", [1, 3, 16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"soft_prompt": False},
        {"question_in_prompt": False},
        {"max_new_tokens": 1},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "seed": 3},
    ],
)
def test_answers_are_those_of_one_after_another(model: MergedModel, slots: int, options: dict[str, Any]) -> None:
    found = by_index(model.generate_batch(QUESTIONS, slots=slots, **options))
    assert [item.index for item in found] == list(range(len(QUESTIONS)))
    identical = 0
    for question, item in zip(QUESTIONS, found, strict=True):
        alone = model.answer(question, **options)
        batched = item.generation
        assert batched is not None and item.error is None and item.question == question
        for name in ("question", "soft_prompt_rows", "prompt_tokens"):
            assert getattr(batched, name) == getattr(alone, name), name
        assert batched.timings.total_ms >= batched.timings.decode_ms >= 0
        assert batched.timings.first_token_ms and batched.timings.prefill_ms > 0
        identical += all(
            getattr(batched, name) == getattr(alone, name)
            for name in ("text", "answer", "finish_reason", "token_ids", "stop_id", "forced_tokens")
        )
    # the rounding of another batch size may decide a draw between two tokens of almost the same weight
    assert identical >= len(QUESTIONS) - 2


def test_calculator_of_each_slot(arithmetic_bundle: Path) -> None:
    with mindmerger.load(arithmetic_bundle, threads=1) as model:
        found = list(model.generate_batch(QUESTIONS, slots=5))
        assert {item.generation and item.generation.text for item in found} == {"<<48/2=24>>#### 7"}
        assert {item.generation and item.generation.forced_tokens for item in found} == {3}
        found = list(model.generate_batch(QUESTIONS, slots=5, calculator=False))
        assert {item.generation and item.generation.text for item in found} == {"<<48/2=9>>#### 7"}
        # the limit falls into the forced tokens
        for limit in (6, 7, 8):
            (item,) = model.generate_batch(["hola"], max_new_tokens=limit)
            assert item.generation is not None and len(item.generation.token_ids) == limit
            assert item.generation.finish_reason == "length"


def test_a_bad_question_does_not_stop_the_rest(model: MergedModel) -> None:
    questions: list[Any] = ["uno", "", "x" * 100_000, None, "a\0b", "\ud800", "dos"]
    found = by_index(model.generate_batch(questions))
    assert [item.generation is None for item in found] == [False, True, True, True, True, True, False]
    for item in found[1:6]:
        assert isinstance(item.error, InputError)
    assert list(model.generate_batch([])) == []
    assert [item.error is not None for item in model.generate_batch([""])] == [True]


def test_a_damaged_graph_is_an_error_of_each_question(tmp_path: Path) -> None:
    folder = tiny.bundle(tmp_path / "b")
    tiny.merger_graph(folder / "merger.onnx", nan=True)
    files = [tiny.file_info(role, folder / name) for role, name in
             (("merger", "merger.onnx"), ("tokenizer", "tokenizer.json"), ("llm", "llm.gguf"))]  # fmt: skip
    (folder / "manifest.json").write_text(tiny.manifest(files).to_json(), encoding="utf-8")
    with mindmerger.load(folder, threads=1) as model:
        found = list(model.generate_batch(QUESTIONS, slots=4))
        assert len(found) == len(QUESTIONS) and all(isinstance(item.error, BundleError) for item in found)
        assert all(item.generation for item in model.generate_batch(QUESTIONS, slots=4, soft_prompt=False))


def test_questions_that_need_long_slots_get_them(tmp_path: Path) -> None:
    """Beyond the usual length of a slot there is a pass of fewer slots; nothing is lost and indices stay."""
    with mindmerger.load(tiny.bundle(tmp_path / "b"), threads=1, context=4096) as model:
        questions = [f"{i}" for i in range(4)]
        found = by_index(model.generate_batch(questions, slots=4, max_new_tokens=1500, soft_prompt=False))
        alone = [model.answer(question, max_new_tokens=1500, soft_prompt=False) for question in questions]
        assert [item.generation and item.generation.token_ids for item in found] == [each.token_ids for each in alone]


@pytest.mark.parametrize(
    ("questions", "options"),
    [("one text", {}), (["a"], {"slots": 0}), (["a"], {"slots": 100_000}), (["a"], {"slots": True}),
     (["a"], {"temperature": -1}), (["a"], {"max_new_tokens": 0}),
     (["a"], {"soft_prompt": False, "question_in_prompt": False})],
)  # fmt: skip
def test_options_are_refused_before_any_work(model: MergedModel, questions: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        model.generate_batch(questions, **options)


def test_iterator_is_dropped_or_closed(model: MergedModel) -> None:
    items = model.generate_batch(QUESTIONS, slots=4)
    next(items)
    with pytest.raises(InputError, match="still reads"):
        model.answer("hola")
    del items
    assert model.answer("hola").text
    model.generate_batch(QUESTIONS)  # never begun: never took the model
    items = model.generate_batch(["", *QUESTIONS])
    assert next(items).error  # while still planning
    items.close()  # type: ignore[attr-defined]
    assert model.answer("hola").text
    # left by an exception, the context manager closes it
    items = model.generate_batch(QUESTIONS, slots=4)
    next(items)
    model.close()
    assert list(items) == []
    with pytest.raises(ModelError, match="closed"):
        list(model.generate_batch(QUESTIONS))


def test_cancel_ends_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = tiny.bundle(tmp_path / "b", recipe=tiny.Recipe(stop_ids=()))
    with mindmerger.load(endless, threads=1, context=4096) as model:
        drawn = []
        piece = model.llm.piece

        def cancel_at_the_hundredth(token: int) -> bytes:
            drawn.append(token)
            if len(drawn) == 100:
                thread = threading.Thread(target=model.cancel)
                thread.start()
                thread.join()
            return piece(token)

        monkeypatch.setattr(model.llm, "piece", cancel_at_the_hundredth)
        found = list(model.generate_batch(["", *QUESTIONS], slots=4, max_new_tokens=900))
        assert 100 <= len(drawn) < 104  # the step in which it came is finished
        assert found[0].error
        assert [item.generation and item.generation.finish_reason for item in found[1:]] == ["cancelled"] * 4
        assert all(item.generation and 20 < len(item.generation.token_ids) < 40 for item in found[1:])
        assert model.answer("hola").finish_reason != "cancelled"
        assert len(list(model.generate_batch(QUESTIONS, slots=4))) == len(QUESTIONS)


def test_cancel_stops_prefill_and_steps_of_the_real_llm(smollm2: Path) -> None:
    with LLM(smollm2, context=64, threads=1) as llm, Sequences(llm, 4, 512) as sequences:
        prompt = list(range(100, 500))

        def prefill() -> None:
            for sequence in range(4):
                sequences.clear(sequence)
                sequences.append_tokens(sequence, prompt, False)

        def steps() -> None:
            for sequence in range(4):
                sequences.clear(sequence)
            for _ in range(500):
                sequences.step([(sequence, 100, False) for sequence in range(4)])

        for work in (prefill, steps):
            timer = threading.Timer(0.05, llm.cancel)
            began = time.perf_counter()
            timer.start()
            with pytest.raises(Cancelled):
                for _ in range(200):
                    work()
            assert time.perf_counter() - began < 20.0  # 200 times would take many minutes
            llm.resume()
        # and the sequences can be used again
        assert sequences.positions == [0] * 4
        sequences.step([(0, 100, True)])
        assert np.isfinite(sequences.logits(0)).all()


# ------------------------------------------------------------------------------------------------- the sequences


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    with LLM(tiny.random_llm(tmp_path / "tiny.gguf"), context=128, threads=1, batch=32) as llm:
        yield llm


def test_sequences_do_not_see_each_other(llm: LLM) -> None:
    prompts = [[5, 6, 7], [200, 100, 50, 60, 70], [9]]
    rows = np.random.default_rng(0).standard_normal((4, tiny.WIDTH)).astype(np.float32) * np.float32(0.3)
    alone = []
    for prompt in prompts:
        llm.clear()
        llm.decode_tokens([tiny.BOS], logits=False)
        llm.decode_rows(rows)
        llm.decode_tokens(prompt)
        llm.step(42)
        alone.append(llm.logits())
    with Sequences(llm, 3, 64) as sequences:
        for _ in range(2):  # the second time where others have been
            sequences.step([(i, tiny.BOS, False) for i in range(3)])
            for i, prompt in enumerate(prompts):
                sequences.append_rows(i, rows, False)
                index = sequences.append_tokens(i, prompt, True)
                with llm.sampler(Sampling()) as sampler:
                    assert sequences.sample(sampler, index) == int(sequences.logits(index).argmax())
            sequences.step([(2, 42, True), (0, 42, True), (1, 42, True)])
            for entry, i in enumerate((2, 0, 1)):
                np.testing.assert_allclose(sequences.logits(entry), alone[i], atol=2e-5)
            for i in range(3):
                sequences.clear(i)
            assert sequences.positions == [0, 0, 0]


def test_sequences_have_the_bits_of_one_alone_on_the_real_llm(smollm2: Path) -> None:
    """Beside others of other lengths, one of them beyond 256 positions, a sequence has the logits that it has alone."""
    lengths = [20, 51, 258]
    with LLM(smollm2, context=512, threads=1) as llm, Sequences(llm, 3, 300) as sequences:
        prompts = [[1, *range(500 * (i + 1), 500 * (i + 1) + length)] for i, length in enumerate(lengths)]
        rows = [llm.embeddings.rows(prompt) for prompt in prompts]
        indices = [sequences.append_rows(i, each, True) for i, each in enumerate(rows)]
        last = sequences.logits(indices[-1])
        found = []
        for token in (700, 800):
            sequences.step([(i, token, True) for i in range(3)])
            found.append([sequences.logits(i) for i in range(3)])
        for i, prompt in enumerate(prompts):
            llm.clear()
            llm.decode_tokens(prompt)
            if i == 2:
                assert np.array_equal(llm.logits(), last)
            for step, token in enumerate((700, 800)):
                llm.step(token)
                assert np.array_equal(llm.logits(), found[step][i])


def test_a_sequence_is_moved_to_the_bit_and_leaves_nothing(llm: LLM) -> None:
    with Sequences(llm, 4, 64) as sequences:
        for i, prompt in enumerate(([5, 6, 7], [9], [8] * 9, [200, 100, 50, 60])):
            sequences.append_tokens(i, prompt, False)
        sequences.step([(2, 1, False), (3, 42, True)])
        expected = sequences.logits(1)
        sequences.clear(3)
        sequences.append_tokens(3, [200, 100, 50, 60], False)
        sequences.move(3, 1)
        sequences.move(2, 2)
        assert sequences.positions == [3, 4, 10, 0]
        sequences.append_tokens(3, [77], False)  # nothing of what was there
        sequences.step([(0, 1, False), (1, 42, True)])
        assert np.array_equal(sequences.logits(1), expected)
        assert sequences.positions == [4, 5, 10, 1]
        for source, target in ((0, 4), (-1, 0)):
            with pytest.raises(InputError):
                sequences.move(source, target)


def test_every_step_is_of_the_first_sequences_in_their_order(
    model: MergedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    step = Sequences.step

    def seen(self: Sequences, entries: Any) -> None:
        steps.append([sequence for sequence, _token, _wanted in entries])
        step(self, entries)

    monkeypatch.setattr(Sequences, "step", seen)
    assert len(list(model.generate_batch(QUESTIONS, slots=5))) == len(QUESTIONS)
    assert max(map(len, steps)) == 5 and len({len(one) for one in steps}) > 1
    assert all(one == list(range(len(one))) for one in steps)


def test_nothing_wrong_reaches_native_code(llm: LLM) -> None:
    for count, length in ((0, 10), (100_000, 10), (2, 0)):
        with pytest.raises(InputError):
            Sequences(llm, count, length)
    with Sequences(llm, 2, 16) as sequences:
        for entries in ([], [(0, 1, True), (0, 2, True)], [(2, 1, True)], [(-1, 1, True)], [(0, -1, True)],
                        [(0, 10**6, True)]):  # fmt: skip
            with pytest.raises(InputError):
                sequences.step(entries)
        for ids in ([], [-1], [10**6], [[1]], [5] * 17):
            with pytest.raises(InputError):
                sequences.append_tokens(0, ids, True)  # type: ignore[arg-type]
        for rows in (np.zeros((2, 63), np.float32), np.zeros(64, np.float32), np.full((1, 64), np.nan, np.float32)):
            with pytest.raises(ModelError):
                sequences.append_rows(0, rows, True)
        sequences.append_tokens(0, [5] * 16, False)
        with pytest.raises(InputError, match="do not fit"):
            sequences.step([(0, 5, True)])
        assert sequences.positions == [16, 0]
        sequences.step([(1, 5, False)])
    with pytest.raises(ModelError, match="closed"):
        sequences.step([(0, 5, True)])
