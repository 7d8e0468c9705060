"""The whole export: checkpoint in, bundle out, and nothing under the final name unless all of it is right.

Everything is written into a hidden folder beside the target, proved there through the runtime, and renamed at the end.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

import mindmerger
from mindmerger.bundle import open_bundle
from mindmerger.errors import CheckpointError, InputError, MindMergerError
from mindmerger.manifest import (
    BakeInfo,
    EncoderInfo,
    FileInfo,
    GateInfo,
    GenerationInfo,
    LLMInfo,
    Manifest,
    PromptInfo,
)
from mindmerger.model import MergedModel
from mindmerger_export import auto_quant, shares, space
from mindmerger_export.adapters import adapted
from mindmerger_export.auto_quant import Bounds, Candidate
from mindmerger_export.foreign import quiet_transformers, reading
from mindmerger_export.graph import (
    MergerModule,
    check_finite,
    check_method,
    embedding_table,
    encoder_blocks,
    export_graph,
    merger_module,
    save_graph,
)
from mindmerger_export.llm import LLM_FILE, LLMFiles, LLMOptions, file_entry, llm_facts, prepare_llm
from mindmerger_export.proof import Subject, prove_answers, prove_rows, write_manifest
from mindmerger_export.quality import Judge
from mindmerger_export.quantise import quantise
from mindmerger_export.report import document_of, write_report
from mindmerger_export.request import AUTO, DEFAULT_MAX_KL, Judged, Request
from mindmerger_export.samples import ANSWERS, SENTENCES
from mindmerger_export.table_bits import TableBits, table_bits
from mindmerger_export.talk import Talk
from mindmerger_export.vocabulary import TOKENIZER_FILE, Vocabulary, check_languages, write_tokenizer
from mindmerger_export.workspace import building, check_free, publish
from mindmerger_train import encoders
from mindmerger_train.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint

__all__ = ["Request", "export_bundle"]

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


def export_bundle(request: Request, talk: Talk | None = None) -> Path:
    """Export and return the bundle's folder. Raises a MindMergerError, and then leaves nothing behind."""
    talk = talk or Talk()
    folder = resolve_checkpoint(request.checkpoint)
    out = (request.out or folder / "bundle").absolute()
    checkpoint = load_checkpoint(folder)
    _check_target(out, request, checkpoint)
    check_method(checkpoint.merger)
    check_languages(request, checkpoint.encoder)
    sizes = space.sizes_of(checkpoint)
    compared = request.compare and (request.llm_type == AUTO or sizes.llm <= space.LARGE)
    needed = space.need(request, sizes, compared)
    space.check_space(needed, out)
    talk(
        f"checkpoint {folder}; about {space.gigabytes(needed.disk)} of disk, {space.gigabytes(needed.memory)} of memory"
    )
    with (
        building(out) as temporary,
        quiet_transformers(),
        adapted(checkpoint, request.llm_adapter) as adapted_checkpoint,
    ):
        _Export(request, adapted_checkpoint, temporary, talk, compared, space.asks_torch(request, needed)).run()
        publish(temporary, out)
    return out


def _check_target(out: Path, request: Request, checkpoint: Checkpoint) -> None:
    adapter = checkpoint.adapter_path()
    if out.is_dir() and adapter is not None and adapter.resolve().parent == out.resolve():
        if request.llm != "package" or request.llm_gguf is not None:
            # A published checkpoint and its bundle share one adapter; a bundle that embeds its LLM would take it away.
            raise InputError(
                f"the checkpoint keeps its LLM's adapter in {out}: use --llm package, or give another --out"
            )
        if [entry.resolve() for entry in out.iterdir()] == [adapter.resolve()]:
            return  # published and not yet exported: the new bundle brings the same adapter
    check_free(out, request.force)


