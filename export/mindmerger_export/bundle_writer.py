"""The whole export: checkpoint in, bundle out, and nothing under the final name unless all of it is right.

Everything is written into a hidden folder beside the target, checked there through the runtime, and renamed at the end.
"""

from __future__ import annotations

import gc
import importlib.metadata
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

import mindmerger
from mindmerger.errors import CheckpointError, InputError, MindMergerError, ModelError
from mindmerger.manifest import (
    MANIFEST_NAME,
    BakeInfo,
    EncoderInfo,
    FileInfo,
    GateInfo,
    GenerationInfo,
    GoldenInfo,
    LLMInfo,
    Manifest,
    PromptInfo,
)
from mindmerger_export import parity
from mindmerger_export.graph import (
    MergerModule,
    check_method,
    embedding_table,
    encoder_blocks,
    export_graph,
    merger_module,
    save_graph,
)
from mindmerger_export.llm import LLMFiles, file_entry, llm_facts, prepare_llm
from mindmerger_export.prune import Pruned, prune, read_texts
from mindmerger_export.quantise import quantise
from mindmerger_export.rows import Floats, check_rows
from mindmerger_export.samples import QUESTIONS, SENTENCES
from mindmerger_train import encoders, llms
from mindmerger_train.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint

TOKENIZER_FILE = "tokenizer.json"
_TOOLS = (
    "torch",
    "transformers",
    "tokenizers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "gguf",
    "llama-cpp-python",
)
_FLOAT_TYPES = ("f32", "f16", "bf16")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to export and how; the command line in one object."""

    checkpoint: str
    out: Path | None = None
    precision: str = "w8"
    languages: tuple[str, ...] = ()
    prune_texts: tuple[Path, ...] = ()
    max_pieces: int | None = None
    llm: str = "embed"
    llm_type: str | None = None
    llm_gguf: Path | None = None
    context: int = 2048
    golden: tuple[tuple[str, str], ...] = QUESTIONS
    force: bool = False


def export_bundle(request: Request, progress: Progress = lambda _message: None) -> Path:
    """Export and return the bundle's folder. Raises a MindMergerError, and then leaves nothing behind."""
    folder = resolve_checkpoint(request.checkpoint)
    out = (request.out or folder / "bundle").absolute()
    checkpoint = load_checkpoint(folder)
    _check_target(out, request, checkpoint)
    progress(f"checkpoint {folder}")
    with _building(out) as temporary, _quiet_transformers():
        _build(request, checkpoint, temporary, progress)
        _publish(temporary, out)
    return out


