"""A Hugging Face folder of an LLM → GGUF in float32, through `gguf`'s writer and its map of tensor names.

Today: the architecture `llama` with a byte-level BPE tokenizer. Tensors are read one at a time. What this module does not
know: adapters, quantisation, bundles.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mindmerger.errors import CheckpointError
from mindmerger_train.adapter import permute_rows

SUPPORTED = ("llama",)
# How a tokenizer splits text before its merges → the name that llama.cpp has for it.
_DIGIT_SPLIT = r"\p{N}{1,3}"


def write_gguf(folder: Path, out: Path, name: str) -> None:
    """Write the LLM of `folder` to `out`, every tensor in float32.

    Raises CheckpointError for an unknown architecture or tokenizer, and for missing or damaged files.
    """
    from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map

    config = _json(folder / "config.json")
    if config.get("model_type") not in SUPPORTED:
        raise CheckpointError(
            f"the LLM's architecture {config.get('model_type')!r} cannot be written as GGUF; supported: "
            f"{', '.join(SUPPORTED)} (or give a ready GGUF with --llm-gguf)"
        )
    if config.get("rope_scaling") or (config.get("rope_parameters") or {}).get("rope_type", "default") != "default":
        raise CheckpointError("the LLM scales its rotary positions, which this version cannot write: use --llm-gguf")
    writer = GGUFWriter(out, "llama")
    try:
        writer.add_name(name)
        _add_sizes(writer, config)
        _add_tokenizer(writer, folder, config)
        names = get_tensor_name_map(MODEL_ARCH.LLAMA, int(config["num_hidden_layers"]))
        tied = bool(config.get("tie_word_embeddings"))
        for key, tensor in _tensors(folder):
            if key.endswith("rotary_emb.inv_freq") or (tied and key == "lm_head.weight"):
                continue
            target = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise CheckpointError(f"the LLM in {folder} has a tensor {key!r} that a Llama does not have")
            if key.endswith(("q_proj.weight", "k_proj.weight")):
                heads = config["num_attention_heads"]
                if key.endswith("k_proj.weight"):
                    heads = config.get("num_key_value_heads") or heads
                tensor = np.ascontiguousarray(permute_rows(tensor, heads))
            writer.add_tensor(target, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'} lacks {error}") from None
    finally:
        writer.close()


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} is not a Hugging Face folder of an LLM") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return document


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no .safetensors files: other formats of weights are not read")
    for file in files:
        try:
            with safe_open(file, framework="pt") as stream:
                for key in sorted(stream.keys()):
                    yield key, stream.get_tensor(key).float().numpy()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or no safetensors file ({error})") from None


def _add_sizes(writer: Any, config: dict[str, Any]) -> None:
    heads = int(config["num_attention_heads"])
    width = int(config["hidden_size"])
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(width)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    head_width = int(config.get("head_dim") or width // heads)
    writer.add_rope_dimension_count(head_width)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    # transformers 5 moved it into rope_parameters.
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    writer.add_rope_freq_base(float(theta))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_file_type(0)


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    from gguf import TokenType

    document = _json(folder / "tokenizer.json")
    model = document.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise CheckpointError(
            f"the LLM's tokenizer is {model.get('type')!r}; supported: byte-level BPE (or give a ready GGUF with --llm-gguf)"
        )
    size = int(config["vocab_size"])
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [int(TokenType.UNUSED)] * size
    for token, index in model["vocab"].items():
        tokens[index], types[index] = token, int(TokenType.NORMAL)
    for added in document.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(document.get("pre_tokenizer")))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # Newer files hold pairs, older ones "left right".
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    for key, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id)):
        value = config.get(f"{key}_token_id")
        value = value[0] if isinstance(value, list) else value
        if value is not None:
            add(int(value))
    # Whoever assembles the sequence adds BOS by id.
    writer.add_add_bos_token(False)


def _pre_tokenizer(document: dict[str, Any] | None) -> str:
    """llama.cpp's name for a pre-tokenizer. A wrong one would give other ids in silence, so an unknown one is refused."""
    steps = document.get("pretokenizers", [document]) if document else []
    kinds = [step["type"] for step in steps]
    patterns = " ".join(str(step.get("pattern", {}).get("Regex", "")) for step in steps if step["type"] == "Split")
    if kinds == ["ByteLevel"] and not steps[0].get("add_prefix_space") and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and _DIGIT_SPLIT in patterns:
        return "llama-bpe"
    raise CheckpointError(
        f"the LLM's tokenizer splits text in a way ({' + '.join(kinds) or 'none'}) that this version has no name for; "
        "supported: GPT-2, SmolLM, Llama 3 (or give a ready GGUF with --llm-gguf)"
    )
