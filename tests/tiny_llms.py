"""Hugging Face folders of tiny random LLMs whose tokenizers are of the kind that each family is published with.

Byte-level BPE with the family's own pattern (Llama 3, Qwen, Mistral's Tekken), or SentencePiece's BPE with bytes, trained by
SentencePiece itself (Llama 2, Mistral, Gemma).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mindmerger_export.llm_tokenizer import PRE_TOKENIZERS
from tests.tiny_torch import TEXTS

WIDTH = 64
# Family → class of the configuration, kind of tokenizer.
FAMILIES = {
    "llama2": ("Llama", "spm-llama"),
    "llama3": ("Llama", "llama-bpe"),
    "smollm": ("Llama", "smollm"),
    "mistral": ("Mistral", "spm-llama"),
    "mistral-nemo": ("Mistral", "tekken"),
    "qwen2": ("Qwen2", "qwen2"),
    "qwen3": ("Qwen3", "qwen2"),
    "gemma": ("Gemma", "spm-gemma"),
    "gemma2": ("Gemma2", "spm-gemma"),
    "gemma3": ("Gemma3Text", "spm-gemma"),
}
_TRAINING = [*TEXTS, "12345 67890 \n\n\t\t def f(x): return x + 1", "the quick brown fox's it's we'll HE'S"]


def tokenizer(folder: Path, kind: str) -> int:
    """Write a tokenizer of `kind`; returns how many rows of embeddings it wants."""
    return _sentencepiece(folder, kind) if kind.startswith("spm") else _byte_level(folder, kind)


def _sentencepiece(folder: Path, kind: str) -> int:
    from sentencepiece import SentencePieceTrainer

    gemma = kind == "spm-gemma"
    ids: dict[str, Any] = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    if gemma:
        turns = ["<mask>", "<start_of_turn>", "<end_of_turn>"]
        # Gemma has a piece for every run of spaces or newlines up to this long.
        turns += ["\n" * n for n in range(1, 32)] + ["▁" * n for n in range(2, 32)]
        ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "user_defined_symbols": turns}
        ids |= {"bos_piece": "<bos>", "eos_piece": "<eos>"}
    SentencePieceTrainer.train(
        sentence_iterator=iter(_TRAINING),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=900,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=not gemma,
        hard_vocab_limit=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        **ids,
    )
    (folder / "tokenizer.vocab").unlink()
    config: dict[str, Any] = {"tokenizer_class": "GemmaTokenizer" if gemma else "LlamaTokenizer"}
    if gemma:
        config |= {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    loaded.save_pretrained(folder)
    return len(loaded)


def _byte_level(folder: Path, kind: str) -> int:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    steps, pattern = PRE_TOKENIZERS[kind]
    built = Tokenizer(models.BPE(ignore_merges=kind in ("llama-bpe", "tekken")))
    parts: list[Any] = []
    if pattern:
        parts.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    elif "Digits:single" in steps:
        parts.append(pre_tokenizers.Digits(individual_digits=True))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern))
    built.pre_tokenizer = pre_tokenizers.Sequence(parts)
    built.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        built.normalizer = normalizers.NFC()
    specials = {
        "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "llama-bpe": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
    }.get(kind, ["<s>", "</s>", "<unk>"])
    trainer = trainers.BpeTrainer(
        vocab_size=640, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    built.train_from_iterator(_TRAINING, trainer)
    built.add_special_tokens(specials)
    built.add_tokens([AddedToken("<tool_call>", normalized=False)])
    names = {"bos_token": None if kind == "qwen2" else specials[0], "eos_token": specials[0 if kind == "qwen2" else 1]}
    if kind == "qwen2":
        document = json.loads(built.to_str())["model"]
        whole: Any = Qwen2Tokenizer(vocab=document["vocab"], merges=[tuple(pair) for pair in document["merges"]])
        whole.add_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
        whole.add_tokens([AddedToken("<tool_call>", normalized=False)])
    else:
        whole = PreTrainedTokenizerFast(tokenizer_object=built, **names)
    whole.save_pretrained(folder)
    return len(whole)


def llm_folder(folder: Path, family: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A random LLM of `family`: three blocks, width 64, grouped heads. `changes` go into its configuration."""
    import transformers as hf

    folder.mkdir(parents=True)
    name, kind = FAMILIES[family]
    config = getattr(hf, f"{name}Config")(**(sizes(family, tokenizer(folder, kind)) | changes))
    torch.manual_seed(5)
    model = getattr(hf, f"{name.removesuffix('Text')}ForCausalLM")(config).to(dtype)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases that are not all the same
                parameter.add_(0.2 * torch.randn_like(parameter))
            del key
    model.save_pretrained(folder, max_shard_size=changes.get("shard", "200KB"))
    return folder


def sizes(family: str, tokens: int) -> dict[str, Any]:
    """The tiny configuration of a family; three rows of embeddings have no piece."""
    tied = family in ("llama3", "smollm", "qwen3", "gemma", "gemma2", "gemma3")
    found: dict[str, Any] = {
        "vocab_size": tokens + 3,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family in ("mistral-nemo", "qwen3", "gemma", "gemma2", "gemma3"):
        found["head_dim"] = 32  # not the width over the heads
    if family in ("gemma2", "gemma3"):
        found |= {"sliding_window": 8, "query_pre_attn_scalar": 20}
    if family == "gemma3":
        found["layer_types"] = ["sliding_attention", "sliding_attention", "full_attention"]
        found["rope_parameters"] = {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
        }
    if family == "gemma2":
        # So low that the random model's logits reach it.
        found |= {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}
    if family == "llama3":
        found["rope_parameters"] = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    return found
