"""The LLM's LoRA adapter as llama.cpp's own GGUF form, which torch (here) and the runtime both read.

Tensors are `NAME.weight.lora_a` (rank × in) and `NAME.weight.lora_b` (out × rank) under GGUF names. For the architecture
`llama` (Llama, Mistral) the rows of query and key are permuted, as in the LLM's own GGUF: converters store the two halves of
each rotary pair interleaved. Qwen and Gemma keep Hugging Face's order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mindmerger.errors import CheckpointError
from mindmerger_train.files import whole

Matrix = npt.NDArray[np.float32]

# Hugging Face module name within a block → GGUF tensor name within a block.
MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_PERMUTED = ("attn_q", "attn_k")
# Model type → GGUF architecture, which llama.cpp compares with the LLM's before it takes an adapter.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}


@dataclass(frozen=True)
class Pair:
    """One low-rank update in Hugging Face row order: ΔW = scale · b @ a, a (rank, in), b (out, rank)."""

    a: Matrix
    b: Matrix


def permute_rows(rows: Matrix, heads: int) -> Matrix:
    """Hugging Face order of query/key rows → GGUF order, for `heads` heads. (out, k) → (out, k)."""
    out, width = rows.shape
    return rows.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


def unpermute_rows(rows: Matrix, heads: int) -> Matrix:
    """The inverse of `permute_rows`."""
    out, width = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def _heads(config: Any, tensor: str) -> int:
    return int(config.num_attention_heads if tensor == "attn_q" else config.num_key_value_heads)


def _architecture(config: Any) -> str:
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise CheckpointError(
            f"an adapter of a {config.model_type!r} model cannot be written for llama.cpp: known are "
            f"{', '.join(ARCHITECTURES)}"
        )
    return found


def _permuted(config: Any, tensor: str) -> bool:
    return _architecture(config) == "llama" and tensor in _PERMUTED


def check_adaptable(config: Any, keys: Iterable[str]) -> None:
    """Raises CheckpointError when adapters of these modules (`layers.N.self_attn.q_proj` …) cannot be written for this LLM."""
    _architecture(config)
    for key in keys:
        parts = key.split(".", 2)
        if parts[0] != "layers" or len(parts) < 3 or parts[2] not in MODULES:
            raise CheckpointError(f"the module {key!r} of a {config.model_type!r} model has no name in GGUF adapters")


def write_adapter(path: Path, pairs: dict[str, Pair], alpha: float, config: Any, name: str) -> None:
    """Write `pairs` (keys `layers.N.self_attn.q_proj` …) under the LLM's GGUF architecture.

    Q8_0 where every row is a multiple of 32 long (so the rank too), else float16: half the bytes, and what is lost is far
    below what training moves. `config` is the LLM's transformers configuration. Written to a temporary name, then renamed.
    Raises CheckpointError when llama.cpp has no form for it.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    small = all(half.shape[1] % 32 == 0 for pair in pairs.values() for half in (pair.a, pair.b))

    def add(tensor: str, values: Matrix) -> None:
        values = np.ascontiguousarray(values, dtype=np.float32)
        if small:
            packed = quants.quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(tensor, packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(tensor, values.astype(np.float16))

    check_adaptable(config, pairs)
    with whole(path) as part:
        writer = GGUFWriter(part, _architecture(config))
        try:
            writer.add_type("adapter")
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", alpha)
            writer.add_name(name)
            for key, pair in sorted(pairs.items()):
                _, block, module = key.split(".", 2)
                tensor = MODULES[module]
                b = permute_rows(pair.b, _heads(config, tensor)) if _permuted(config, tensor) else pair.b
                add(f"blk.{block}.{tensor}.weight.lora_a", pair.a)
                add(f"blk.{block}.{tensor}.weight.lora_b", b)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def read_adapter(path: Path, config: Any) -> tuple[dict[str, Pair], float]:
    """Read an adapter back into Hugging Face names and row order; returns the pairs and alpha.

    Raises CheckpointError when the file is missing, no adapter, or one of another architecture.
    """
    from gguf import GGUFReader, quants

    if not path.is_file():
        raise CheckpointError(f"the LLM's adapter {path} is missing")
    try:
        reader = GGUFReader(path)
        alpha = float(reader.fields["adapter.lora.alpha"].contents())
        architecture = str(reader.fields["general.architecture"].contents())
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} is not a LoRA adapter in GGUF form ({error})") from error
    if architecture != _architecture(config):
        raise CheckpointError(
            f"{path} is an adapter of the architecture {architecture!r}, this LLM is {_architecture(config)!r}"
        )
    names = {tensor: module for module, tensor in MODULES.items()}
    halves: dict[str, dict[str, Matrix]] = {}
    for entry in reader.tensors:
        _, block, tensor, _, half = entry.name.split(".")
        # Without the copy float values live in the file's memory map.
        values = np.array(quants.dequantize(entry.data, entry.tensor_type), dtype=np.float32)
        if half == "lora_b" and _permuted(config, tensor):
            values = unpermute_rows(values, _heads(config, tensor))
        halves.setdefault(f"layers.{block}.{names[tensor]}", {})[half] = values
    return {key: Pair(half["lora_a"], half["lora_b"]) for key, half in halves.items()}, alpha


def add_adapter(model: nn.Module, path: Path) -> None:
    """Add the adapter's updates to the LLM's weights in place. Raises CheckpointError when shapes do not fit."""
    pairs, alpha = read_adapter(path, model.config)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for key, pair in pairs.items():
            linear = modules.get(f"model.{key}")
            delta = torch.from_numpy((alpha / pair.a.shape[0]) * (pair.b @ pair.a))
            if not isinstance(linear, nn.Linear) or linear.weight.shape != delta.shape:
                raise CheckpointError(f"the adapter {path} does not fit this LLM: {key} differs")
            linear.weight += delta.to(linear.weight.dtype)
