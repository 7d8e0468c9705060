"""A whole tiny bundle: the sequence that the LLM sees, the calculator, streams, threads, refusals."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mindmerger
from mindmerger.errors import BundleError, InputError, ModelError
from mindmerger.options import SourceKeywords
from mindmerger.sampling import Sampling
from tests import tiny

QUESTION = "¿Cuánto es 15 + 27?"


def test_generates(arithmetic_bundle: Path) -> None:
    with mindmerger.load(arithmetic_bundle, threads=1) as model:
        stream = model.generate(QUESTION)
        chunks = list(stream)
        result = stream.result
    assert "".join(chunks) == result.text == "<<48/2=24>>#### 7"
    assert chunks[5] == "=24>>"  # the forced digits come with the token that asked for them
    assert result.answer == "7"
    assert result.finish_reason == "stop" and result.stop_id == tiny.STOP
    assert result.forced_tokens == 3
    assert result.soft_prompt_rows == len(QUESTION.encode()) + 3  # start, end, boundary
    assert result.question == QUESTION
    assert result.timings.tokens_per_second and result.timings.first_token_ms
    assert result.timings.total_ms >= result.timings.decode_ms >= 0


def test_calculator_can_be_switched_off(arithmetic_bundle: Path) -> None:
    with mindmerger.load(arithmetic_bundle, threads=1) as model:
        assert model.answer(QUESTION, calculator=False).text == "<<48/2=9>>#### 7"
        ids = model.continuation_ids(QUESTION, 100)
        assert ids[-1] == tiny.STOP and len(ids) == 12
        assert model.continuation_ids(QUESTION, 3) == ids[:3]


@pytest.mark.parametrize("limit", range(1, 14))
def test_limit_counts_forced_tokens(arithmetic_bundle: Path, limit: int) -> None:
    with mindmerger.load(arithmetic_bundle, threads=1) as model:
        result = model.answer(QUESTION, max_new_tokens=limit)
    assert len(result.token_ids) == min(limit, 12)
    assert result.finish_reason == ("stop" if limit > 12 else "length")
    assert "<<48/2=24>>#### 7".startswith(result.text)


def test_sequence_is_bos_rows_prompt(random_bundle: Path) -> None:
    """BOS, rows and prompt in calls of their own give the same logits and the same greedy tokens: one call changes no bit."""
    with mindmerger.load(random_bundle, threads=1) as model:
        logits = model.prefill(QUESTION)
        ids = model.continuation_ids(QUESTION, 20)
        rows, prompt = model.soft_prompt_rows(QUESTION), model.prompt_ids(QUESTION)
        llm = model.llm
        llm.clear()
        llm.decode_tokens([tiny.BOS], logits=False)
        llm.decode_rows(rows)
        llm.decode_tokens(prompt)
        assert np.array_equal(llm.logits(), logits)
        with llm.sampler(Sampling()) as sampler:
            for wanted in ids:
                assert llm.sample(sampler) == wanted
                llm.step(wanted)
        assert llm.detokenise(prompt).decode() == f"Question: {QUESTION}\nAnswer:\n"
        # the LLM alone: no rows
        llm.clear()
        llm.decode_tokens([tiny.BOS], logits=False)
        llm.decode_tokens(prompt)
        assert np.array_equal(llm.logits(), model.prefill(QUESTION, soft_prompt=False))
        # the soft prompt alone: no prompt
        llm.clear()
        llm.decode_tokens([tiny.BOS], logits=False)
        llm.decode_rows(rows, logits=True)
        assert np.array_equal(llm.logits(), model.prefill(QUESTION, question_in_prompt=False))


@pytest.mark.parametrize(
    "recipe",
    [tiny.Recipe(injection_scale=8.0), tiny.Recipe(bos_id=None), tiny.Recipe(method="langbridge"),
     tiny.Recipe(template="{question}")],
)  # fmt: skip
def test_manifest_shapes_the_sequence(tmp_path: Path, recipe: tiny.Recipe) -> None:
    with mindmerger.load(tiny.bundle(tmp_path / "b", recipe=recipe), threads=1) as model:
        logits = model.prefill("hola")
        llm = model.llm
        ids = [] if recipe.bos_id is None else [recipe.bos_id]
        parts = [llm.embeddings.rows(ids), model.soft_prompt_rows("hola")]
        if recipe.method != "langbridge":
            parts.append(llm.embeddings.rows(llm.tokenise(recipe.template.replace("{question}", "hola"))))
        llm.clear()
        llm.decode_rows(np.concatenate(parts) * np.float32(recipe.injection_scale), logits=True)
        assert np.array_equal(llm.logits(), logits)


@pytest.mark.parametrize(
    ("options", "apart_calls"),
    [({}, 3), ({"soft_prompt": False}, 1), ({"question_in_prompt": False}, 2), ({"llm_weight": 0.5}, 2)],
)
def test_everything_before_the_answer_is_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: SourceKeywords, apart_calls: int
) -> None:
    """One llama_decode; and where the LLM's embeddings cannot be read to the bit, tokens and rows in turn, to the same bits."""
    sizes: list[int] = []
    with mindmerger.load(tiny.bundle(tmp_path / "b"), threads=1) as model:
        decode = model.llm._decode

        def count(batch: Any, size: int) -> None:
            sizes.append(size)
            decode(batch, size)

        monkeypatch.setattr(model.llm, "_decode", count)
        together = model.prefill("hola", **options)
        assert len(sizes) == 1
        monkeypatch.setattr(model.llm.embeddings, "exact", False)
        apart = model.prefill("hola", **options)
        assert np.array_equal(apart, together)
        assert sum(sizes[1:]) == sizes[0] and len(sizes) == 1 + apart_calls
        # in a batch too
        found = [item.generation for item in model.generate_batch(["hola", "adiós"], max_new_tokens=8, **options)]
        monkeypatch.setattr(model.llm.embeddings, "exact", True)
        alone = {text: model.answer(text, max_new_tokens=8, **options).token_ids for text in ("hola", "adiós")}
        assert {each.question: each.token_ids for each in found if each} == alone


