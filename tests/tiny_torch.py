"""Tiny random checkpoints of the real architectures, with real tokenizer types, as `mm-train` and Hugging Face write them.

Export reads everything it reads of a real one: Hugging Face folders of an encoder and of an LLM, each with a trained
`tokenizer.json`, and a merger between them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mindmerger_export.samples import QUESTIONS, SENTENCES
from mindmerger_train.checkpoint import Checkpoint, save_checkpoint
from mindmerger_train.encoders import EncoderSpec
from mindmerger_train.gate import GateSpec
from mindmerger_train.llms import LLMSpec, PromptSpec
from mindmerger_train.merger import Merger

WIDTH = 64
PROMPT = PromptSpec(template="Question: {question}\nAnswer:\n", bos_id=1, eos_id=2, stop_ids=(2, 0))
TEXTS = [*SENTENCES.values(), *(question for _, question in QUESTIONS)]


def unigram_tokenizer(path: Path, size: int = 600) -> int:
    """A SentencePiece-like tokenizer, the ids of its special tokens as in XLM-R. Returns how many pieces it has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=size, special_tokens=specials, unk_token="<unk>", show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(path))
    return int(tokenizer.get_vocab_size())


def bpe_tokenizer(folder: Path, size: int = 400) -> int:
    """A byte-level BPE as of GPT-2, saved as transformers does. Returns how many tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>"
    ).save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def random_encoder(kind: str, rows: int, width: int = WIDTH, scale: float = 0.2) -> nn.Module:
    """A random encoder of three blocks with `rows` embeddings: `bert` or `mt5` (the encoder half)."""
    from transformers import BertConfig, BertModel, MT5Config, MT5EncoderModel

    torch.manual_seed(2)
    if kind == "mt5":
        return MT5EncoderModel(
            MT5Config(vocab_size=rows, d_model=width, d_kv=16, d_ff=width * 3 // 2, num_layers=3, num_heads=4)
        )
    return BertModel(
        BertConfig(
            vocab_size=rows,
            hidden_size=width,
            num_hidden_layers=3,
            num_attention_heads=width // 16,
            intermediate_size=width * 3 // 2,
            max_position_embeddings=2 * width,
            initializer_range=scale,
        ),
        add_pooling_layer=False,
    )


def random_llama(tokens: int, *, tied: bool) -> nn.Module:
    """A random Llama of two blocks with grouped heads, frozen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def encoder_folder(folder: Path, kind: str) -> EncoderSpec:
    """A Hugging Face folder of `random_encoder`: `bert` (its layers 1 and 2) or `mt5` (the last)."""
    folder.mkdir(parents=True)
    pieces = unigram_tokenizer(folder / "tokenizer.json")
    # e5's table has rows that no piece names
    model: Any = random_encoder(kind, pieces + (5 if kind == "bert" else 0))
    model.save_pretrained(folder)
    layers = (1, 2) if kind == "bert" else ()
    return EncoderSpec(str(folder), f"tiny-{kind}", kind, WIDTH, layers, 128, "MIT")


def llm_folder(folder: Path) -> LLMSpec:
    """A Hugging Face folder of `random_llama`, untied."""
    folder.mkdir(parents=True)
    model: Any = random_llama(bpe_tokenizer(folder), tied=False)
    model.save_pretrained(folder)
    return LLMSpec(str(folder), "tiny-llama", "llama", WIDTH, "MIT")


def random_merger(
    input_width: int,
    output_width: int = WIDTH,
    seed: int = 3,
    *,
    method: str = "mindmerger",
    gate: GateSpec | None = None,
) -> Merger:
    """A merger whose boundary row is not zero, and whose gate, if it has one, says other weights than 1 at once."""
    torch.manual_seed(seed)
    merger = Merger(input_width, output_width, method, gate)
    with torch.no_grad():
        if method != "mono":
            nn.init.normal_(merger.end_boundary)
        if merger.gate is not None:
            for parameter in merger.gate.parameters():
                nn.init.normal_(parameter, std=0.12)
    return merger


def adapter_file(path: Path, llm: LLMSpec) -> None:
    """A random LoRA adapter of rank 2 on every kind of module of the first block."""
    import numpy as np
    from transformers import AutoConfig

    from mindmerger_train.adapter import Pair, write_adapter

    rng = np.random.default_rng(5)

    def draw(*shape: int) -> Any:
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    sizes = {
        "self_attn.q_proj": (64, 64),
        "self_attn.k_proj": (32, 64),
        "self_attn.v_proj": (32, 64),
        "self_attn.o_proj": (64, 64),
        "mlp.gate_proj": (96, 64),
        "mlp.up_proj": (96, 64),
        "mlp.down_proj": (64, 96),
    }
    pairs = {f"layers.0.{name}": Pair(draw(2, width), draw(rows, 2)) for name, (rows, width) in sizes.items()}
    write_adapter(path, pairs, 4.0, AutoConfig.from_pretrained(llm.source), "tiny-adapter")


def checkpoint(
    folder: Path,
    kind: str = "bert",
    *,
    adapter: bool = False,
    method: str = "mindmerger",
    gate: GateSpec | None = None,
) -> Path:
    """A checkpoint in `folder / "checkpoint"` beside its encoder and its LLM. Returns its folder."""
    encoder = encoder_folder(folder / "encoder", kind)
    llm = llm_folder(folder / "llm")
    target = folder / "checkpoint"
    if adapter:
        target.mkdir()
        adapter_file(target / "adapter.gguf", llm)
        llm = replace(llm, adapter="adapter.gguf")
    merger = random_merger(encoder.output_width, method=method, gate=gate)
    save_checkpoint(
        Checkpoint(merger, encoder, llm, PROMPT, name=f"tiny-{kind}", languages=("es", "en")),
        target,
    )
    return target
