"""The low-level runtime: rows against tokens, and that nothing wrong reaches native code."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindmerger.blocks import dequantise
from mindmerger.errors import InputError, ModelError
from mindmerger.gguf_file import read_gguf
from mindmerger.llama import LLM, Cancelled
from mindmerger.sampling import Sampling
from tests import tiny


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    with LLM(tiny.random_llm(tmp_path / "tiny.gguf"), context=128, threads=1, batch=32) as llm:
        yield llm


def embedding_rows(path: Path, ids: list[int]) -> np.ndarray:
    tensor = next(tensor for tensor in read_gguf(path).tensors if tensor.name == "token_embd.weight")
    stride = tensor.data.size // tensor.shape[0]
    return np.stack([dequantise(tensor.data[i * stride : (i + 1) * stride], tensor.type) for i in ids])


@pytest.mark.parametrize("quantised", [None, "q8_0", "q4_1"])
@pytest.mark.parametrize("count", [1, 2, 7, 32, 50])
def test_rows_equal_tokens_bit_for_bit(tmp_path: Path, quantised: str | None, count: int) -> None:
    path = tiny.random_llm(tmp_path / "t.gguf", quantised=quantised)
    ids = [(7 * i + 3) % 256 + 3 for i in range(count)]
    with LLM(path, context=128, threads=1, batch=32) as llm:
        llm.decode_tokens([tiny.BOS], logits=False)
        llm.decode_tokens(ids)
        by_tokens = llm.logits()
        llm.clear()
        llm.decode_tokens([tiny.BOS], logits=False)
        llm.decode_rows(embedding_rows(path, ids), logits=True)
        assert np.array_equal(llm.logits(), by_tokens)
        assert llm.position == count + 1


def test_rows_equal_tokens_on_the_real_llm(smollm2: Path) -> None:
    with LLM(smollm2, context=256, threads=2) as llm:
        ids = llm.tokenise("Natalia sold clips to 48 of her friends in April.")
        prompt = llm.tokenise("\nAnswer:\n")
        llm.decode_tokens([1], logits=False)
        llm.decode_tokens(ids, logits=False)
        llm.decode_tokens(prompt)
        by_tokens = llm.logits()
        llm.clear()
        llm.decode_tokens([1], logits=False)
        llm.decode_rows(embedding_rows(smollm2, ids))
        llm.decode_tokens(prompt)
        assert np.array_equal(llm.logits(), by_tokens)
        # and the rows matter: others give other logits
        llm.clear()
        llm.decode_tokens([1], logits=False)
        llm.decode_rows(embedding_rows(smollm2, ids[::-1]))
        llm.decode_tokens(prompt)
        assert not np.array_equal(llm.logits(), by_tokens)
        assert llm.detokenise(ids) == b"Natalia sold clips to 48 of her friends in April."


def test_step_continues_like_decode(llm: LLM) -> None:
    llm.decode_tokens([1, 50, 60])
    llm.step(70)
    stepped = llm.logits()
    llm.clear()
    llm.decode_tokens([1, 50, 60])
    llm.decode_tokens([70])
    assert np.array_equal(llm.logits(), stepped)


@pytest.mark.parametrize("ids", [[-1], [10**6], [2**40], [], [[1, 2]]])
def test_token_ids_are_checked(llm: LLM, ids: list[int]) -> None:
    with pytest.raises(InputError):
        llm.decode_tokens(ids)
    with pytest.raises(InputError):
        llm.step(10**6)
    with pytest.raises(InputError):
        llm.piece(-1)


def test_rows_are_checked(llm: LLM) -> None:
    for bad in (np.zeros((2, 63), np.float32), np.zeros(64, np.float32), np.full((1, 64), np.nan, np.float32),
                np.full((1, 64), np.inf, np.float32)):  # fmt: skip
        with pytest.raises(ModelError):
            llm.decode_rows(bad)
    # other layouts and types are converted, not reinterpreted
    rows = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    llm.decode_rows(rows, logits=True)
    expected = llm.logits()
    llm.clear()
    llm.decode_rows(np.asfortranarray(rows.astype(np.float64)), logits=True)
    assert np.array_equal(llm.logits(), expected)


def test_context_is_never_exceeded(llm: LLM) -> None:
    llm.decode_tokens([5] * 128)
    with pytest.raises(InputError, match="128"):
        llm.step(5)
    with pytest.raises(InputError):
        llm.decode_tokens([5])
    llm.clear()
    with pytest.raises(InputError):
        llm.decode_tokens([5] * 129)
    llm.decode_tokens([5] * 100)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_text_survives_tokens(text: str) -> None:
    llm = _shared()
    assert llm.detokenise(llm.tokenise(text)) == text.encode()


_kept: list[LLM] = []


def _shared() -> LLM:
    if not _kept:
        import tempfile

        _kept.append(LLM(tiny.random_llm(Path(tempfile.mkdtemp()) / "t.gguf"), context=64, threads=1))
    return _kept[0]


def test_special_tokens_in_text_are_text(llm: LLM) -> None:
    ids = llm.tokenise("a<|im_end|>b")
    assert tiny.STOP not in ids
    assert llm.detokenise(ids) == b"a<|im_end|>b"
    assert llm.piece(tiny.STOP) == b""


def test_sampling(llm: LLM) -> None:
    llm.decode_tokens([1, 50, 60])
    with llm.sampler(Sampling()) as greedy:
        assert llm.sample(greedy) == int(llm.logits().argmax())

    # alone it takes a short way, beside a penalty the native chain
    with llm.sampler(Sampling(repeat_penalty=1.5)) as penalised:
        assert llm.sample(penalised) == int(llm.logits().argmax())
    llm.clear()
    llm.decode_tokens([1, 50, 60], logits=False)
    with llm.sampler(Sampling()) as greedy, pytest.raises(ModelError, match="no logits"):
        llm.sample(greedy)
    llm.clear()
    llm.decode_tokens([1, 50, 60])

    def draws(seed: int | None) -> list[int]:
        with llm.sampler(Sampling(temperature=2.0, top_k=50, top_p=0.99, min_p=0.001, seed=seed)) as sampler:
            return [llm.sample(sampler) for _ in range(20)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert len(set(draws(None))) > 1


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"temperature": float("nan")}, {"temperature": "hot"}, {"temperature": True}, {"top_k": -1},
     {"top_k": 1.5}, {"top_p": 1.1}, {"min_p": -0.1}, {"seed": -1}, {"seed": 2**32}],
)  # fmt: skip
def test_sampling_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Sampling(**options)  # type: ignore[arg-type]


def test_files_that_are_no_llm(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing"):
        LLM(tmp_path / "none.gguf", context=64)
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match="cannot load"):
        LLM(path, context=64)


@pytest.mark.parametrize("options", [{"context": 0}, {"context": 64, "threads": 0}, {"context": 64, "threads": 10_000}])
def test_options_are_checked(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(InputError):
        LLM(tiny.random_llm(tmp_path / "t.gguf"), **options)


def test_closed(llm: LLM) -> None:
    llm.close()
    llm.close()
    for call in (llm.clear, llm.logits, lambda: llm.tokenise("a"), lambda: llm.decode_tokens([1]), lambda: llm.step(1)):
        with pytest.raises(ModelError, match="closed"):
            call()


def test_cancel_stops_native_code(smollm2: Path) -> None:
    """A prefill of several hundred tokens is stopped in its middle, from another thread."""
    with LLM(smollm2, context=1024, threads=1) as llm:
        timer = threading.Timer(0.05, llm.cancel)
        began = time.perf_counter()
        timer.start()
        with pytest.raises(Cancelled):
            for _ in range(200):
                llm.clear()
                llm.decode_tokens(list(range(100, 600)))
        assert time.perf_counter() - began < 2.0  # 200 prefills would take minutes
        llm.resume()
        llm.clear()
        llm.decode_tokens([1, 2, 3])


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "2500"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_wait_a_little_unless_the_user_has_said_how(given: dict[str, str], expected: str) -> None:
    """libgomp reads the environment when it is loaded: on Linux it must not be in the process before it is told."""
    program = (
        "import os, sys; from pathlib import Path; maps = Path('/proc/self/maps'); import mindmerger.llama as llama; "
        "early = maps.exists() and 'libgomp' in maps.read_text(); llama.backend(); "
        "print(early, os.environ.get('GOMP_SPINCOUNT'))"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env={**kept, **given}, stdout=subprocess.PIPE, text=True, check=True)
    assert result.stdout.split() == ["False", expected]
