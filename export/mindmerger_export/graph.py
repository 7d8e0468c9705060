"""The merger graph: encoder, mapping and boundary as one ONNX model.

`MergerModule` is what is exported and, in torch, what the exported graph is compared with. The graph is an `onnx_ir`
model until it is saved: its weights are views of torch's memory, so an encoder is never held twice. What this module
does not know: quantisation, vocabularies, LLMs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mindmerger.errors import CheckpointError, ParityError
from mindmerger_train.encoders import Encoder
from mindmerger_train.merger import Merger

GRAPH_FILE = "merger.onnx"
DATA_FILE = "merger.data"
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "soft_prompt"
# com.microsoft's operators ask for nothing newer; 21 is the first in which 4-bit tensors are part of ONNX.
_OPSET = 21


class MergerModule(nn.Module):
    """Token ids in, soft prompt out: (batch, n) int64, (batch, n) int64 → (batch, n + 1, d)."""

    def __init__(self, encoder: Encoder, merger: Merger) -> None:
        super().__init__()
        self.encoder = encoder
        self.merger = merger.eval().requires_grad_(False)
        # The fused attention is traced with guards against rows without any key, twelve dead operators a block. A
        # question has at least one token, and right padding leaves it visible.
        setter = getattr(encoder.model, "set_attn_implementation", None)
        if setter is not None:
            setter("eager")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.merger(self.encoder(input_ids, attention_mask)))


def embedding_table(encoder: Encoder) -> nn.Embedding:
    """The encoder's input embeddings."""
    table = cast(Any, encoder.model).get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise CheckpointError("the encoder has no table of input embeddings: this architecture cannot be exported")
    return table


def encoder_blocks(encoder: Encoder) -> int:
    """How many blocks the encoder has."""
    config = cast(Any, encoder.model).config
    return int(getattr(config, "num_hidden_layers", None) or config.num_layers)


def export_graph(module: MergerModule, metadata: dict[str, str]) -> Any:
    """Trace `module` into an `onnx_ir.Model` with dynamic batch and length.

    Blocks above the highest chosen layer do nothing for the output, so the exporter drops them with their weights.
    """
    # Two of each: a size of one would be traced as a constant. The mask has padding, lest it be folded away.
    ids = torch.ones((2, 3), dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    axes = {0: "batch", 1: "length"}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (ids, mask),
            dynamo=True,
            opset_version=_OPSET,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=dict.fromkeys(INPUTS, axes),
            verbose=False,
        )
    if program is None:
        raise CheckpointError("torch could not export this encoder")
    model = program.model
    _strip(model)
    model.producer_name = "mindmerger"
    model.producer_version = None
    model.doc_string = "MindMerger merger graph: encoder, mapping and boundary row"
    model.graph.name = "merger"
    model.metadata_props.clear()
    model.metadata_props.update({f"mindmerger.{key}": value for key, value in sorted(metadata.items())})
    return model


def _strip(model: Any) -> None:
    """Remove what the exporter notes about its own run: file names and stack traces, nine tenths of the file."""
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
