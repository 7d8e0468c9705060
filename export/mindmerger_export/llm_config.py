"""The configuration of a Hugging Face LLM → the hyperparameters of its GGUF.

What llama.cpp cannot compute is refused here by name, before anything is written: a GGUF that leaves it out would answer
wrongly in silence. What this module does not know: weights, tokenizers, adapters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.errors import CheckpointError
from mindmerger_train.adapter import ARCHITECTURES

Floats = npt.NDArray[np.float32]

# Model type of config.json → how it is called in front of people.
FAMILIES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 3",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "gemma3": "Gemma 3",
}
_GEMMAS = ("gemma", "gemma2", "gemma3")
# llama.cpp takes the width over the heads for the attention scale of the 27B models, which it knows by their blocks, and
# the width of a head for all others.
_BLOCKS_OF_27B = {"gemma2": 46, "gemma3": 62}
# Every so many blocks, the last attends to all positions and the others through a window.
_WINDOW_PERIOD = {"gemma2": 2, "gemma3": 6}
_FALLBACK_ADVICE = "give a ready GGUF with --llm-gguf"


@dataclass(frozen=True)
class Rope:
    """Rotary positions: `scaling` is none, linear or yarn; `factors` divide the frequencies of Llama 3 (head width / 2)."""

    base: float
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    local_base: float | None = None
    factors: Floats | None = None


@dataclass(frozen=True)
class LLMConfig:
    """What a GGUF has to be told about an LLM.

    `query_factor`: what queries are multiplied by, because llama.cpp's attention scale is not this LLM's. `stop_ids`: the ids
    that end an answer, the first of them EOS.
    """

    source: Any
    architecture: str
    blocks: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    context: int
    epsilon: float
    tied: bool
    rope: Rope
    stop_ids: tuple[int, ...] = ()
    window: int | None = None
    window_period: int | None = None
    query_factor: float = 1.0
    attention_cap: float | None = None
    final_cap: float | None = None

    @property
    def permuted(self) -> bool:
        """Whether llama.cpp wants the rows of query and key with the halves of each rotary pair interleaved."""
        return self.architecture == "llama"

    @property
    def shifted_norms(self) -> bool:
        """Whether the norms' weights are stored as their distance from 1."""
        return self.architecture in _GEMMAS

    def add_to(self, writer: Any) -> None:
        """Write the hyperparameters to a `gguf.GGUFWriter`."""
        from gguf import RopeScalingType

        writer.add_context_length(self.context)
        writer.add_embedding_length(self.width)
        writer.add_block_count(self.blocks)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head_width)
        writer.add_value_length(self.head_width)
        writer.add_layer_norm_rms_eps(self.epsilon)
        writer.add_vocab_size(self.vocabulary)
        writer.add_rope_dimension_count(self.head_width)
        writer.add_rope_freq_base(self.rope.base)
        if self.rope.scaling != "none":
            writer.add_rope_scaling_type(RopeScalingType(self.rope.scaling))
            writer.add_rope_scaling_factor(self.rope.factor)
        if self.rope.scaling == "yarn":
            writer.add_rope_scaling_orig_ctx_len(self.rope.original_context)
            if self.rope.attention_factor != 1.0:
                writer.add_rope_scaling_attn_factors(self.rope.attention_factor)
        if self.rope.local_base is not None:
            writer.add_rope_freq_base_swa(self.rope.local_base)
        if self.window is not None and self.window_period is not None:
            writer.add_sliding_window(self.window)
            writer.add_sliding_window_pattern(self.window_period)
        if self.attention_cap is not None:
            writer.add_attn_logit_softcapping(self.attention_cap)
        if self.final_cap is not None:
            writer.add_final_logit_softcapping(self.final_cap)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError when it is missing or something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: {path.parent} is not a whole Hugging Face folder of an LLM"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return document


def read_config(folder: Path) -> LLMConfig:
    """Read `folder / "config.json"`.

    Raises CheckpointError for an architecture that is not supported (naming those that are), and for what llama.cpp does not
    compute.
    """
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        known = ", ".join(dict.fromkeys(FAMILIES.values()))
        raise CheckpointError(
            f"the LLM's architecture {kind!r} cannot be written as GGUF; supported: {known} ({', '.join(FAMILIES)}); "
            f"or {_FALLBACK_ADVICE}"
        )
    if raw.get("quantization_config"):
        raise CheckpointError(
            f"the LLM in {folder} is quantised already: take its original weights, or {_FALLBACK_ADVICE}"
        )
    from transformers import AutoConfig

    try:
        # transformers knows the defaults that a config.json leaves out, and is what torch runs the LLM with.
        config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        return _converted(config, ARCHITECTURES[config.model_type], _stop_ids(folder, config))
    except CheckpointError:
        raise
    except Exception as error:  # transformers checks a configuration in many ways of its own
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder / 'config.json'} lacks or misstates something ({line[:200]})") from None


