"""ST-Merge through export: the gate in the graph is the gate in torch, whatever its options and the shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mindmerger.errors import BundleError, CheckpointError, ParityError
from mindmerger.graph import GATE_INPUTS, GATE_OUTPUTS, GraphInput, MergerGraph
from mindmerger.manifest import GateInfo
from mindmerger_export.graph import MergerModule, check_method, export_graph, merger_module, save_graph
from mindmerger_export.quantise import quantise
from mindmerger_export.rows import _judge_gate, compare, torch_merge
from mindmerger_train.encoders import Encoder
from mindmerger_train.gate import GateSpec
from tests import tiny_torch

WIDTH = tiny_torch.WIDTH
PIECES = 300
SPEC = GateSpec(languages=("en", "es", "sw"), heads=4, language_width=8, hidden_width=32)
OPTIONS = [
    SPEC,
    replace(SPEC, granularity="vector", pooling="max", activation="relu"),
    replace(SPEC, granularity="token", language_input="forced", attention_width=32, heads=2),
    replace(SPEC, pooling="last", language_input="none", normalise=False, activation="silu"),
    replace(SPEC, granularity="vector", pooling="last", language_input="forced", activation="tanh", heads=1),
]


def named(spec: GateSpec) -> str:
    return f"{spec.granularity}-{spec.pooling}-{spec.language_input}"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """One block: what is looked at comes after it."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(2)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    config = BertConfig(vocab_size=PIECES, max_position_embeddings=128, initializer_range=0.2, **sizes)
    return Encoder(BertModel(config, add_pooling_layer=False), ())


def info(spec: GateSpec) -> GateInfo:
    return GateInfo(spec.languages, spec.granularity, spec.language_input)


Exported = Callable[..., tuple[MergerModule, Path]]


