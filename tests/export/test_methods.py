"""Whole bundles of every method: LangBridge, and ST-Merge with each granularity, against torch and against training.

The reference for the sequence is what training trains on (`MergedTask`): weights, filtering and all.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mindmerger
from mindmerger.embeddings import EmbeddingTable
from mindmerger.errors import InputError
from mindmerger_export import parity
from mindmerger_export.bundle_writer import Request, export_bundle
from mindmerger_export.graph import merger_module
from mindmerger_train import encoders, llms
from mindmerger_train.checkpoint import load_checkpoint
from mindmerger_train.gate import GateSpec
from mindmerger_train.layout import Row, assemble
from mindmerger_train.stages import MergedTask
from tests import tiny_torch

QUESTION = "Ana compra 3 libros de 4 euros. ¿Cuánto paga?"
GOLDEN = (("es", QUESTION), ("sw", "Maria ana vitabu 12. Anapata 5. Ana vingapi?"), ("en", "What is 15 + 27?"))
GATE = GateSpec(languages=("en", "es", "sw"), heads=4, language_width=8, hidden_width=32)


class Case:
    """A checkpoint, its exact bundle, and both loaded."""

    def __init__(self, folder: Path, method: str, gate: GateSpec | None, precision: str = "fp32") -> None:
        self.folder = tiny_torch.checkpoint(folder, method=method, gate=gate)
        request = Request(str(self.folder), folder / "bundle", precision=precision, llm_type="f32", golden=GOLDEN)
        self.bundle = export_bundle(request)
        self.checkpoint = load_checkpoint(self.folder)
        self.model = mindmerger.load(self.bundle, threads=1)
        self.encoder = encoders.load_encoder(self.checkpoint.encoder)
        self.llm = llms.load_llm(self.checkpoint.llm)
        self.task = MergedTask(self.llm, self.encoder, self.checkpoint)
        self.tokenizer = encoders.load_tokenizer(self.checkpoint.encoder)

    @torch.no_grad()
    def trained_logits(self, question: str, *, soft: bool = True, prompt: bool = True, told: str | None = None) -> Any:
        """The logits of the first token of the answer, over the sequence that training makes."""
        ids = llms.load_llm_tokenizer(self.checkpoint.llm).encode(self.checkpoint.prompt.render(question))
        encoder_ids = self.tokenizer.encode(question).ids if soft else None
        row = Row(encoder_ids, ids if prompt else [], [], told=told)
        soft_rows, prompts, _ = self.task._parts([row])
        llm: Any = self.llm
        batch = assemble([row], soft_rows, llm.get_input_embeddings(), self.checkpoint.prompt.bos_id, prompts)
        return llm(inputs_embeds=batch.embeddings).logits[0, -1].numpy()


CASES: dict[str, tuple[str, GateSpec | None]] = {
    "langbridge": ("langbridge", None),
    "scalar": ("st-merge", GATE),
    "vector": ("st-merge", replace(GATE, granularity="vector", language_input="forced")),
    "token": ("st-merge", replace(GATE, granularity="token", pooling="max")),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Case(tmp_path_factory.mktemp(request.param), *CASES[request.param])
    with made.model:
        yield made


@pytest.fixture(scope="module")
def gated(case: Case) -> Case:
    if case.checkpoint.merger.gate is None:
        pytest.skip("no gate")
    return case


def near(wanted: Any, found: Any) -> bool:
    return parity.kl(wanted, found) < 1e-4 and parity.kl(found, wanted) < 1e-4


def test_manifest_and_report(case: Case) -> None:
    manifest = case.model.manifest
    assert manifest.method == case.checkpoint.method
    report = manifest.parity
    assert report["rows"]["max_abs"] <= 1e-4 and report["answers"]["llm_kl_mean"] < 1e-4
    if (spec := case.checkpoint.merger.gate and case.checkpoint.merger.gate.spec) is None:
        assert manifest.gate is None and "gate" not in report["rows"]
        return
    assert manifest.gate is not None
    assert (manifest.gate.languages, manifest.gate.granularity) == (spec.languages, spec.granularity)
    for rows in (report["rows"], report["rows"]["padded_batches"]):
        assert all(rows["gate"][name]["max"] <= 1e-4 for name in ("encoder_weight", "llm_weight", "language"))
    assert report["answers"]["weights"]["distance_max"] <= 1e-4


def test_the_sequence_is_the_one_that_was_trained(case: Case) -> None:
    """As trained, and each source alone."""
    model, langbridge = case.model, case.checkpoint.method == "langbridge"
    for _, question in GOLDEN:
        assert near(case.trained_logits(question, prompt=not langbridge), model.prefill(question))
        assert near(case.trained_logits(question, soft=False), model.prefill(question, encoder_weight=0))
        assert near(case.trained_logits(question, prompt=False), model.prefill(question, llm_weight=0))


def test_greedy_answers_are_those_of_torch(case: Case) -> None:
    module = merger_module(case.encoder, case.checkpoint.merger)
    reference = parity.TorchAnswers(case.checkpoint, module, case.llm, case.tokenizer)
    tokenizer = llms.load_llm_tokenizer(case.checkpoint.llm)
    answers = [parity.compare_answer(reference, case.model, tokenizer, question) for _, question in GOLDEN]
    assert all(answer.margin is None or answer.margin < 0.01 for answer in answers)
    assert max(answer.weight_distance for answer in answers) < 1e-4
    for golden in case.model.manifest.golden:
        assert tuple(case.model.continuation_ids(golden.question, 32)) == golden.token_ids


def test_encoder_weight_zero_is_the_llm_alone_and_llm_weight_zero_the_soft_prompt_alone(case: Case) -> None:
    model = case.model
    assert np.array_equal(model.prefill(QUESTION, encoder_weight=0), model.prefill(QUESTION, soft_prompt=False))
    assert np.array_equal(model.prefill(QUESTION, llm_weight=0), model.prefill(QUESTION, question_in_prompt=False))
    alone = model.answer(QUESTION, encoder_weight=0.05, max_new_tokens=4)
    assert (alone.soft_prompt_rows, alone.encoder_weight, alone.llm_weight) == (0, 0.0, 1.0)
    assert alone.language is None
    soft = model.answer(QUESTION, llm_weight=0, max_new_tokens=4)
    assert (soft.prompt_tokens, soft.encoder_weight, soft.llm_weight) == (0, 1.0, 0.0)


def test_the_gate_is_at_work_and_can_be_overruled(gated: Case) -> None:
    model = gated.model
    explained = model.explain(QUESTION)
    assert explained.language is not None and sum(explained.language.values()) == pytest.approx(1)
    assert 0 < explained.encoder_weight < 2 and abs(explained.encoder_weight - 1) > 1e-3
    answer = model.answer(QUESTION, max_new_tokens=4)
    assert answer.language == explained.language
    if explained.left_out is None:
        assert (answer.encoder_weight, answer.llm_weight) == (explained.encoder_weight, explained.llm_weight)
    as_trained = model.prefill(QUESTION)
    unweighted = model.prefill(QUESTION, encoder_weight=1, llm_weight=1)
    assert not near(as_trained, unweighted)
    rows, prompt = model.soft_prompt_rows(QUESTION), model.prompt_ids(QUESTION)
    llm = model.llm
    llm.clear()
    table, scale = EmbeddingTable(llm.path), np.float32(model.manifest.injection_scale)
    llm.decode_rows(np.concatenate([table.rows([1]) * scale, rows, table.rows(prompt) * scale]), logits=True)
    assert np.array_equal(llm.logits(), unweighted)  # weight 1: the prompt as it is, to the last bit
    forced = model.answer(QUESTION, encoder_weight=0.5, llm_weight=1.5, max_new_tokens=4)
    assert (forced.encoder_weight, forced.llm_weight) == (0.5, 1.5)


def test_the_gate_is_told_the_language(gated: Case) -> None:
    model = gated.model
    assert near(gated.trained_logits(QUESTION, told="sw"), model.prefill(QUESTION, language="sw"))
    assert model.answer(QUESTION, language="sw", max_new_tokens=2).language == {"sw": 1.0}
    assert model.explain(QUESTION, language="unknown").language == {"unknown": 1.0}
    with pytest.raises(InputError, match="en, es, sw"):
        model.generate(QUESTION, language="fr")


def test_a_threshold_filters_what_the_gate_says(gated: Case) -> None:
    """With a threshold between both weights, the smaller source is left out wholly."""
    model = gated.model
    said = model.explain(QUESTION)
    model.manifest = model._merging._manifest = replace(
        model.manifest, filter_threshold=(said.encoder_weight + said.llm_weight) / 2
    )
    try:
        soft = said.encoder_weight > said.llm_weight
        assert model.explain(QUESTION).left_out == ("question" if soft else "soft prompt")
        alone = model.prefill(QUESTION, **({"llm_weight": 0} if soft else {"encoder_weight": 0}))
        assert np.array_equal(model.prefill(QUESTION), alone)
        answer = model.answer(QUESTION, max_new_tokens=2)
        assert (answer.encoder_weight, answer.llm_weight) == ((1.0, 0.0) if soft else (0.0, 1.0))
    finally:
        model.manifest = model._merging._manifest = mindmerger.read_manifest(gated.bundle)


def test_a_batch_is_steered_as_one_question_is(case: Case) -> None:
    options: dict[str, Any] = {"encoder_weight": 1.5, "llm_weight": 0.7, "max_new_tokens": 6}
    questions = [question for _, question in GOLDEN]
    for extra in ({}, options):
        found = sorted(case.model.generate_batch(questions, slots=3, **extra), key=lambda item: item.index)
        for question, item in zip(questions, found, strict=True):
            alone = case.model.answer(question, **extra)
            assert item.generation is not None
            assert item.generation.encoder_weight == pytest.approx(alone.encoder_weight, abs=1e-5)
            assert item.generation.llm_weight == pytest.approx(alone.llm_weight, abs=1e-5)
            assert item.generation.prompt_tokens == alone.prompt_tokens
            # other rounding may swap two tokens of a random LLM, not the first that it is sure of
            assert item.generation.token_ids[:1] == alone.token_ids[:1]