def _converted(config: Any, architecture: str, stop_ids: tuple[int, ...]) -> LLMConfig:
    heads, width, blocks = int(config.num_attention_heads), int(config.hidden_size), int(config.num_hidden_layers)
    head_width = int(getattr(config, "head_dim", None) or width // heads)
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    wanted = ("gelu_pytorch_tanh", "gelu") if architecture in _GEMMAS else ("silu",)
    _demand(activation in wanted, f"uses the activation {activation!r}")
    _demand(not getattr(config, "use_bidirectional_attention", None), "attends in both directions")
    tied = bool(config.tie_word_embeddings)
    _demand(tied or architecture not in _GEMMAS, "is a Gemma with an output matrix of its own")
    context = int(config.max_position_embeddings)
    window, period = _window(config, architecture, blocks)
    if window is not None and period is None:
        # llama.cpp has no window for these, and none is needed while all positions fit into one.
        context, window = min(context, window), None
    scalar = getattr(config, "query_pre_attn_scalar", None)
    implied = width // heads if _BLOCKS_OF_27B.get(architecture) == blocks else head_width
    caps = (getattr(config, "attn_logit_softcapping", None), getattr(config, "final_logit_softcapping", None))
    _demand(all(caps) if architecture == "gemma2" else not any(caps), "caps its logits otherwise than its family")
    return LLMConfig(
        source=config,
        architecture=architecture,
        blocks=blocks,
        width=width,
        feed_forward=int(config.intermediate_size),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_width=head_width,
        vocabulary=int(config.vocab_size),
        context=context,
        epsilon=float(config.rms_norm_eps),
        tied=tied,
        rope=_rope(config, architecture, head_width),
        stop_ids=stop_ids,
        window=window,
        window_period=period,
        query_factor=math.sqrt(implied / scalar) if scalar and architecture in _BLOCKS_OF_27B else 1.0,
        attention_cap=None if caps[0] is None else float(caps[0]),
        final_cap=None if caps[1] is None else float(caps[1]),
    )


def _demand(fulfilled: bool, what: str) -> None:
    if not fulfilled:
        raise CheckpointError(f"the LLM {what}, which cannot be written as GGUF: {_FALLBACK_ADVICE}")


def _window(config: Any, architecture: str, blocks: int) -> tuple[int | None, int | None]:
    """The attention window and the period of blocks in which all but the last have it (None: llama.cpp has no window)."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    windowed = [kind == "sliding_attention" for kind in kinds] if kinds else [bool(window)] * blocks
    if not window or not any(windowed):
        return None, None
    if architecture not in _WINDOW_PERIOD:
        return int(window), None
    for period in (_WINDOW_PERIOD[architecture], *range(2, blocks + 2)):
        if windowed == [block % period < period - 1 for block in range(blocks)]:
            return int(window), period
    raise CheckpointError(f"the LLM's attention windows follow no period: {_FALLBACK_ADVICE}")


def _rope(config: Any, architecture: str, head_width: int) -> Rope:
    parameters: Mapping[str, Any] = config.rope_parameters
    local: Mapping[str, Any] = {}
    if "full_attention" in parameters:
        parameters, local = parameters["full_attention"], parameters.get("sliding_attention") or {}
        _demand(local.get("rope_type", "default") == "default", "scales the rotary positions inside its windows")
    base = float(parameters["rope_theta"])
    local_base = float(local["rope_theta"]) if local else None
    _demand(float(parameters.get("partial_rotary_factor") or 1.0) == 1.0, "rotates a part of each head only")
    kind = parameters.get("rope_type", "default")
    if kind in ("default", "dynamic"):  # dynamic scaling begins beyond the context that is offered
        return Rope(base, local_base=local_base)
    factor = float(parameters["factor"])
    original = int(parameters.get("original_max_position_embeddings") or config.max_position_embeddings)
    if kind == "linear":
        return Rope(base, "linear", factor, local_base=local_base)
    if kind == "yarn":
        odd = [name for name in ("mscale", "mscale_all_dim") if parameters.get(name)]
        # llama.cpp's contexts have their own betas, whatever a file says.
        betas = (float(parameters.get("beta_fast") or 32.0), float(parameters.get("beta_slow") or 1.0))
        usual = not odd and betas == (32.0, 1.0) and parameters.get("truncate", True)
        _demand(usual, "has a variant of YaRN's positions")
        given = parameters.get("attention_factor")
        return Rope(
            base,
            "yarn",
            factor,
            original,
            # llama.cpp multiplies by what YaRN's authors recommend, whatever it is told.
            1.0 if given is None else float(given) / (0.1 * math.log(factor) + 1.0),
            local_base=local_base,
        )
    _demand(kind == "llama3" and architecture == "llama", f"scales its rotary positions by {kind!r}")
    return Rope(base, factors=_llama3_factors(parameters, base, factor, original, head_width))


def _llama3_factors(
    parameters: Mapping[str, Any], base: float, factor: float, original: int, head_width: int
) -> Floats:
    """What each frequency is divided by (transformers, modeling_rope_utils, `_compute_llama3_parameters`)."""
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    wavelengths = 2 * math.pi * base ** (np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def _stop_ids(folder: Path, config: Any) -> tuple[int, ...]:
    """All ids that end an answer: the configuration's and those of generation_config.json, which for chat models has more."""
    found: list[int] = []
    path = folder / "generation_config.json"
    for value in (config.eos_token_id, read_json(path).get("eos_token_id") if path.is_file() else None):
        found += [int(item) for item in (value if isinstance(value, list) else [value]) if item is not None]
    return tuple(dict.fromkeys(found))