def _check_target(out: Path, request: Request, checkpoint: Checkpoint) -> None:
    if not out.exists() and not out.is_symlink():
        return
    entries = list(out.iterdir()) if out.is_dir() else [out]
    adapter = checkpoint.adapter_path()
    shared = adapter is not None and adapter.resolve().parent == out.resolve()
    if shared and (request.llm != "package" or request.llm_gguf is not None):
        # A published checkpoint and its bundle share one adapter; a bundle that embeds its LLM would take it away.
        raise InputError(f"the checkpoint keeps its LLM's adapter in {out}: use --llm package, or give another --out")
    if shared and [entry.resolve() for entry in entries] == [cast(Path, adapter).resolve()]:
        return  # published and not yet exported: the new bundle brings the same adapter
    if not request.force:
        raise InputError(f"{out} exists: give another --out, or --force to replace it")
    # --force replaces a bundle, not somebody's home.
    if not out.is_dir() or (entries and not (out / MANIFEST_NAME).is_file()):
        raise InputError(f"{out} exists and is not a bundle: --force replaces bundles only")


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, removed on the way out whatever happened."""
    temporary = out.parent / f".{out.name}.{secrets.token_hex(6)}.tmp"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
    except MindMergerError:
        raise
    except OSError as error:
        raise ModelError(f"{out} cannot be written ({error.strerror or error}): check space and permissions") from None
    except MemoryError:
        raise ModelError("there is not enough memory for this export: close other programs") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, out: Path) -> None:
    old = temporary.with_suffix(".old")
    if out.exists():
        out.replace(old)
    try:
        temporary.replace(out)
    except OSError:
        if old.exists():
            old.replace(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _build(request: Request, checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    if request.max_pieces is not None and not request.prune_texts:
        raise InputError("--max-pieces needs --prune-text: it is by a text's words that pieces are chosen")
    check_method(checkpoint.merger)
    if checkpoint.encoder.frames:
        raise CheckpointError(
            f"the encoder {checkpoint.encoder.name} is told the language of its text (NLLB, M2M100), which a bundle cannot do "
            "yet: train with an encoder that is not"
        )
    if checkpoint.prompt.before_ids is not None:
        raise CheckpointError(
            "the checkpoint's prompt is a chat template with special tokens, which a bundle cannot hold yet: "
            "train with a plain template"
        )
    # The LLM first: most of what can be wrong with the request shows here, before anything slow.
    progress("preparing the LLM")
    llm_files = prepare_llm(checkpoint, folder, request.llm, request.llm_type, request.llm_gguf)
    facts = llm_facts(llm_files.gguf)
    if facts.width != checkpoint.llm.width:
        raise CheckpointError(
            f"the LLM has width {facts.width} and the checkpoint's merger was trained for {checkpoint.llm.width}"
        )
    progress(f"loading the encoder {checkpoint.encoder.name}")
    with _reading("the encoder"):
        encoder = encoders.load_encoder(checkpoint.encoder)
    parameters = sum(parameter.numel() for parameter in encoder.model.parameters())
    pruned = _prune(request, checkpoint, encoder, folder, progress)
    module = merger_module(encoder, checkpoint.merger)
    graph_files, quantised = _write_graph(request, checkpoint, module, pruned, folder, progress)
    prompt = checkpoint.prompt
    vocabulary = len(pruned.keep) if pruned is not None else embedding_table(encoder).num_embeddings
    manifest = Manifest(
        name=checkpoint.name,
        method=checkpoint.method,
        languages=tuple(sorted(request.languages or checkpoint.languages)),
        encoder=EncoderInfo(
            name=checkpoint.encoder.name,
            architecture=checkpoint.encoder.architecture,
            width=checkpoint.encoder.width,
            layers=checkpoint.encoder.layers or (encoder_blocks(encoder),),
            combine="concat",
            max_tokens=checkpoint.encoder.max_tokens,
            parameters=parameters,
            licence=checkpoint.encoder.licence,
            vocabulary=vocabulary,
        ),
        llm=LLMInfo(
            name=checkpoint.llm.name,
            architecture=facts.architecture,
            width=facts.width,
            vocabulary=facts.vocabulary,
            context=min(facts.context, request.context),
            parameters=facts.parameters,
            licence=checkpoint.llm.licence,
        ),
        prompt=PromptInfo(prompt.template, prompt.bos_id, prompt.stop_ids, prompt.before_ids, prompt.after_ids),
        files=(*graph_files, file_entry("tokenizer", folder / TOKENIZER_FILE), *llm_files.entries),
        generation=GenerationInfo(256, 0.0, checkpoint.calculator),
        gate=_gate_info(checkpoint),
        bake=None if llm_files.bake is None else BakeInfo(llm_files.bake),
        tools=_tools(),
    )
    report: dict[str, Any] = {"precision": request.precision, "llm": llm_files.kind, "quantisation": quantised}
    if pruned is not None:
        report["vocabulary"] = pruned.report
    manifest = _prove(request, checkpoint, module, pruned, llm_files, manifest, report, folder, progress)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def _gate_info(checkpoint: Checkpoint) -> GateInfo | None:
    gate = checkpoint.merger.gate
    if gate is None:
        return None
    return GateInfo(gate.spec.languages, gate.spec.granularity, gate.spec.language_input)


def _prune(
    request: Request, checkpoint: Checkpoint, encoder: encoders.Encoder, folder: Path, progress: Progress
) -> Pruned | None:
    source = encoders.tokenizer_path(checkpoint.encoder)
    target = folder / TOKENIZER_FILE
    if not request.prune_texts:
        shutil.copyfile(source, target)
        return None
    progress("choosing the pieces of the encoder's vocabulary")
    texts = [*read_texts(request.prune_texts), *SENTENCES.values()]
    pruned = prune(source, texts, embedding_table(encoder).num_embeddings, request.max_pieces)
    target.write_text(pruned.tokenizer_json, encoding="utf-8")
    kept = pruned.report
    progress(f"vocabulary: {kept['pieces']} of {kept['of']} pieces, {100 * kept['token_coverage']:.2f} % of the tokens")
    return pruned


def _write_graph(
    request: Request,
    checkpoint: Checkpoint,
    module: MergerModule,
    pruned: Pruned | None,
    folder: Path,
    progress: Progress,
) -> tuple[list[FileInfo], dict[str, Any]]:
    progress("exporting the merger graph")
    encoder = cast(Any, module.encoder.model)
    whole = embedding_table(module.encoder)
    if pruned is not None:
        rows = whole.weight.detach()[torch.from_numpy(pruned.keep)]
        encoder.set_input_embeddings(nn.Embedding(len(rows), rows.shape[1], _weight=rows).requires_grad_(False))
    metadata = {
        "role": "merger",
        "name": checkpoint.name,
        "method": checkpoint.method,
        "encoder": checkpoint.encoder.name,
        "encoder_layers": ",".join(str(layer) for layer in checkpoint.encoder.layers) or "last",
        "llm": checkpoint.llm.name,
        "llm_width": str(checkpoint.llm.width),
        "precision": request.precision,
    }
    if (gate := _gate_info(checkpoint)) is not None:
        metadata |= {
            "gate_granularity": gate.granularity,
            "gate_language_input": gate.language_input,
            "gate_languages": ",".join(gate.names),
        }
    try:
        model = export_graph(module, metadata)
        if request.precision != "fp32":
            progress(f"quantising the graph to {request.precision}")
        quantised = quantise(model, request.precision)
        paths = save_graph(model, folder)
    finally:
        # What the graph is compared with is the encoder with its whole vocabulary, not the one that was sliced.
        encoder.set_input_embeddings(whole)
    roles = ("merger", "merger-data")
    return [file_entry(role, path) for role, path in zip(roles, paths, strict=False)], quantised.to_json()


def _prove(
    request: Request,
    checkpoint: Checkpoint,
    module: MergerModule,
    pruned: Pruned | None,
    llm_files: LLMFiles,
    manifest: Manifest,
    report: dict[str, Any],
    folder: Path,
    progress: Progress,
) -> Manifest:
    """Compare the bundle in `folder` with torch; returns the manifest with its report, scale and golden ids."""
    from mindmerger.bundle import open_bundle
    from mindmerger.loading import load
    from mindmerger.tokenizer import QuestionTokenizer

    progress("comparing the graph's rows with torch")
    tokenizer = QuestionTokenizer(folder / TOKENIZER_FILE, manifest.encoder.max_tokens, manifest.encoder.vocabulary)
    graph = folder / manifest.file("merger").path
    keep = None if pruned is None else np.asarray(pruned.keep)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    gguf = open_bundle(folder).llm()
    prompts = None if manifest.gate is None else _prompt_rows(gguf, manifest.prompt, SENTENCES)
    report["rows"] = check_rows(
        module, graph, tokenizer, keep, SENTENCES, request.precision, gate=manifest.gate, prompts=prompts
    )

    progress("comparing injected rows with the LLM's token path")
    question = request.golden[0][1]
    report["injection"] = parity.find_injection_scale(gguf, manifest.prompt.render(question), manifest.prompt.bos_id)
    manifest = replace(manifest, injection_scale=report["injection"]["scale"])
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")

    progress("comparing answers with torch")
    with _reading("the LLM"):
        llm = llms.load_llm(checkpoint.llm, adapter=checkpoint.adapter_path())
        llm_tokenizer = llms.load_llm_tokenizer(checkpoint.llm)
    reference = parity.TorchAnswers(
        checkpoint, module, llm, encoders.load_tokenizer(checkpoint.encoder), manifest.filter_threshold
    )
    with load(folder) as model:
        report["answers"] = parity.check_answers(
            reference, model, llm_tokenizer, request.golden, llm_files.kind in _FLOAT_TYPES
        )
        golden = tuple(
            GoldenInfo(question, language, tuple(model.continuation_ids(question, parity.GREEDY_TOKENS)))
            for language, question in request.golden
        )
    del llm, reference
    gc.collect()
    return replace(manifest, golden=golden, parity=report)


def _prompt_rows(gguf: Path, prompt: PromptInfo, texts: Mapping[str, str]) -> dict[str, Floats]:
    """The LLM's embeddings of each text's prompt (m, d): what the gate asks with."""
    from mindmerger.embeddings import EmbeddingTable
    from mindmerger.llama import LLM

    table = EmbeddingTable(gguf)
    with LLM(gguf, context=64) as llm:
        return {key: table.rows(prompt.ids(text, llm.tokenise)) for key, text in texts.items()}


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Its advice and progress bars are about its own loading; stderr is for ours."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """transformers and safetensors report damaged files by a dozen exceptions; here they are one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except MindMergerError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{what} cannot be read ({lines[0][:200]}): is its folder complete?") from None


def _tools() -> dict[str, str]:
    versions = {"mindmerger": str(mindmerger.__version__), "numpy": np.__version__}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
