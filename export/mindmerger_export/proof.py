"""The proof of a bundle that lies whole in its folder: the graph's rows, injected rows, answers, all against torch.

Ends in a manifest with the injection scale, the golden ids and the report, or in a ParityError. What this module does not
know: how the files came to be, how figures are measured (rows.py, parity.py, auto_quant.py).
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindmerger.bundle import open_bundle
from mindmerger.embeddings import EmbeddingTable
from mindmerger.errors import InputError
from mindmerger.llama import LLM
from mindmerger.loading import load
from mindmerger.manifest import MANIFEST_NAME, GoldenInfo, Manifest, PromptInfo
from mindmerger.model import MergedModel
from mindmerger.tokenizer import QuestionTokenizer
from mindmerger_export import parity
from mindmerger_export.foreign import reading
from mindmerger_export.graph import MergerModule
from mindmerger_export.request import Request
from mindmerger_export.rows import Floats, check_rows
from mindmerger_export.samples import SENTENCES
from mindmerger_export.talk import Talk
from mindmerger_export.vocabulary import TOKENIZER_FILE, Vocabulary
from mindmerger_train import encoders, llms
from mindmerger_train.checkpoint import Checkpoint

_FLOAT_TYPES = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Subject:
    """What is proved: the checkpoint in torch (`module` with the whole vocabulary) and the bundle's folder."""

    request: Request
    checkpoint: Checkpoint
    module: MergerModule
    vocabulary: Vocabulary
    folder: Path
    talk: Talk


def prove_rows(subject: Subject, manifest: Manifest, report: dict[str, Any]) -> Manifest:
    """Rows and injection. Writes the manifest that it returns, with its scale, so that the runtime can load the folder."""
    talk, folder, request = subject.talk, subject.folder, subject.request
    tokenizer = QuestionTokenizer(folder / TOKENIZER_FILE, manifest.encoder.max_tokens, manifest.encoder.vocabulary)
    write_manifest(manifest, folder)
    gguf = open_bundle(folder).llm()
    talk("comparing the graph's rows with torch")
    texts = _that_fit(SENTENCES, tokenizer)
    report["rows"] = check_rows(
        subject.module,
        folder / manifest.file("merger").path,
        tokenizer,
        subject.vocabulary.keep,
        texts,
        request.precision,
        gate=manifest.gate,
        prompts=None if manifest.gate is None else _prompt_rows(gguf, manifest.prompt, texts),
        frames=manifest.encoder.frames,
        talk=talk,
    )
    talk("comparing injected rows with the LLM's token path")
    question = request.golden[0][1]
    report["injection"] = parity.find_injection_scale(gguf, manifest.prompt.render(question), manifest.prompt.bos_id)
    manifest = replace(manifest, injection_scale=report["injection"]["scale"])
    write_manifest(manifest, folder)
    return manifest


def prove_answers(
    subject: Subject,
    manifest: Manifest,
    kind: str,
    asks_torch: bool,
    report: dict[str, Any],
    look: Callable[[MergedModel], None] = lambda _model: None,
) -> Manifest:
    """Golden answers, beside torch's where its LLM fits into memory; `look` sees the loaded bundle afterwards."""
    request, checkpoint, talk = subject.request, subject.checkpoint, subject.talk
    reference: parity.TorchAnswers | None = None
    llm_tokenizer = None
    if asks_torch:
        talk("loading the LLM in torch")
        with reading("the LLM"):
            llm = llms.load_llm(checkpoint.llm, adapter=checkpoint.adapter_path())
            llm_tokenizer = llms.load_llm_tokenizer(checkpoint.llm)
        reference = parity.TorchAnswers(
            checkpoint, subject.module, llm, encoders.load_tokenizer(checkpoint.encoder), manifest.filter_threshold
        )
        del llm
    with load(subject.folder) as model:
        if reference is not None:
            talk("comparing answers with torch")
            report["answers"] = parity.check_answers(
                reference, model, llm_tokenizer, request.golden, kind in _FLOAT_TYPES, talk=talk
            )
        else:
            reason = (
                "--reference none was given"
                if request.reference == "none"
                else "its LLM in float32 does not fit into this memory"
            )
            report["answers"] = {"left_out": f"the answers were not compared with torch's: {reason}"}
        del reference
        gc.collect()
        talk("answering the golden questions")
        golden = []
        for language, question in talk.each(request.golden):
            options = parity.asked_in(manifest, language)
            ids = model.continuation_ids(question, parity.GREEDY_TOKENS, **options)
            golden.append(GoldenInfo(question, language, tuple(ids)))
        look(model)
    return replace(manifest, golden=tuple(golden), parity=report)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def _that_fit(texts: Mapping[str, str], tokenizer: QuestionTokenizer) -> dict[str, str]:
    """Those that the encoder reads whole; the first words of each where it reads none."""
    fitting = {}
    for code, text in texts.items():
        with contextlib.suppress(InputError):
            tokenizer.encode(text)
            fitting[code] = text
    return fitting or {code: " ".join(text.split()[:2]) for code, text in texts.items()}


def _prompt_rows(gguf: Path, prompt: PromptInfo, texts: Mapping[str, str]) -> dict[str, Floats]:
    """The LLM's embeddings of each text's prompt (m, d): what the gate asks with."""
    table = EmbeddingTable(gguf)
    with LLM(gguf, context=64) as llm:
        return {key: table.rows(prompt.ids(text, llm.tokenise)) for key, text in texts.items()}
