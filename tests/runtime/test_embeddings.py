"""The LLM's embedding table by rows: the values of gguf's own reader, in every type, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from mindmerger.blocks import block_size, dequantise, is_exact
from mindmerger.embeddings import EmbeddingTable
from mindmerger.errors import BundleError, InputError
from tests import tiny


@pytest.mark.parametrize("kind", [None, "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_rows_are_those_of_gguf(tmp_path: Path, kind: str | None) -> None:
    path = tiny.random_llm(tmp_path / "llm.gguf", quantised=kind)
    table = EmbeddingTable(path)
    (tensor,) = [each for each in gguf.GGUFReader(path).tensors if each.name == "token_embd.weight"]
    whole = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
    assert table.exact
    ids = [5, 0, len(tiny.vocabulary()) - 1, 5]
    rows = table.rows(ids)
    assert rows.dtype == np.float32 and (table.vocabulary, table.width) == whole.shape
    assert np.array_equal(rows, whole[ids])
    assert table.rows([]).shape == (0, tiny.WIDTH)


def test_refusals(tmp_path: Path) -> None:
    table = EmbeddingTable(tiny.random_llm(tmp_path / "llm.gguf"))
    for ids in ([-1], [len(tiny.vocabulary())]):
        with pytest.raises(InputError):
            table.rows(ids)
    with pytest.raises(BundleError, match="no table of embeddings"):
        EmbeddingTable(tiny.adapter(tmp_path / "adapter.gguf"))


def test_types_of_which_only_gguf_knows() -> None:
    kind = gguf.GGMLQuantizationType.Q6_K
    assert not is_exact(kind) and block_size(kind) == gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 60, 3 * block_size(kind)[1], dtype=np.uint8)  # scales that are finite
    assert np.array_equal(dequantise(data, kind), gguf.quants.dequantize(data.reshape(1, -1), kind).reshape(-1))
    with pytest.raises(ValueError, match="999"):
        block_size(999)
