"""A w8 graph's table has 4 bits where that is harmless, and 8 where it is not: measured, and true of the graph that follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mindmerger.tokenizer import QuestionTokenizer
from mindmerger_export.graph import MergerModule, embedding_table, export_graph, merger_module, save_graph
from mindmerger_export.quantise import BLOCK, quantise, symmetric
from mindmerger_export.rows import ROWS_COSINE, check_rows
from mindmerger_export.samples import SENTENCES
from mindmerger_export.table_bits import TableBits, table_bits
from mindmerger_train import encoders
from mindmerger_train.encoders import EncoderSpec
from tests import tiny_families, tiny_torch

SOME = {code: SENTENCES[code] for code in ("en", "es", "sw", "id", "vi", "de")}


def subject(folder: Path, family: str, scale: float = 1.0) -> tuple[EncoderSpec, MergerModule, list[list[int]]]:
    """A random encoder; where its table is made smaller, positions and blocks weigh more."""
    spec = encoders.spec_from_folder(tiny_families.encoder_folder(folder / family, family))
    module = merger_module(encoders.load_encoder(spec), tiny_torch.random_merger(spec.output_width))
    with torch.no_grad():
        embedding_table(module.encoder).weight.mul_(scale)
    tokenizer = encoders.load_tokenizer(spec)
    return spec, module, [tokenizer.encode(text).ids for text in SOME.values()]


@pytest.mark.parametrize("family", ["mt5", "xlm-roberta", "nllb"])
def test_where_the_table_is_most_of_the_rows_it_keeps_8_bits(family: str, tmp_path: Path) -> None:
    found = table_bits(*subject(tmp_path, family)[1:])
    assert found.bits == 8 and found.cosine_mean is not None and found.cosine_min is not None
    assert found.cosine_min < found.cosine_mean < ROWS_COSINE["w8"][0] + 0.0003


def test_where_the_blocks_weigh_more_it_has_4_and_the_graph_holds(tmp_path: Path) -> None:
    spec, module, texts = subject(tmp_path, "xlm-roberta", 0.1)
    found = table_bits(module, texts)
    assert found.bits == 4 and found.cosine_mean is not None and found.cosine_mean > 0.9997
    rows = embedding_table(module.encoder).num_embeddings
    tokenizer = QuestionTokenizer(encoders.tokenizer_path(spec), spec.max_tokens, rows)
    for bits in (4, 8):
        folder = tmp_path / str(bits)
        folder.mkdir()
        graph = export_graph(module, {})
        assert quantise(graph, "w8", table_bits=bits).table == f"{bits}-bit"
        save_graph(graph, folder)
        report = check_rows(module, folder / "merger.onnx", tokenizer, None, SOME, "w8")
        assert report["cosine_mean"] >= ROWS_COSINE["w8"][0]
        nodes = onnx.load(str(folder / "merger.onnx"), load_external_data=False).graph.node
        assert [node.op_type for node in nodes].count("GatherBlockQuantized") == 1
    table = rows * embedding_table(module.encoder).embedding_dim
    smaller = (tmp_path / "8/merger.data").stat().st_size - (tmp_path / "4/merger.data").stat().st_size
    assert 0.45 * table <= smaller <= 0.55 * table


def test_a_table_that_was_4_bit_stays_so_without_measuring(tmp_path: Path) -> None:
    _, module, texts = subject(tmp_path, "xlm-roberta")
    table = embedding_table(module.encoder)
    codes, scales = symmetric(table.weight.detach().numpy(), 4)
    # As files keep them.
    scales = scales.astype(np.float16).astype(np.float32)
    with torch.no_grad():
        table.weight.copy_(torch.from_numpy(codes * np.repeat(scales, BLOCK, axis=1)))
    assert table_bits(module, texts) == TableBits(4)