class _Export:
    """One export into `folder`, step by step."""

    def __init__(
        self, request: Request, checkpoint: Checkpoint, folder: Path, talk: Talk, compared: bool, asks_torch: bool
    ) -> None:
        self.request = request
        self.checkpoint = checkpoint
        self.folder = folder
        self.talk = talk
        self.compared = compared
        self.asks_torch = asks_torch
        self.report: dict[str, Any] = {"precision": request.precision}

    def run(self) -> None:
        request, checkpoint, folder, talk = self.request, self.checkpoint, self.folder, self.talk
        # The LLM first: most of what can be wrong with the request shows here, before anything slow.
        talk("preparing the LLM")
        auto = request.llm_type == AUTO
        kind = auto_quant.REFERENCE if auto else request.llm_type
        llm_files = prepare_llm(
            checkpoint,
            folder,
            request.llm,
            kind,
            request.llm_gguf,
            LLMOptions(request.tensor_types, request.exact_ids),
            talk,
        )
        self.report["llm_conversion"] = llm_files.report
        talk(f"loading the encoder {checkpoint.encoder.name}")
        with reading("the encoder"):
            encoder = encoders.load_encoder(checkpoint.encoder)
        check_finite(encoder)
        rows = embedding_table(encoder).num_embeddings
        vocabulary = write_tokenizer(request, checkpoint.encoder, rows, folder, talk)
        module = merger_module(encoder, checkpoint.merger, llm_facts(llm_files.gguf).embedding_scale)
        graph_files = self._write_graph(module, vocabulary)
        manifest = self._manifest(module, vocabulary, graph_files, llm_files)
        self.report["llm"] = llm_files.kind
        if vocabulary.report is not None:
            self.report["vocabulary"] = vocabulary.report
        subject = Subject(request, checkpoint, module, vocabulary, folder, talk)
        manifest = prove_rows(subject, manifest, self.report)
        candidates: list[Candidate] = []
        if auto:
            llm_files, candidates = self._choose(manifest)
            rest = tuple(entry for entry in manifest.files if entry.role != "llm")
            manifest = replace(manifest, files=(*rest, *llm_files.entries))
            self.report["llm"] = llm_files.kind
            write_manifest(manifest, folder)
        else:
            candidates, reason = self._compare(manifest, llm_files)
            if reason:
                talk.lines([f"mm-export: {reason}"])
                self.report["llm_types"] = {"left_out": reason}
        if candidates:
            self.report["llm_types"] = auto_quant.report_of(candidates, llm_files.kind if auto else None)
        cost: dict[str, Any] = {}

        def look(model: MergedModel) -> None:
            if request.compare:
                talk("measuring what encoder and merger cost")
                cost.update(memory=shares.memory(model), measured=shares.latency(model, request.golden))

        manifest = prove_answers(subject, manifest, llm_files.kind, self.asks_torch, self.report, look)
        write_manifest(manifest, folder)
        write_report(document_of(manifest, cost.get("memory"), cost.get("measured")), folder)

    def _write_graph(self, module: MergerModule, vocabulary: Vocabulary) -> list[FileInfo]:
        checkpoint, request = self.checkpoint, self.request
        table = self._table_bits(module)
        self.talk("exporting the merger graph")
        encoder = cast(Any, module.encoder.model)
        whole = embedding_table(module.encoder)
        if vocabulary.keep is not None:
            rows = whole.weight.detach()[torch.from_numpy(vocabulary.keep)]
            encoder.set_input_embeddings(table_like(whole, rows))
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
                self.talk(f"quantising the graph to {request.precision}")
            done = quantise(model, request.precision, talk=self.talk, table_bits=table.bits)
            self.report["quantisation"] = done.to_json() | table.to_json()
            paths = save_graph(model, self.folder)
        finally:
            # What the graph is compared with is the encoder with its whole vocabulary, not the one that was sliced.
            encoder.set_input_embeddings(whole)
        roles = ("merger", "merger-data")
        return [file_entry(role, path) for role, path in zip(roles, paths, strict=False)]

    def _table_bits(self, module: MergerModule) -> TableBits:
        """w8 has a 4-bit table where the rows stay near enough: seen on every third of the sentences that are compared."""
        if self.request.precision != "w8":
            return TableBits({"fp32": 32, "w4": 4}[self.request.precision])
        self.talk("measuring what a table in 4 bits costs")
        tokenizer = encoders.load_tokenizer(self.checkpoint.encoder)
        return table_bits(module, [tokenizer.encode(text).ids for text in list(SENTENCES.values())[::3]])

    def _manifest(
        self, module: MergerModule, vocabulary: Vocabulary, graph_files: list[FileInfo], llm_files: LLMFiles
    ) -> Manifest:
        checkpoint, request = self.checkpoint, self.request
        facts = llm_facts(llm_files.gguf)
        if facts.width != checkpoint.llm.width:
            raise CheckpointError(
                f"the LLM has width {facts.width} and the checkpoint's merger was trained for {checkpoint.llm.width}"
            )
        encoder, prompt = checkpoint.encoder, checkpoint.prompt
        return Manifest(
            name=checkpoint.name,
            method=checkpoint.method,
            languages=tuple(sorted(request.languages or checkpoint.languages)),
            encoder=EncoderInfo(
                name=encoder.name,
                architecture=encoder.architecture,
                width=encoder.width,
                layers=encoder.layers or (encoder_blocks(module.encoder),),
                combine="concat",
                max_tokens=encoder.max_tokens,
                parameters=sum(parameter.numel() for parameter in module.encoder.model.parameters()),
                licence=encoder.licence,
                vocabulary=vocabulary.rows,
                frames=vocabulary.frames or {},
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
            prompt=PromptInfo(
                prompt.template,
                prompt.bos_id,
                prompt.stop_ids,
                prompt.before_ids,
                prompt.after_ids,
                llm_files.normaliser,
                prompt.digits,
            ),
            files=(*graph_files, file_entry("tokenizer", self.folder / TOKENIZER_FILE), *llm_files.entries),
            generation=GenerationInfo(256, 0.0, checkpoint.calculator),
            gate=_gate_info(checkpoint),
            bake=None if llm_files.bake is None else BakeInfo(llm_files.bake),
            tools=_tools(),
        )

    # ------------------------------------------------------------------------------------------ types of the LLM

    def _judge(self, manifest: Manifest) -> Judge:
        questions = self.request.judged or tuple(
            Judged(language, question, ANSWERS.get(question)) for language, question in self.request.golden
        )
        return Judge(self.folder, manifest, questions, self.talk)

    def _write_llm(self, kind: str, folder: Path) -> Path:
        options = LLMOptions(self.request.tensor_types, self.request.exact_ids)
        files = prepare_llm(self.checkpoint, folder, "embed", kind, None, options)
        return files.gguf

    def _choose(self, manifest: Manifest) -> tuple[LLMFiles, list[Candidate]]:
        request, folder = self.request, self.folder
        others = sum(entry.bytes for entry in manifest.files if entry.role != "llm" and entry.package is None)
        bounds = Bounds(
            kl=DEFAULT_MAX_KL if request.max_kl is None else request.max_kl,
            llm_bytes=None if request.max_bytes is None else request.max_bytes - others,
        )
        kind, candidates = auto_quant.choose(self._judge(manifest), self._write_llm, folder, bounds, self.talk)
        path = folder / LLM_FILE
        return LLMFiles((file_entry("llm", path),), path, None, kind), candidates

    def _compare(self, manifest: Manifest, llm_files: LLMFiles) -> tuple[list[Candidate], str]:
        """The LLM beside its F16, or why that is left out."""
        if not self.request.compare:
            return [], "the LLM's type was not compared with F16: --no-compare was given"
        if not self.compared:
            return [], (
                f"the LLM's type was not compared with F16: above {space.LARGE // 10**9} billion parameters this takes minutes "
                "a question on a small machine (--quant auto compares all the same)"
            )
        if llm_files.kind == auto_quant.REFERENCE:
            return [], "the LLM is F16 itself: there is nothing to compare it with"
        try:
            gguf = open_bundle(self.folder).llm()
            judge = self._judge(manifest)
            return auto_quant.compare(judge, self._write_llm, self.folder, gguf, llm_files.kind, self.talk), ""
        except MindMergerError as error:
            if self.request.llm_gguf is None:
                raise
            # A ready GGUF may be of a family that cannot be written here: then there is nothing to compare it with.
            return [], f"the LLM's type was not compared with F16, which could not be made: {error}"


def table_like(whole: nn.Embedding, rows: torch.Tensor) -> nn.Embedding:
    """The same kind of table (M2M100's scales what it looks up) with other rows."""
    table = type(whole).__new__(type(whole))
    nn.Module.__init__(table)
    table.__dict__.update({key: value for key, value in whole.__dict__.items() if not key.startswith("_")})
    table.num_embeddings, table.padding_idx = len(rows), None
    table.weight = nn.Parameter(rows, requires_grad=False)
    return table


def _gate_info(checkpoint: Checkpoint) -> GateInfo | None:
    gate = checkpoint.merger.gate
    if gate is None:
        return None
    return GateInfo(gate.spec.languages, gate.spec.granularity, gate.spec.language_input)


def _tools() -> dict[str, str]:
    versions = {"mindmerger": str(mindmerger.__version__), "numpy": np.__version__}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
