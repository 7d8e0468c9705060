"""The merger graph: encoder, mapping, boundary and, for ST-Merge, the gate as one ONNX model.

A `MergerModule` is what is exported and, in torch, what the exported graph is compared with. The graph is an `onnx_ir`
model until it is saved: its weights are views of torch's memory, so an encoder is never held twice. What this module
does not know: quantisation, vocabularies, LLMs.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mindmerger.errors import CheckpointError, ParityError
from mindmerger.graph import GATE_INPUTS, GATE_OUTPUTS, INPUTS, OUTPUT
from mindmerger_train.encoders import Encoder
from mindmerger_train.gate import Gate
from mindmerger_train.merger import Merger

GRAPH_FILE = "merger.onnx"
DATA_FILE = "merger.data"
# com.microsoft's operators ask for nothing newer; 21 is the first in which 4-bit tensors are part of ONNX.
_OPSET = 21


class MergerModule(nn.Module):
    """Token ids in, soft prompt out: (batch, n) int64, (batch, n) int64 → (batch, n + 1, d).

    `embedding_scale`: what the LLM multiplies token embeddings by before its first block (√d for Gemma, which transformers
    does inside the embedding layer, so that the merger is trained on multiplied rows). What goes in and out here are rows as
    they are in the LLM's table, whatever the LLM.
    """

    def __init__(self, encoder: Encoder, merger: Merger, embedding_scale: float = 1.0) -> None:
        super().__init__()
        self.embedding_scale = embedding_scale
        self.encoder = encoder
        self.merger = merger.eval().requires_grad_(False)
        # The fused attention is traced with guards against rows without any key, twelve dead operators a block. A
        # question has at least one token, and right padding leaves it visible.
        setter = getattr(encoder.model, "set_attn_implementation", None)
        if setter is not None:
            setter("eager")

    @property
    def width(self) -> int:
        """The LLM's width."""
        return int(self.merger.end_boundary.shape[-1])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self._as_in_table(self.merger(self.encoder(input_ids, attention_mask)))

    def _as_in_table(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.embedding_scale == 1.0 else rows / self.embedding_scale


class GatedModule(MergerModule):
    """With ST-Merge's gate: two more outputs of weights, and the language distribution. Shapes are in docs/bundle.md."""

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        prompt_embeddings: torch.Tensor,
        prompt_mask: torch.Tensor,
        language: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        states = self.encoder(input_ids, attention_mask)
        soft = self.merger(states)
        gate = cast(Gate, self.merger.gate)
        prompt = prompt_embeddings if self.embedding_scale == 1.0 else prompt_embeddings * self.embedding_scale
        weights = gate(states, attention_mask, soft[:, :-1], prompt, prompt_mask, language)
        return self._as_in_table(soft), weights.encoder, weights.llm, weights.language


def check_method(merger: Merger) -> None:
    """Raises CheckpointError for `mono`, which merges nothing."""
    if merger.method == "mono":
        raise CheckpointError(
            "a checkpoint of method mono is the LLM alone: there is nothing to merge and no bundle to export; take its LLM's "
            "GGUF as it is, or, to pair it with a merger, export that merger's checkpoint with --llm-gguf"
        )


def merger_module(encoder: Encoder, merger: Merger, embedding_scale: float = 1.0) -> MergerModule:
    """The module of a merger of any method that merges."""
    return (MergerModule if merger.gate is None else GatedModule)(encoder, merger, embedding_scale)


def embedding_table(encoder: Encoder) -> nn.Embedding:
    """The encoder's input embeddings."""
    table = cast(Any, encoder.model).get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise CheckpointError("the encoder has no table of input embeddings: this architecture cannot be exported")
    return table


def check_finite(encoder: Encoder) -> None:
    """Raises CheckpointError for weights that are no numbers: ONNX Runtime's softmax may hide them."""
    for name, parameter in encoder.model.named_parameters():
        # A few rows at a time: the table alone has half a billion weights.
        for rows in torch.split(parameter.detach(), 100_000):
            if not torch.isfinite(rows).all():
                raise CheckpointError(
                    f"the encoder's weights contain NaN or infinite values ({name}): its files are damaged"
                )


def encoder_blocks(encoder: Encoder) -> int:
    """How many blocks the encoder has."""
    config = cast(Any, encoder.model).config
    return int(getattr(config, "num_hidden_layers", None) or config.num_layers)


def export_graph(module: MergerModule, metadata: dict[str, str]) -> Any:
    """Trace `module` into an `onnx_ir.Model` with dynamic batch and length.

    Blocks above the highest chosen layer do nothing for the output, so the exporter drops them with their weights.
    """
    inputs, axes, outputs = _example(module)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=_OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=axes,
            verbose=False,
        )
    if program is None:
        raise CheckpointError("torch could not export this encoder")
    model = program.model
    _strip(model)
    model.producer_name = "mindmerger"
    model.producer_version = None
    parts = (
        "encoder, mapping and boundary row" if module.merger.gate is None else "encoder, mapping, boundary row and gate"
    )
    model.doc_string = f"MindMerger merger graph: {parts}"
    model.graph.name = "merger"
    model.metadata_props.clear()
    model.metadata_props.update({f"mindmerger.{key}": value for key, value in sorted(metadata.items())})
    return model


def _example(module: MergerModule) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]], tuple[str, ...]]:
    """Inputs to trace with, their dynamic axes, and the names of the outputs.

    Two of each size at least: a size of one would be traced as a constant. Masks have padding, lest they be folded away.
    """
    inputs = {
        "input_ids": torch.ones((2, 3), dtype=torch.int64),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    axes = {name: {0: "batch", 1: "length"} for name in INPUTS}
    gate = module.merger.gate
    if gate is None:
        return inputs, axes, (OUTPUT,)
    inputs["prompt_embeddings"] = torch.ones((2, 4, gate.query.in_features))
    inputs["prompt_mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    inputs["language"] = gate.spec.distribution([None, "unknown"])
    axes |= {name: {0: "batch", 1: "prompt_length"} for name in ("prompt_embeddings", "prompt_mask")}
    axes["language"] = {0: "batch"}
    assert tuple(inputs) == GATE_INPUTS
    return inputs, axes, GATE_OUTPUTS


def _strip(model: Any) -> None:
    """Remove what the exporter notes about its own run: file names and stack traces, nine tenths of the file.

    The matrices of the gate are told apart by these notes; their nodes take the names of their modules before.
    """
    for node in model.graph:
        # The exporter's own notation: "['', 'merger.gate', 'merger.gate.query', 'linear_15']"
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        if node.op_type == "MatMul" and "merger.gate" in scopes[:-1]:
            node.name = f"{scopes[-2].removeprefix('merger.')}.{scopes[-1]}"
    for function in model.functions.values():
        function.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def save_graph(model: Any, folder: Path) -> list[Path]:
    """Write `merger.onnx` and `merger.data` into `folder`, check them, and return both paths."""
    import onnx
    import onnx_ir as ir

    path, data = folder / GRAPH_FILE, folder / DATA_FILE
    ir.save(model, path, external_data=DATA_FILE, size_threshold_bytes=256)
    try:
        # By path: a model with its weights may be larger than a protobuf message can be.
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ParityError(f"the exported graph is not valid ONNX ({str(error).splitlines()[0]})") from None
    return [path, data] if data.is_file() else [path]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's advice about its own internals off the user's stderr."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
