"""A tiny bundle of ST-Merge: the merger graph of `tiny` with a gate whose opinion can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mindmerger.manifest import GateInfo
from tests import tiny

LANGUAGES = ("en", "es", "sw")
# (encoder weight, LLM weight) of a question that is all in one language; the first row is the unknown one's
WEIGHTS = {"unknown": (1.0, 1.0), "en": (0.5, 1.5), "es": (1.25, 0.75), "sw": (1.75, 0.0625)}


def gated_bundle(folder: Path) -> Path:
    """A whole bundle in `folder`, over random weights. The gate filters the question of a text in Swahili."""
    folder.mkdir(parents=True)
    files = [
        tiny.file_info("merger", gated_graph(folder / "merger.onnx")),
        tiny.file_info("tokenizer", tiny.tokenizer(folder / "tokenizer.json")),
        tiny.file_info("llm", tiny.random_llm(folder / "llm.gguf")),
    ]
    manifest = replace(tiny.manifest(files), method="st-merge", gate=GateInfo(LANGUAGES))
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


def gated_graph(path: Path) -> Path:
    """The language is what is told, else softmax of what the ids vote for; the weights are those of WEIGHTS, mixed by it."""
    from onnx import TensorProto, helper, load, numpy_helper, save

    model = load(str(tiny.merger_graph(path)))
    graph = model.graph
    names = 1 + len(LANGUAGES)
    votes = np.random.default_rng(5).standard_normal((tiny.ENCODER_VOCABULARY, names)).astype(np.float32)
    constants = {
        "votes": votes,
        "middle": np.array([1], dtype=np.int64),
        "encoder_column": np.array([[pair[0]] for pair in WEIGHTS.values()], dtype=np.float32),
        "llm_column": np.array([[pair[1]] for pair in WEIGHTS.values()], dtype=np.float32),
        "half": np.array(0.5, dtype=np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    node = helper.make_node
    graph.node.extend([
        node("Gather", ["votes", "input_ids"], ["each_vote"]),
        node("Mul", ["each_vote", "mask_column"], ["counted"]),
        node("ReduceSum", ["counted", "middle"], ["sum"], keepdims=0),
        node("Softmax", ["sum"], ["heard"], axis=-1),
        node("ReduceSum", ["language", "middle"], ["how_told"], keepdims=1),
        node("Greater", ["how_told", "half"], ["told"]),
        node("Where", ["told", "language", "heard"], ["language_distribution"]),
    ])  # fmt: skip
    for source in ("encoder", "llm"):
        graph.node.append(node("MatMul", ["language_distribution", f"{source}_column"], [f"{source}_flat"]))
        graph.node.append(node("Unsqueeze", [f"{source}_flat", "last"], [f"{source}_weight"]))
    value = helper.make_tensor_value_info
    graph.input.extend([
        value("prompt_embeddings", TensorProto.FLOAT, ["batch", "prompt", tiny.WIDTH]),
        value("prompt_mask", TensorProto.INT64, ["batch", "prompt"]),
        value("language", TensorProto.FLOAT, ["batch", names]),
    ])  # fmt: skip
    graph.output.extend([
        value("encoder_weight", TensorProto.FLOAT, ["batch", 1, 1]),
        value("llm_weight", TensorProto.FLOAT, ["batch", 1, 1]),
        value("language_distribution", TensorProto.FLOAT, ["batch", names]),
    ])  # fmt: skip
    save(model, str(path))
    return path
