"""The weights of a Hugging Face LLM as GGUF tensors: names, order of rows, and what each family stores otherwise.

Reads safetensors alone, through maps of the files, in slices. A pickle is refused: reading one runs what is in it. What this
module does not know: hyperparameters' keys, tokenizers, quantisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mindmerger.errors import CheckpointError
from mindmerger_export.llm_config import LLMConfig, read_json
from mindmerger_export.streaming import Plan, fitting
from mindmerger_train.adapter import permute_rows

Floats = npt.NDArray[np.float32]

_INDEX = "model.safetensors.index.json"
_DTYPES = ("F64", "F32", "F16", "BF16")
# Parts of a model that also sees, and what older files keep that can be computed.
_LEFT_OUT = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


@dataclass(frozen=True)
class Stored:
    """One tensor of a file, not read yet."""

    key: str
    file: Path
    handle: Any
    shape: tuple[int, ...]
    dtype: str

    def rows(self, start: int, stop: int) -> Floats:
        """Rows of a matrix, or the one row of a vector, in float32."""
        from safetensors import SafetensorError

        try:
            part = self.handle.get_slice(self.key)
            tensor = part[:] if len(self.shape) == 1 else part[start:stop]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.file} is damaged ({error})") from None
        return cast(Floats, tensor.float().numpy())


def stored_tensors(folder: Path) -> list[Stored]:
    """Every tensor of a Hugging Face folder, from its shards or its single file.

    Raises CheckpointError when there are no safetensors (a pickle is refused by name), a shard is missing or damaged, or a
    tensor is quantised.
    """
    found: list[Stored] = []
    for file, keys in _files(folder):
        handle = _open(file)
        for key in sorted(handle.keys()) if keys is None else sorted(keys):
            try:
                part = handle.get_slice(key)
            except Exception as error:
                raise CheckpointError(f"{file} lacks the tensor {key!r}, which {_INDEX} promises ({error})") from None
            stored = Stored(key, file, handle, tuple(part.get_shape()), str(part.get_dtype()))
            if stored.dtype not in _DTYPES:
                raise CheckpointError(
                    f"{file} has weights of type {stored.dtype} ({key}): take the original, unquantised ones"
                )
            found.append(stored)
    return found


def _files(folder: Path) -> Iterator[tuple[Path, list[str] | None]]:
    """Files and the tensors to take from each (None: all)."""
    if (folder / _INDEX).is_file():
        where = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise CheckpointError(f"{folder / _INDEX} has no weight_map")
        for name in sorted(set(where.values())):
            if Path(name).name != name:
                raise CheckpointError(f"{folder / _INDEX} names a file outside its folder ({name!r})")
            yield folder / name, [key for key, file in where.items() if file == name]
        return
    single = folder / "model.safetensors"
    # Mistral's folders have the same weights a second time under other names.
    loose = [
        file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith(("consolidated", "adapter"))
    ]
    files = [single] if single.is_file() else loose
    if not files:
        pickles = [path.name for ending in ("*.bin", "*.pth", "*.pt") for path in sorted(folder.glob(ending))]
        if pickles:
            raise CheckpointError(
                f"{folder} has its weights as a pickle ({pickles[0]}), which can run code when it is read: "
                "save the LLM as safetensors"
            )
        raise CheckpointError(f"{folder} has no .safetensors files: its weights are missing")
    for file in files:
        yield file, None


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return cast(Any, safe_open)(file, framework="pt").__enter__()
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing: the LLM's folder is not complete") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file ({error})") from None


def is_half(tensors: list[Stored]) -> bool:
    """Whether every matrix is in bfloat16, which float16 could not hold."""
    return all(stored.dtype == "BF16" for stored in tensors if len(stored.shape) > 1)


def plan_tensors(config: LLMConfig, tensors: list[Stored], type: Any) -> list[Plan]:
    """The GGUF's tensors in the order of its names: matrices in `type`, vectors in float32.

    Raises CheckpointError for a tensor that the architecture does not have, and for one that is missing.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map

    architecture = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES.get(arch) == config.architecture)
    names = get_tensor_name_map(architecture, config.blocks)
    plans: dict[str, Plan] = {}
    for stored in tensors:
        key = stored.key.replace("language_model.model.", "model.").replace("model.language_model.", "model.")
        key = key.removeprefix("language_model.")
        if stored.key.startswith(_LEFT_OUT) or key.endswith("rotary_emb.inv_freq"):
            continue
        if config.tied and key == "lm_head.weight":
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None or len(stored.shape) > 2:
            raise CheckpointError(
                f"{stored.file} has a tensor {stored.key!r} that a {config.architecture} does not have"
            )
        kind = GGMLQuantizationType.F32 if len(stored.shape) == 1 else fitting(type, stored.shape[1])
        plans[name] = _changed(config, Plan(name, stored.shape, kind, stored.rows))
    if config.rope.factors is not None:
        factors = config.rope.factors
        plans["rope_freqs.weight"] = Plan(
            "rope_freqs.weight", (len(factors),), GGMLQuantizationType.F32, lambda _start, _stop: factors
        )
    _check_whole(config, plans)
    return [plans[name] for name in sorted(plans, key=_order)]