def test_chunks_are_whole_characters(tmp_path: Path) -> None:
    """A script that says the four bytes of an emoji, one token each."""
    emoji = "😀".encode()
    names = [tiny.byte_characters()[byte] for byte in emoji]
    folder = tiny.bundle(tmp_path / "b")
    script = {"\n": names[0], names[0]: names[1], names[1]: names[2], names[2]: names[3]}
    tiny.scripted_llm(folder / "llm.gguf", dict(script))
    files = [tiny.file_info(role, folder / name) for role, name in
             (("merger", "merger.onnx"), ("tokenizer", "tokenizer.json"), ("llm", "llm.gguf"))]  # fmt: skip
    (folder / "manifest.json").write_text(tiny.manifest(files).to_json(), encoding="utf-8")
    with mindmerger.load(folder, threads=1) as model:
        assert list(model.generate("hola")) == ["😀"]
        # cut in the middle: a replacement character at the end, not an error
        assert list(model.generate("hola", max_new_tokens=3)) == ["�"]


def test_sampling_repeats_with_a_seed(random_bundle: Path) -> None:
    with mindmerger.load(random_bundle, threads=1) as model:
        one = model.answer("hola", temperature=1.0, seed=3)
        assert model.answer("hola", temperature=1.0, seed=3).token_ids == one.token_ids
        assert model.answer("hola", temperature=1.0, seed=4).token_ids != one.token_ids


def test_stream_is_closed_early(random_bundle: Path) -> None:
    with mindmerger.load(random_bundle, threads=1) as model:
        stream = model.generate("hola")
        first = next(stream)
        with pytest.raises(InputError, match="not finished"):
            _ = stream.result
        with pytest.raises(InputError, match="still reads"):
            model.answer("hola")
        stream.close()
        assert stream.result.finish_reason == "cancelled"
        assert stream.result.text == first
        assert list(stream) == []
        # a stream that is dropped frees the model too, and one that never began never took it
        half = model.generate("hola")
        next(half)
        del half
        model.generate("hola")
        assert model.answer("hola").text


