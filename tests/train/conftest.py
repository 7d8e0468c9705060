"""Tiny random models of the real architectures, for tests of training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mindmerger_train.checkpoint import Checkpoint
from mindmerger_train.encoders import Encoder, EncoderSpec
from mindmerger_train.llms import LLMSpec, PromptSpec
from mindmerger_train.merger import Merger

WIDTH = 64
VOCABULARY = 300
PROMPT = PromptSpec(template="Q: {question}\nA:", bos_id=1, eos_id=2, stop_ids=(2,))


def tiny_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def tiny_encoder(kind: str) -> Encoder:
    from transformers import BertConfig, BertModel, MT5Config, MT5EncoderModel

    torch.manual_seed(2)
    if kind == "bert":
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
        )
        return Encoder(BertModel(config, add_pooling_layer=False), (1, 3))
    config = MT5Config(vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4)
    return Encoder(MT5EncoderModel(config), ())


@pytest.fixture(params=["bert", "mt5"])
def tiny_checkpoint(request: pytest.FixtureRequest) -> tuple[Encoder, nn.Module, Checkpoint]:
    """An encoder, an LLM and a merger between them whose boundary row is not zero."""
    encoder = tiny_encoder(request.param)
    torch.manual_seed(3)
    merger = Merger(64, WIDTH)
    with torch.no_grad():
        merger.end_boundary.normal_()
    spec = EncoderSpec(
        "nowhere", request.param, request.param, 32 if request.param == "bert" else 64, encoder.layers, 64
    )
    return encoder, tiny_llama(), Checkpoint(merger, spec, LLMSpec("nowhere", "tiny", "llama", WIDTH), PROMPT)
