"""The encoder's side: what a user types, token ids, rows."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from mindmerger.errors import BundleError, InputError
from mindmerger.graph import MergerGraph
from mindmerger.tokenizer import QuestionTokenizer, check_question
from tests import tiny


def graph(path: Path) -> MergerGraph:
    return MergerGraph(path, width=tiny.WIDTH, vocabulary=tiny.ENCODER_VOCABULARY, threads=1)


def test_rows(tmp_path: Path) -> None:
    merger = graph(tiny.merger_graph(tmp_path / "m.onnx"))
    rows = merger.rows([0, 5, 9, 1])
    assert rows.shape == (5, tiny.WIDTH) and rows.dtype == np.float32
    assert np.array_equal(rows[:2], merger.rows([0, 5])[:2])
    assert np.array_equal(rows[-1], merger.rows([3])[-1])  # the boundary row


@pytest.mark.parametrize("ids", [[], [-1], [tiny.ENCODER_VOCABULARY]])
def test_ids_out_of_range(tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(InputError):
        graph(tiny.merger_graph(tmp_path / "m.onnx")).rows(ids)


def test_damaged_graphs(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not finite"):
        graph(tiny.merger_graph(tmp_path / "nan.onnx", nan=True)).rows([1])
    with pytest.raises(BundleError, match="another LLM"):
        graph(tiny.merger_graph(tmp_path / "wide.onnx", width=32))
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    with pytest.raises(BundleError, match="ONNX Runtime"):
        graph(tmp_path / "garbage.onnx")
    whole = tiny.merger_graph(tmp_path / "whole.onnx").read_bytes()
    for size in range(0, len(whole), len(whole) // 7):
        (tmp_path / "cut.onnx").write_bytes(whole[:size])
        with pytest.raises(BundleError):
            graph(tmp_path / "cut.onnx").rows([1])


@pytest.fixture
def tokenizer(tmp_path: Path) -> QuestionTokenizer:
    return QuestionTokenizer(tiny.tokenizer(tmp_path / "t.json"), tiny.ENCODER_MAX_TOKENS, tiny.ENCODER_VOCABULARY)


def test_encode_adds_the_special_tokens(tokenizer: QuestionTokenizer) -> None:
    ids = tokenizer.encode("ab")
    assert ids[0] == 0 and ids[-1] == 1 and len(ids) == 4


def test_too_long_is_refused_with_the_numbers_and_at_once(tokenizer: QuestionTokenizer) -> None:
    with pytest.raises(InputError, match=r"72 tokens.*64"):
        tokenizer.encode("x" * 70)
    began = time.perf_counter()
    with pytest.raises(InputError, match="100000 characters"):
        tokenizer.encode("x" * 100_000)
    assert time.perf_counter() - began < 0.1


@pytest.mark.parametrize("question", [None, 3, b"bytes", "", " \n\t ", "a\ud800b", "a\0b", "\u3000"])
def test_not_a_question(question: object) -> None:
    with pytest.raises(InputError):
        check_question(question)


def test_question_is_stripped() -> None:
    assert check_question("  hola \n") == "hola"


def test_tokenizer_file(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(BundleError, match="not a tokenizer"):
        QuestionTokenizer(tmp_path / "t.json", 8, 8)
    small = QuestionTokenizer(tiny.tokenizer(tmp_path / "u.json"), 64, 10)
    with pytest.raises(BundleError, match="encoder has 10"):
        small.encode("zzz")