@pytest.fixture(scope="module")
def exported(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Module and graph for a gate's options; each is exported once."""
    made: dict[tuple[GateSpec, str], tuple[MergerModule, Path]] = {}

    def export(spec: GateSpec, precision: str = "fp32") -> tuple[MergerModule, Path]:
        if (spec, precision) not in made:
            merger = tiny_torch.random_merger(WIDTH, WIDTH, method="st-merge", gate=spec)
            module = merger_module(encoder, merger)
            model = export_graph(module, {"method": "st-merge"})
            quantise(model, precision)
            made[spec, precision] = module, save_graph(model, tmp_path_factory.mktemp("graph"))[0]
        return made[spec, precision]

    return export


def opened(path: Path, gate: GateInfo | None) -> MergerGraph:
    return MergerGraph(path, width=WIDTH, vocabulary=PIECES, threads=1, gate=gate)


def questions(spec: GateSpec, lengths: list[tuple[int, int]]) -> list[GraphInput]:
    """Random questions of (encoder tokens, prompt tokens); every second one is told its language."""
    rng = np.random.default_rng(0)
    found = []
    for index, (n, m) in enumerate(lengths):
        language = np.zeros(1 + len(spec.languages), dtype=np.float32)
        if index % 2:
            language[index % len(language)] = 1.0
        prompt = rng.standard_normal((m, WIDTH)).astype(np.float32)
        found.append(GraphInput(rng.integers(4, PIECES, n).tolist(), prompt, language))
    return found


@pytest.mark.parametrize("spec", OPTIONS, ids=named)
def test_graph_is_torch_for_every_shape(exported: Exported, spec: GateSpec) -> None:
    module, path = exported(spec)
    graph = opened(path, info(spec))
    lengths = [(1, 1), (1, 9), (7, 1), (12, 30), (2, 5), (100, 60)]
    asked = questions(spec, lengths)
    wanted = [torch_merge(module, question) for question in asked]
    alone = [graph.merge([question])[0] for question in asked]
    # together with much padding, in both directions
    together = graph.merge(asked)
    seen = []
    for (n, m), reference, one, padded in zip(lengths, wanted, alone, together, strict=True):
        for found in (one, padded):
            row = compare(reference, found)
            assert row.max_abs <= 1e-4
            assert row.encoder_weight is not None and row.llm_weight is not None and row.language is not None
            assert max(row.encoder_weight[1], row.llm_weight[1], row.language[1]) <= 1e-4
            assert found.opinion is not None and found.rows.shape == (n + 1, WIDTH)
            shapes = {"scalar": ((1, 1), (1, 1)), "vector": ((1, WIDTH), (1, WIDTH)), "token": ((n, 1), (m, 1))}
            assert (found.opinion.encoder_weight.shape, found.opinion.llm_weight.shape) == shapes[spec.granularity]
            seen.append(found.opinion)
    # a gate that says 1 whatever it is asked would pass everything above
    assert float(np.std([opinion.encoder_weight.mean() for opinion in seen])) > 0.005
    assert float(np.mean([np.abs(opinion.llm_weight - 1).mean() for opinion in seen])) > 0.05


def test_language_is_asked_or_told(exported: Exported) -> None:
    told = np.array([0, 0, 1, 0], dtype=np.float32)
    for spec in OPTIONS:
        (question,) = questions(spec, [(5, 5)])
        graph = opened(exported(spec)[1], info(spec))
        free, forced = (graph.merge([asked])[0].opinion for asked in (question, replace(question, language=told)))
        assert free is not None and forced is not None
        assert free.language.sum() == pytest.approx(1) and forced.language.tolist() == told.tolist()
        assert free.language.min() > 0 if spec.language_input == "soft" else free.language.tolist() == [1, 0, 0, 0]
        moved = abs(free.encoder_weight - forced.encoder_weight).max()
        assert moved == 0 if spec.language_input == "none" else moved > 1e-3


@pytest.mark.parametrize("spec", OPTIONS[:2], ids=named)
def test_quantised_graph_is_near(exported: Exported, spec: GateSpec) -> None:
    module, path = exported(spec, "w8")
    asked = questions(spec, [(5, 9), (20, 12), (40, 30), (9, 9)])
    found = opened(path, info(spec)).merge(asked)
    rows = [compare(torch_merge(module, q), merged) for q, merged in zip(asked, found, strict=True)]
    _judge_gate("rows", rows, "w8")
    with pytest.raises(ParityError, match="weight"):
        _judge_gate("rows", rows, "fp32")


def test_the_last_layers_stay_in_float32(exported: Exported) -> None:
    # 31 languages and "unknown": a language embedding whose inner dimension could be quantised
    codes = tuple(f"{a}{b}" for a in "abcdefgh" for b in "wxyz")[:31]
    _, path = exported(replace(SPEC, languages=codes), "w8")
    graph = onnx.load(str(path), load_external_data=False).graph
    names = {node.name: node.op_type for node in graph.node if node.name.startswith("gate.")}
    quantised = {name.split(".")[1] for name, kind in names.items() if kind == "MatMulNBits"}
    plain = {name.split(".")[1].split("_")[0] for name, kind in names.items() if kind == "MatMul"}
    assert quantised == {"query", "key", "value"}
    assert plain >= {"hidden", "output", "matmul"}


def test_signature_and_metadata(exported: Exported) -> None:
    model = onnx.load(str(exported(SPEC)[1]), load_external_data=False)
    assert tuple(item.name for item in model.graph.input) == GATE_INPUTS
    assert tuple(item.name for item in model.graph.output) == GATE_OUTPUTS
    assert "gate" in model.doc_string
    assert {item.key: item.value for item in model.metadata_props}["mindmerger.method"] == "st-merge"


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(exported: Exported) -> None:
    path = exported(SPEC)[1]
    with pytest.raises(BundleError, match="without a gate"):
        opened(path, None)
    for granularity in ("token", "vector"):
        with pytest.raises(BundleError, match="encoder_weight"):
            opened(path, replace(info(SPEC), granularity=granularity)).merge(questions(SPEC, [(5, 5), (6, 7)]))
    with pytest.raises(BundleError, match="language"):
        opened(path, GateInfo(("en", "es"))).merge(questions(SPEC, [(5, 5)]))


def test_mono_has_nothing_to_export() -> None:
    merger = tiny_torch.random_merger(WIDTH, method="mono")
    with pytest.raises(CheckpointError, match="LLM alone"):
        check_method(merger)


def test_gate_bounds_are_judged(exported: Exported) -> None:
    module, path = exported(SPEC)
    module = copy.deepcopy(module)
    asked = questions(SPEC, [(5, 9)])
    gate = module.merger.gate
    assert gate is not None
    with torch.no_grad():
        gate.output.bias += 0.5
    rows: list[Any] = [
        compare(torch_merge(module, q), m) for q, m in zip(asked, opened(path, info(SPEC)).merge(asked), strict=True)
    ]
    for precision in ("fp32", "w8", "w4"):
        with pytest.raises(ParityError, match="encoder weight differs"):
            _judge_gate("rows", rows, precision)
