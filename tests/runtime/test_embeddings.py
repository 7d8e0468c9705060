"""Rows of the embedding table: those of the whole table dequantised, and those that llama.cpp looks up itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindmerger.embeddings import EmbeddingTable
from mindmerger.errors import BundleError, InputError
from mindmerger.gguf_file import read_gguf
from mindmerger.llama import LLM
from tests import tiny

COUNT = len(tiny.vocabulary())


@pytest.mark.parametrize("quantised", [None, "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_rows_are_those_of_the_whole_table(tmp_path: Path, quantised: str | None) -> None:
    path = tiny.random_llm(tmp_path / "t.gguf", quantised=quantised)
    whole = next(tensor for tensor in read_gguf(path).tensors if tensor.name == "token_embd.weight").values()
    table = EmbeddingTable(path)
    assert (table.vocabulary, table.width) == whole.shape == (COUNT, tiny.WIDTH)
    for ids in ([0], [COUNT - 1], [5, 5, 5], list(range(COUNT)), list(range(COUNT))[::-7]):
        rows = table.rows(ids)
        assert rows.dtype == np.float32 and np.array_equal(rows, whole[ids])
    # against the numbers that were written, without any reader
    written = np.random.default_rng(0).standard_normal((COUNT, tiny.WIDTH)).astype(np.float32) * np.float32(0.3)
    error = np.abs(table.rows(range(COUNT)) - written).max()
    assert error <= {None: 0, "f16": 1e-3, "bf16": 1e-2, "q8_0": 1e-2}.get(quantised, 0.15)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, COUNT + 3), max_size=20))
def test_any_ids(ids: list[int]) -> None:
    table = _shared()
    if all(0 <= i < COUNT for i in ids):
        assert table.rows(ids).shape == (len(ids), tiny.WIDTH)
    else:
        with pytest.raises(InputError):
            table.rows(ids)


_kept: list[EmbeddingTable] = []


def _shared() -> EmbeddingTable:
    if not _kept:
        import tempfile

        _kept.append(EmbeddingTable(tiny.random_llm(Path(tempfile.mkdtemp()) / "t.gguf", quantised="q4_1")))
    return _kept[0]


def test_rows_of_the_real_llm_give_the_logits_of_its_tokens(smollm2: Path) -> None:
    """llama.cpp's own look-up is the truth: the same logits to the bit."""
    table = EmbeddingTable(smollm2)
    with LLM(smollm2, context=64, threads=1) as llm:
        ids = llm.tokenise("Ana has 15 apples.")
        llm.decode_tokens(ids)
        wanted = llm.logits()
        llm.clear()
        llm.decode_rows(table.rows(ids), logits=True)
        assert np.array_equal(llm.logits(), wanted)


def test_only_the_rows_asked_for_are_read(smollm2: Path) -> None:
    table = EmbeddingTable(smollm2)
    mapped = table._rows
    while mapped.base is not None and isinstance(mapped.base, np.ndarray):
        mapped = mapped.base
    assert not mapped.flags.owndata and not mapped.flags.writeable
    assert table.rows([1, 2]).nbytes == 2 * table.width * 4


def test_files_without_a_table(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="embeddings"):
        EmbeddingTable(tiny.adapter(tmp_path / "a.gguf"))
    (tmp_path / "b.gguf").write_bytes(b"GGUF and nothing")
    with pytest.raises(BundleError):
        EmbeddingTable(tmp_path / "b.gguf")
