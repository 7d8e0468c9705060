"""ST-Merge through export: the gate in the graph is the gate in torch, whatever its options and the shapes."""

from __future__ import annotations

from collections.abc import Iterator
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
from mindmerger_train.encoders import Encoder, load_encoder
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
    replace(SPEC, granularity="token", language_input="none"),
]


def named(spec: GateSpec) -> str:
    return f"{spec.granularity}-{spec.pooling}-{spec.language_input}"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(tiny_torch.encoder_folder(tmp_path_factory.mktemp("gate") / "encoder", "bert"))


def info(spec: GateSpec) -> GateInfo:
    return GateInfo(spec.languages, spec.granularity, spec.language_input)


def exported(
    encoder: Encoder, spec: GateSpec, folder: Path, precision: str = "fp32"
) -> tuple[MergerModule, MergerGraph]:
    merger = tiny_torch.random_merger(2 * WIDTH, WIDTH, method="st-merge", gate=spec)
    module = merger_module(encoder, merger)
    model = export_graph(module, {"method": "st-merge"})
    quantise(model, precision)
    folder.mkdir(exist_ok=True)
    path = save_graph(model, folder)[0]
    return module, MergerGraph(path, width=WIDTH, vocabulary=PIECES, threads=1, gate=info(spec))


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
def test_graph_is_torch_for_every_shape(encoder: Encoder, spec: GateSpec, tmp_path: Path) -> None:
    module, graph = exported(encoder, spec, tmp_path / "graph")
    asked = questions(spec, [(1, 1), (1, 9), (7, 1), (12, 30), (2, 5), (100, 60)])
    wanted = [torch_merge(module, question) for question in asked]
    alone = [graph.merge([question])[0] for question in asked]
    # together with much padding, in both directions
    together = graph.merge(asked)
    seen = []
    for reference, one, padded in zip(wanted, alone, together, strict=True):
        for found in (one, padded):
            row = compare(reference, found)
            assert row.max_abs <= 1e-4
            assert row.encoder_weight is not None and row.llm_weight is not None and row.language is not None
            assert max(row.encoder_weight, row.llm_weight, row.language) <= 1e-4
            assert found.opinion is not None
            seen.append(found.opinion)
    # a gate that says 1 whatever it is asked would pass everything above
    assert float(np.std([opinion.encoder_weight.mean() for opinion in seen])) > 0.01
    assert float(np.mean([np.abs(opinion.llm_weight - 1).mean() for opinion in seen])) > 0.05


def test_shapes_by_granularity(encoder: Encoder, tmp_path: Path) -> None:
    shapes = {"scalar": ((1, 1), (1, 1)), "vector": ((1, WIDTH), (1, WIDTH)), "token": ((7, 1), (9, 1))}
    for granularity, wanted in shapes.items():
        spec = replace(SPEC, granularity=granularity)
        _, graph = exported(encoder, spec, tmp_path / granularity)
        for merged in graph.merge(questions(spec, [(7, 9), (3, 2), (20, 1)]))[:1]:
            assert merged.opinion is not None
            assert (merged.opinion.encoder_weight.shape, merged.opinion.llm_weight.shape) == wanted
            assert merged.rows.shape == (8, WIDTH)


def test_language_is_asked_or_told(encoder: Encoder, tmp_path: Path) -> None:
    (question,) = questions(SPEC, [(5, 5)])
    told = np.array([0, 0, 1, 0], dtype=np.float32)
    for language_input, alone in (("soft", None), ("forced", [1, 0, 0, 0])):
        spec = replace(SPEC, language_input=language_input)
        _, graph = exported(encoder, spec, tmp_path / language_input)
        free = graph.merge([question])[0].opinion
        forced = graph.merge([replace(question, language=told)])[0].opinion
        assert free is not None and forced is not None
        assert free.language.sum() == pytest.approx(1) and forced.language.tolist() == told.tolist()
        assert (free.language.tolist() == alone) if alone else (free.language.min() > 0)
        assert abs(free.encoder_weight - forced.encoder_weight).max() > 1e-3


