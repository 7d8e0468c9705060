"""The service and its tiny bundles, as in the tests of mm-serve; the desktop example's modules, importable."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mindmerger.manifest import GateInfo
from tests import tiny
from tests.serve.conftest import arithmetic, endless, served  # noqa: F401

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES / "desktop"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MINDMERGER_BUNDLE", raising=False)


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `arithmetic`, with a gate that finds everything to be Swahili and weighs it 1.5 to 0.5."""
    folder = tmp_path_factory.mktemp("gated") / "bundle"
    folder.mkdir()
    gate = GateInfo(("en", "sw"))
    graph_file = tiny.merger_graph(folder / "merger.onnx")
    model = onnx.load(str(graph_file))
    shapes = {"prompt_embeddings": ["batch", "prompt", tiny.WIDTH], "prompt_mask": ["batch", "prompt"]}
    for name, shape in {**shapes, "language": ["batch", len(gate.names)]}.items():
        kind = TensorProto.INT64 if name == "prompt_mask" else TensorProto.FLOAT
        model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    for name, value in {
        "encoder_weight": np.full((1, 1, 1), 1.5),
        "llm_weight": np.full((1, 1, 1), 0.5),
        "language_distribution": np.array([[0.1, 0.1, 0.8]]),
    }.items():
        array = numpy_helper.from_array(value.astype(np.float32), f"{name}.value")
        model.graph.initializer.append(array)
        model.graph.node.append(helper.make_node("Identity", [array.name], [name]))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(value.shape)))
    onnx.save(model, str(graph_file))
    files = [
        tiny.file_info("merger", graph_file),
        tiny.file_info("tokenizer", tiny.tokenizer(folder / "tokenizer.json")),
        tiny.file_info("llm", tiny.scripted_llm(folder / "llm.gguf", tiny.ARITHMETIC)),
    ]
    manifest = replace(tiny.manifest(files), method="st-merge", gate=gate)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder
