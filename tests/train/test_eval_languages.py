"""An encoder that is told the language (NLLB): mm-eval tells it what each question is in, in torch and of a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mindmerger_export.bundle_writer import Request, export_bundle
from mindmerger_train import encoders
from mindmerger_train.checkpoint import Checkpoint, save_checkpoint
from mindmerger_train.evaluation.backends import BundleBackend, Model, identify
from mindmerger_train.evaluation.cli import command
from mindmerger_train.evaluation.modes import ALONE, GATE_OFF, MERGE, NO_LANGUAGE, Traits
from mindmerger_train.evaluation.torch_backend import TorchBackend
from mindmerger_train.language_codes import DEFAULT
from tests import tiny_families, tiny_torch

ASKED = [
    ("es", "¿Cuánto es 15 + 27?"),
    ("sw", "Maria ana vitabu 12."),
    ("es", "¿Cuántos cromos tiene?"),
    ("xx", "2 + 2"),
]
QUESTIONS = [question for _, question in ASKED]
TOLD = ["es", "sw", "es", None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nllb")
    encoder = encoders.spec_from_folder(tiny_families.encoder_folder(folder / "encoder", "nllb"), max_tokens=60)
    llm = tiny_torch.llm_folder(folder / "llm")
    merger = tiny_torch.random_merger(encoder.output_width)
    save_checkpoint(Checkpoint(merger, encoder, llm, tiny_torch.PROMPT, languages=("es", "sw")), folder / "checkpoint")
    return folder


def asked(backend, languages=(), questions=QUESTIONS, **options) -> list[str]:
    replies = backend.generate(questions, max_tokens=12, calculator=None, options=options, languages=languages)
    found = sorted(replies, key=lambda reply: reply.index)
    assert not any(reply.error for reply in found)
    return [reply.text for reply in found]


def test_a_checkpoint_is_told_the_language_of_each_question(folder):
    backend = TorchBackend(str(folder / "checkpoint"))
    told = asked(backend, TOLD)
    one_by_one = [
        asked(backend, questions=[question], **({} if language is None else {"language": language}))[0]
        for language, question in zip(TOLD, QUESTIONS, strict=True)
    ]
    assert told == one_by_one
    ids = [backend._prepare(0, QUESTIONS[0], (True, True), 1, language).encoder_ids for language in ("es", "sw", None)]
    frames = backend._checkpoint.encoder.frames
    assert [own[0] for own in ids] == [frames[code].prefix[0] for code in ("es", "sw", DEFAULT)]
    with torch.no_grad():
        first, second, _ = (backend._encoder.states([own])[0] for own in ids)
    assert float((first - second).abs().max()) > 1e-3  # it makes a difference
    assert asked(backend, language="unknown") == asked(backend)


def test_a_bundle_is_told_the_language_of_each_question(folder):
    golden = tuple(ASKED[:2])
    checkpoint = str(folder / "checkpoint")
    export_bundle(Request(checkpoint, folder / "bundle", precision="fp32", llm_type="f32", golden=golden))
    backend = BundleBackend(str(folder / "bundle"), 1, 2)
    told = asked(backend, TOLD)
    model = backend._model
    for language, question, text in zip(TOLD, QUESTIONS, told, strict=True):
        alone = model.answer(question, language=language, max_new_tokens=12, temperature=0.0)
        assert alone.text == text
    backend.close()
    for model in (Model("bundle", str(folder / "bundle")), Model("checkpoint", str(folder / "checkpoint"))):
        traits = identify(model).traits
        assert {"es", "sw"} <= traits.languages
        assert DEFAULT not in traits.languages


def test_mm_eval_tells_it(folder, tmp_path):
    table = "language\tquestion\tanswer\n" + "".join(f"{language}\t{q}\t1\n" for language, q in ASKED[:3])
    (tmp_path / "questions.tsv").write_text(table, encoding="utf-8")
    words = [
        str(tmp_path / "questions.tsv"),
        "--checkpoint",
        str(folder / "checkpoint"),
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(command, [*words, "--max-tokens", "12"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]
    found = {line["question"]: line["text"] for line in lines if line.get("mode") == "merge"}
    backend = TorchBackend(str(folder / "checkpoint"))
    assert [found[question] for question in QUESTIONS[:3]] == asked(backend, TOLD)[:3]


def test_who_is_told_what():
    traits = Traits("st-merge", True, "soft", frozenset({"es"}))
    assert traits.told(MERGE, "es") == traits.told(GATE_OFF, "es") == "es"
    assert traits.told(MERGE, "sw") is None  # no token for it
    assert traits.told(ALONE, "es") is None  # no encoder is asked
    assert traits.told(NO_LANGUAGE, "es") is None  # the mode says that it is unknown
