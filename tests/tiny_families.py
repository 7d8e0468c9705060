"""Hugging Face folders of tiny random models, one for every family of encoders and LLMs, with tokenizers of their real kinds.

An encoder–decoder is saved whole, as it is published, and several tokenizers as their SentencePiece or vocabulary file
alone: loading has to cope with both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.tiny_torch import TEXTS, WIDTH

ENCODERS = ("t5", "mt5", "umt5", "bert", "xlm-roberta", "m2m_100", "nllb")
LLMS = ("llama", "llama3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
ENCODER_WIDTH = 32
SCALE = 0.2


def sentencepiece_file(path: Path, kind: str = "unigram", size: int = 500, **ids: int) -> None:
    """A SentencePiece model as its own trainer writes it."""
    from sentencepiece import SentencePieceTrainer

    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(path.with_suffix("")),
        vocab_size=size,
        model_type=kind,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
        **ids,
    )
    path.with_suffix(".vocab").unlink()


def _write(folder: Path, name: str, data: Any) -> None:
    (folder / name).write_text(json.dumps(data), encoding="utf-8")


def _encoder_tokenizer(folder: Path, family: str) -> int:
    """Write the tokenizer's files; returns how many rows the embedding table needs."""
    from sentencepiece import SentencePieceProcessor

    fairseq = {"unk_id": 0, "bos_id": 1, "eos_id": 2}
    if family in ("t5", "umt5", "mt5"):
        sentencepiece_file(folder / "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        _write(folder, "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"})
        return int(SentencePieceProcessor(model_file=str(folder / "spiece.model")).get_piece_size())
    if family == "bert":
        letters = sorted({letter for text in TEXTS for letter in text if not letter.isspace()})
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
        _write(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": False})
        return len(pieces)
    if family == "xlm-roberta":
        sentencepiece_file(folder / "sentencepiece.bpe.model", **fairseq)
        _write(folder, "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})
        return int(SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model")).get_piece_size()) + 2
    sentencepiece_file(folder / "sentencepiece.bpe.model", "bpe", **fairseq)
    processor = SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    if family == "nllb":
        _write(folder, "tokenizer_config.json", {"tokenizer_class": "NllbTokenizer"})
        return int(processor.get_piece_size()) + 204
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    # M2M100's vocabulary is in another order than its SentencePiece file, and lacks some of it.
    for index in reversed(range(3, processor.get_piece_size() - 5)):
        vocabulary.setdefault(processor.id_to_piece(index), len(vocabulary))
    _write(folder, "vocab.json", vocabulary)
    _write(folder, "tokenizer_config.json", {"tokenizer_class": "M2M100Tokenizer"})
    return len(vocabulary) + 108


def encoder_folder(folder: Path, family: str) -> Path:
    """A random encoder of two blocks and width 32, with the decoder that it is published with."""
    import transformers as hf

    folder.mkdir(parents=True)
    rows = _encoder_tokenizer(folder, family)
    torch.manual_seed(4)
    model: Any
    if family in ("t5", "mt5", "umt5"):
        name = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}[family]
        sizes = {
            "d_model": ENCODER_WIDTH,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
        }
        config = getattr(hf, f"{name}Config")(vocab_size=rows, **sizes)
        model = getattr(hf, f"{name}ForConditionalGeneration")(config)
    elif family in ("bert", "xlm-roberta"):
        name = "Bert" if family == "bert" else "XLMRoberta"
        config = getattr(hf, f"{name}Config")(
            vocab_size=rows,
            hidden_size=ENCODER_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=66,
            initializer_range=SCALE,
        )
        model = getattr(hf, f"{name}ForMaskedLM")(config)
    else:
        config = hf.M2M100Config(
            vocab_size=rows,
            d_model=ENCODER_WIDTH,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            init_std=SCALE,
        )
        model = hf.M2M100ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return folder


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def _llm_tokenizer(folder: Path, family: str) -> int:
    """Byte-level BPE (Llama 3, Qwen) or SentencePiece-like BPE with a BOS (Llama, Mistral, Gemma); returns its size."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_level = family in ("llama3", "qwen2", "qwen3")
    if family.startswith("qwen"):
        bos, eos, specials, chat = None, "<|endoftext|>", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML
    elif family == "llama3":
        bos, eos, specials, chat = "<|begin|>", "<|end|>", ["<|begin|>", "<|end|>"], None
    elif family.startswith("gemma"):
        specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
        bos, eos, chat = "<bos>", "<eos>", GEMMA_CHAT
    else:
        bos, eos, specials, chat = "<s>", "</s>", ["<unk>", "<s>", "</s>"], LLAMA_CHAT
    tokenizer = Tokenizer(models.BPE(unk_token=None if bytes_level else "<unk>", byte_fallback=False))
    alphabet: list[str] = []
    if bytes_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        if not family.startswith("gemma"):
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Metaspace()
        alphabet = sorted(set("".join(TEXTS)) | {chr(code) for code in range(33, 127)} | {"\n"})
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.chat_template = chat
    fast.save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def llm_folder(folder: Path, family: str) -> Path:
    """A random LLM of two blocks and width 64, with grouped heads; tied or untied as the family is."""
    import transformers as hf

    folder.mkdir(parents=True)
    tokens = _llm_tokenizer(folder, family)
    name = {
        "llama": "Llama",
        "llama3": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "gemma": "Gemma",
        "gemma2": "Gemma2",
        "gemma3": "Gemma3",
    }[family]
    sizes: dict[str, Any] = {
        "vocab_size": tokens,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": SCALE,
        "tie_word_embeddings": family not in ("llama", "mistral", "qwen2"),
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if family == "gemma2" or family == "gemma3":
        sizes |= {"sliding_window": 8, "query_pre_attn_scalar": 16}
    if family == "gemma3":
        sizes["layer_types"] = ["sliding_attention", "full_attention"]
    if family == "gemma2":
        # So low that the random model's logits reach it.
        sizes |= {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}
    if family in ("qwen3", "gemma", "gemma2", "gemma3"):
        sizes["head_dim"] = 24  # not the width over the heads
    config = getattr(hf, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")(**sizes)
    torch.manual_seed(5)
    getattr(hf, f"{name}ForCausalLM")(config).save_pretrained(folder)
    return folder
