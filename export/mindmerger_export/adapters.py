"""LoRA adapters of an LLM: our own in GGUF form, and a PEFT folder, which becomes one.

Both end in one form, so that torch, to compare with, and the exported GGUF apply the very same numbers. What this module
does not know: how an adapter is added to weights.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.errors import CheckpointError, InputError
from mindmerger_export.llm_config import read_json
from mindmerger_export.requantise import read_gguf
from mindmerger_train.adapter import MODULES, Pair, write_adapter
from mindmerger_train.checkpoint import Checkpoint

Floats = npt.NDArray[np.float32]

_WEIGHTS = "adapter_model.safetensors"
_KEY = re.compile(
    r"^(?:base_model\.model\.)?(?:model\.)*(layers\.\d+\.[a-z_]+\.[a-z_]+)\.lora_([AB])(?:\.default)?\.weight$"
)
# Options of PEFT under which ΔW is not alpha / r · B A.
_OTHER = ("use_dora", "fan_in_fan_out", "modules_to_save", "layer_replication", "corda_config", "lora_bias")


def adapter_pairs(path: Path) -> dict[str, tuple[Floats, Floats]]:
    """Tensor name → (A, alpha/rank · B) of an adapter in GGUF form. Raises CheckpointError when it is none."""
    from gguf import quants

    reader = read_gguf(path)
    field = reader.get_field("adapter.lora.alpha")
    if field is None:
        raise CheckpointError(f"{path} is not a LoRA adapter in GGUF form")
    halves: dict[str, dict[str, Floats]] = {}
    for tensor in reader.tensors:
        name, _, half = tensor.name.rpartition(".lora_")
        halves.setdefault(name, {})[half] = quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
    alpha = float(field.contents())
    return {
        name: (half["a"], (half["b"] * np.float32(alpha / half["a"].shape[0])).astype(np.float32))
        for name, half in halves.items()
    }


@contextmanager
def adapted(checkpoint: Checkpoint, source: Path | None) -> Iterator[Checkpoint]:
    """`checkpoint` with the adapter at `source` (see `gguf_adapter`) as its LLM's; as it is where that is None.

    Raises InputError when the checkpoint has an adapter already: its merger was trained with that one.
    """
    if source is None:
        yield checkpoint
        return
    if checkpoint.llm.adapter:
        raise InputError(
            "the checkpoint's LLM has an adapter of its own, with which its merger was trained: leave out --llm-adapter"
        )
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as scratch:
        config: Any = None
        if Path(checkpoint.llm.source).is_dir():
            config = AutoConfig.from_pretrained(checkpoint.llm.source, local_files_only=True).get_text_config()
        elif not source.is_file():
            raise InputError(
                "a PEFT adapter needs its LLM as a Hugging Face folder: this checkpoint has it in another form"
            )
        path = gguf_adapter(source, Path(scratch) / "adapter.gguf", config).resolve()
        yield replace(checkpoint, llm=replace(checkpoint.llm, adapter=str(path), adapter_sha256=""))


def gguf_adapter(source: Path, out: Path, config: Any) -> Path:
    """The adapter at `source` in GGUF form: itself if it is one, or `out`, written from a PEFT folder.

    `config` is the LLM's transformers configuration. Raises CheckpointError when it is neither, when its weights are a pickle
    or damaged, or when PEFT would do more with it than add B A.
    """
    if source.is_file() and source.suffix == ".gguf":
        return source
    if not (source / "adapter_config.json").is_file():
        raise CheckpointError(f"{source} is no adapter: expected a .gguf or a PEFT folder with adapter_config.json")
    options = read_json(source / "adapter_config.json")
    used = [name for name in _OTHER if options.get(name)]
    if options.get("peft_type") != "LORA" or used or options.get("bias", "none") != "none":
        raise CheckpointError(
            f"the adapter in {source} is no plain LoRA ({', '.join(used) or options.get('peft_type')}): merge it into the LLM "
            "with PEFT, and export that"
        )
    halves: dict[str, dict[str, Floats]] = {}
    for key, values in _tensors(source).items():
        match = _KEY.match(key)
        if match is None or match[1].split(".", 2)[2] not in MODULES:
            raise CheckpointError(
                f"the adapter in {source} changes {key!r}, which has no form in GGUF adapters: merge it with PEFT"
            )
        halves.setdefault(match[1], {})[match[2]] = values
    pairs: dict[str, Pair] = {}
    for module, half in halves.items():
        if set(half) != {"A", "B"} or half["A"].shape[0] != half["B"].shape[1]:
            raise CheckpointError(f"the adapter in {source} has halves that do not fit for {module}")
        # One alpha for the file: each module's own scale goes into its B.
        pairs[module] = Pair(
            half["A"], half["B"] * np.float32(_scale(options, module, len(half["A"])) * len(half["A"]))
        )
    write_adapter(out, pairs, 1.0, config, source.name)
    return out


def _tensors(folder: Path) -> dict[str, Floats]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / _WEIGHTS
    if not path.is_file():
        pickle = " (its weights are a pickle, which can run code when it is read: save it as safetensors)"
        known = (folder / "adapter_model.bin").is_file()
        raise CheckpointError(f"{path} is missing{pickle if known else ''}")
    try:
        loaded = {key: tensor.float().numpy() for key, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from None
    for key, values in loaded.items():
        if not np.isfinite(values).all():
            raise CheckpointError(f"{path} contains NaN or infinite values ({key})")
    return loaded


def _scale(options: dict[str, Any], module: str, rank: int) -> float:
    """What B A is multiplied by (PEFT, `LoraLayer.update_layer`)."""
    alpha = float(options.get("lora_alpha", 8))
    for pattern, value in (options.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
    return alpha / float(np.sqrt(rank)) if options.get("use_rslora") else alpha / rank