def test_cancel_from_another_thread(random_bundle: Path) -> None:
    with mindmerger.load(random_bundle, threads=1) as model:
        stream = model.generate("hola", max_new_tokens=200)
        next(stream)
        thread = threading.Thread(target=model.cancel)
        thread.start()
        thread.join()
        rest = list(stream)
        assert stream.result.finish_reason == "cancelled" and len(rest) < 5
        assert model.answer("hola").finish_reason != "cancelled"


def test_threads_get_the_same_answers(random_bundle: Path) -> None:
    questions = [f"pregunta {i}" for i in range(50)]
    with mindmerger.load(random_bundle, threads=1) as model:
        alone = [model.answer(question, max_new_tokens=12).token_ids for question in questions]
        found: dict[tuple[int, int], tuple[int, ...]] = {}

        def work(worker: int) -> None:
            order = list(range(50))
            random.Random(worker).shuffle(order)
            if worker == 0:  # a batch among them, which takes the model for longer
                for item in model.generate_batch([questions[i] for i in order], slots=4, max_new_tokens=12):
                    assert item.generation is not None
                    found[worker, order[item.index]] = item.generation.token_ids
                return
            for i in order:
                found[worker, i] = model.answer(questions[i], max_new_tokens=12).token_ids

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 400
    assert all(ids == alone[i] for (worker, i), ids in found.items() if worker)
    # in a batch, rounding decides where two tokens are almost equally likely
    assert sum(found[0, i] == alone[i] for i in range(50)) >= 48


def test_close_stops_a_running_answer(random_bundle: Path) -> None:
    model = mindmerger.load(random_bundle, threads=1)
    began = threading.Event()
    results = []

    def read() -> None:
        stream = model.generate("hola", max_new_tokens=200)
        for _ in stream:
            began.set()
            time.sleep(0.005)
        results.append(stream.result)

    thread = threading.Thread(target=read)
    thread.start()
    began.wait(5)
    model.close()
    model.close()
    thread.join(5)
    assert results and results[0].finish_reason == "cancelled"
    for call in (lambda: model.answer("hola"), lambda: model.prefill("hola")):
        with pytest.raises(ModelError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"max_new_tokens": 100_000}, "context of 256"),
        ({"temperature": -1}, "temperature"),
        ({"seed": 1.5}, "seed"),
        ({"soft_prompt": False, "question_in_prompt": False}, "no question left"),
    ],
)
def test_options_are_refused_before_any_work(random_bundle: Path, options: dict[str, object], words: str) -> None:
    with mindmerger.load(random_bundle, threads=1) as model, pytest.raises(InputError, match=words):
        model.generate("hola", **options)  # type: ignore[arg-type]


def test_context_overflow_names_the_numbers(random_bundle: Path) -> None:
    with mindmerger.load(random_bundle, threads=1, context=32) as model:
        with pytest.raises(InputError, match=r"takes \d+ positions \(23 of the soft prompt.*context of 32"):
            model.generate("una pregunta muy lar")
        # without max_new_tokens the answer gets the room that is left
        result = model.answer("h", question_in_prompt=False)
        assert result.finish_reason == "length" and len(result.token_ids) == 32 - 5


@pytest.mark.parametrize("options", [{"context": 0}, {"context": "many"}, {"threads": 0}, {"threads": 2.5}])
def test_load_options(random_bundle: Path, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        mindmerger.load(random_bundle, **options)  # type: ignore[arg-type]


def test_bundle_for_another_llm(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="width"):
        mindmerger.load(tiny.bundle(tmp_path / "b", recipe=tiny.Recipe(width=32)))


def test_baked_bundle(tmp_path: Path) -> None:
    with mindmerger.load(tiny.bundle(tmp_path / "b", llm="bake"), threads=1) as model:
        assert model.answer("hola").token_ids


def test_public_names() -> None:
    assert len(mindmerger.__all__) <= 12
    assert all(getattr(mindmerger, name) is not None for name in mindmerger.__all__)
    assert mindmerger.__version__
    with pytest.raises(AttributeError):
        _ = mindmerger.nonsense