def _changed(config: LLMConfig, plan: Plan) -> Plan:
    """`plan` with what llama.cpp expects otherwise than transformers."""
    part = plan.name.split(".")[-2]
    vector = len(plan.shape) == 1
    read = plan.rows
    if config.permuted and part in ("attn_q", "attn_k"):
        size = config.head_width

        def permuted(start: int, stop: int) -> Floats:
            rows = read(start, stop)
            matrix = rows.reshape(-1, 1) if vector else rows
            return np.ascontiguousarray(permute_rows(matrix, len(matrix) // size)).reshape(rows.shape)

        return Plan(plan.name, plan.shape, plan.type, permuted, size)
    shift = 1.0 if config.shifted_norms and part.endswith("norm") else 0.0
    # Gemma 3 normalises its queries, so that only the norm can hold the factor; Gemma 2 does not.
    scaled = part == ("attn_q_norm" if config.architecture == "gemma3" else "attn_q")
    factor = np.float32(config.query_factor if scaled else 1.0)
    if not shift and factor == 1.0:
        return plan

    def changed(start: int, stop: int) -> Floats:
        return np.asarray((read(start, stop) + np.float32(shift)) * factor, dtype=np.float32)

    return Plan(plan.name, plan.shape, plan.type, changed)


def _check_whole(config: LLMConfig, plans: dict[str, Plan]) -> None:
    """Raises CheckpointError when a matrix that every family has is missing or has another size than the configuration."""
    heads, kv, width = config.heads * config.head_width, config.kv_heads * config.head_width, config.width
    wanted = {"token_embd": (config.vocabulary, width), "output_norm": (width,)}
    if not config.tied:
        wanted["output"] = (config.vocabulary, width)
    for block in range(config.blocks):
        parts = {
            "attn_norm": (width,),
            "attn_q": (heads, width),
            "attn_k": (kv, width),
            "attn_v": (kv, width),
            "attn_output": (width, heads),
            "ffn_norm": (width,),
            "ffn_gate": (config.feed_forward, width),
            "ffn_up": (config.feed_forward, width),
            "ffn_down": (width, config.feed_forward),
        }
        wanted |= {f"blk.{block}.{part}": shape for part, shape in parts.items()}
    for name, shape in wanted.items():
        plan = plans.get(f"{name}.weight")
        if plan is None or plan.shape != shape:
            found = "is missing" if plan is None else f"has the shape {plan.shape}"
            raise CheckpointError(f"the LLM's weights do not fit its config.json: {name} {found}, expected {shape}")


def _order(name: str) -> tuple[int, str]:
    """Embeddings, blocks by number, then the rest: neighbours in the file are neighbours in use."""
    parts = name.split(".")
    if parts[0] == "blk":
        return int(parts[1]) + 1, name
    return (0 if parts[0] in ("token_embd", "rope_freqs") else 1 << 30), name
