"""Which hardware answers, decided from what the libraries say; the seam itself, for there is no GPU in a test."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mindmerger
from mindmerger import devices, loading
from mindmerger.errors import InputError, ModelError
from mindmerger.graph import MergerGraph
from mindmerger.llama import LLM
from tests import tiny

CUDA = "CUDAExecutionProvider"
QUESTION = "¿Cuánto es 15 + 27?"


@pytest.mark.parametrize(
    ("device", "available", "providers", "noticed"),
    [
        ("auto", [devices.CPU], [], False),
        ("auto", ["TensorrtExecutionProvider", CUDA, devices.CPU], [CUDA], False),
        ("auto", ["CoreMLExecutionProvider", devices.CPU], [], False),
        ("auto", ["DmlExecutionProvider", devices.CPU], ["DmlExecutionProvider"], False),
        ("cpu", [CUDA, devices.CPU], [], False),
        ("cuda", [CUDA, devices.CPU], [CUDA], False),
        ("cuda", [devices.CPU], [], True),
        ("coreml", ["CoreMLExecutionProvider", devices.CPU], ["CoreMLExecutionProvider"], False),
    ],
)
def test_providers(device: str, available: list[str], providers: list[str], noticed: bool) -> None:
    chosen, notices = devices.choose_providers(device, available)
    assert chosen == (*providers, devices.CPU)
    assert len(notices) == noticed and all(CUDA in notice and devices.CPU in notice for notice in notices)


@pytest.mark.parametrize(
    ("device", "gpu_layers", "offload", "layers", "noticed"),
    [
        ("auto", None, False, 0, False),
        ("auto", None, True, -1, False),
        ("cpu", None, True, 0, False),
        ("cpu", 0, True, 0, False),
        ("auto", 12, True, 12, False),
        ("auto", 12, False, 0, True),
        ("cuda", None, False, 0, True),
        ("cuda", 0, False, 0, False),
    ],
)
def test_layers(device: str, gpu_layers: int | None, offload: bool, layers: int, noticed: bool) -> None:
    chosen, notices = devices.choose_layers(device, gpu_layers, offload)
    assert (chosen, len(notices)) == (layers, noticed)


@pytest.mark.parametrize(
    "options",
    [{"device": "gpu"}, {"device": 0}, {"gpu_layers": -2}, {"gpu_layers": True}, {"gpu_layers": 1.0},
     {"gpu_layers": 10**6}, {"device": "cpu", "gpu_layers": 5}, {"device": "cpu", "gpu_layers": -1}],
)  # fmt: skip
def test_wishes_are_checked(random_bundle: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        mindmerger.load(random_bundle, **options)


def test_what_is_not_there_is_a_notice(random_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mindmerger.load(random_bundle, threads=1) as model:
        wanted = model.answer(QUESTION).token_ids
        assert model.notices == () and not caplog.records
    with caplog.at_level(logging.WARNING, "mindmerger"), \
            mindmerger.load(random_bundle, threads=1, device="cuda") as model:  # fmt: skip
        assert model.answer(QUESTION).token_ids == wanted
        assert len(model.notices) == 2 and [record.args[0] for record in caplog.records] == list(model.notices)  # type: ignore[index]


def test_a_provider_that_does_not_start(random_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel names the provider and the machine has no driver: ONNX Runtime raises, or leaves it out silently."""
    monkeypatch.setattr(loading, "_available_providers", lambda: [CUDA, devices.CPU])
    with mindmerger.load(random_bundle, threads=1) as model:
        assert model._graph.provider == devices.CPU
        assert len(model.notices) == 1 and CUDA in model.notices[0]
        assert model.answer(QUESTION).text


def test_a_gpu_that_is_too_small(random_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Small(LLM):
        def __init__(self, path: Path, **options: Any) -> None:
            tried.append(options["gpu_layers"])
            if options["gpu_layers"]:
                raise ModelError("out of memory")
            super().__init__(path, **options)

    monkeypatch.setattr(loading, "LLM", Small)
    monkeypatch.setattr(loading, "supports_gpu", lambda: True)
    with mindmerger.load(random_bundle, threads=1) as model:
        assert tried == [-1, 0] and len(model.notices) == 1 and model.llm.gpu_layers == 0
        assert model.answer(QUESTION).text
    # who asked for layers is told, not overruled
    with pytest.raises(ModelError, match="out of memory"):
        mindmerger.load(random_bundle, threads=1, gpu_layers=5)


def test_layers_reach_llama_cpp(random_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A llama.cpp without a GPU ignores them, so the whole path runs here."""
    monkeypatch.setattr(loading, "supports_gpu", lambda: True)
    with mindmerger.load(random_bundle, threads=1, gpu_layers=1) as model:
        assert model.llm.gpu_layers == 1 and model.answer(QUESTION).text


def test_low_memory_answers_the_same(random_bundle: Path) -> None:
    questions = [QUESTION, "hola", "uno"] * 10
    with mindmerger.load(random_bundle, threads=1) as model:
        wanted = [model.answer(question).token_ids for question in questions]
        rows = model.soft_prompt_rows(QUESTION)
        assert model._graph._session is not None
    with mindmerger.load(random_bundle, threads=1, low_memory=True) as model:
        assert [model.answer(question).token_ids for question in questions] == wanted
        assert model._graph._session is None and model._tokenizer._encode is None
        found = {item.index: item.generation for item in model.generate_batch(questions, slots=4)}
        assert [found[i] and found[i].token_ids for i in range(len(questions))] == wanted  # type: ignore[union-attr]
        assert np.array_equal(model.soft_prompt_rows(QUESTION), rows)
        assert model._graph._session is None
    with pytest.raises(ModelError, match="closed"):
        model.soft_prompt_rows(QUESTION)


def test_closed_graph(tmp_path: Path) -> None:
    graph = MergerGraph(
        tiny.merger_graph(tmp_path / "g.onnx"), width=tiny.WIDTH, vocabulary=tiny.ENCODER_VOCABULARY, threads=1
    )
    graph.close()
    with pytest.raises(ModelError, match="closed"):
        graph.rows([1, 2])