@pytest.mark.parametrize("spec", [SPEC, OPTIONS[1], OPTIONS[2]], ids=named)
def test_quantised_graph_is_near(encoder: Encoder, spec: GateSpec, tmp_path: Path) -> None:
    module, graph = exported(encoder, spec, tmp_path / "w8", "w8")
    asked = questions(spec, [(5, 9), (20, 12), (40, 30), (9, 9)])
    rows = [compare(torch_merge(module, q), m) for q, m in zip(asked, graph.merge(asked), strict=True)]
    _judge_gate("rows", rows, "w8")
    with pytest.raises(ParityError, match="weight"):
        _judge_gate("rows", rows, "fp32")


def test_the_last_layers_stay_in_float32(encoder: Encoder, tmp_path: Path) -> None:
    # 31 languages and "unknown": a language embedding whose inner dimension could be quantised
    codes = tuple(f"{a}{b}" for a in "abcdefgh" for b in "wxyz")[:31]
    exported(encoder, replace(SPEC, languages=codes), tmp_path / "w8", "w8")
    graph = onnx.load(str(tmp_path / "w8" / "merger.onnx"), load_external_data=False).graph
    names = {node.name: node.op_type for node in graph.node if node.name.startswith("gate.")}
    quantised = {name.split(".")[1] for name, kind in names.items() if kind == "MatMulNBits"}
    plain = {name.split(".")[1].split("_")[0] for name, kind in names.items() if kind == "MatMul"}
    assert quantised == {"query", "key", "value"}
    assert plain >= {"hidden", "output", "matmul"}


@pytest.fixture(scope="module")
def scalar(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, MergerGraph]]:
    folder = tmp_path_factory.mktemp("scalar")
    yield folder / "graph" / "merger.onnx", exported(encoder, SPEC, folder / "graph")[1]


def test_signature_and_metadata(scalar: tuple[Path, MergerGraph]) -> None:
    model = onnx.load(str(scalar[0]), load_external_data=False)
    assert tuple(item.name for item in model.graph.input) == GATE_INPUTS
    assert tuple(item.name for item in model.graph.output) == GATE_OUTPUTS
    assert "gate" in model.doc_string
    assert {item.key: item.value for item in model.metadata_props}["mindmerger.method"] == "st-merge"


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(scalar: tuple[Path, MergerGraph]) -> None:
    path, _ = scalar

    def open_as(gate: GateInfo | None) -> MergerGraph:
        return MergerGraph(path, width=WIDTH, vocabulary=PIECES, threads=1, gate=gate)

    with pytest.raises(BundleError, match="without a gate"):
        open_as(None)
    for gate in (replace(info(SPEC), granularity="token"), replace(info(SPEC), granularity="vector")):
        with pytest.raises(BundleError, match="encoder_weight"):
            open_as(gate).merge(questions(SPEC, [(5, 5), (6, 7)]))
    with pytest.raises(BundleError, match="language"):
        open_as(GateInfo(("en", "es"))).merge(questions(SPEC, [(5, 5)]))


def test_mono_has_nothing_to_export() -> None:
    merger = tiny_torch.random_merger(WIDTH, method="mono")
    with pytest.raises(CheckpointError, match="LLM alone"):
        check_method(merger)


def test_gate_bounds_are_judged(encoder: Encoder, tmp_path: Path) -> None:
    module, graph = exported(encoder, SPEC, tmp_path / "graph")
    asked = questions(SPEC, [(5, 9)])
    with torch.no_grad():
        module.merger.gate.output.bias += 0.5  # type: ignore[union-attr]
    rows: list[Any] = [compare(torch_merge(module, q), m) for q, m in zip(asked, graph.merge(asked), strict=True)]
    for precision in ("fp32", "w8", "w4"):
        with pytest.raises(ParityError, match="encoder weight differs"):
            _judge_gate("rows", rows, precision)
