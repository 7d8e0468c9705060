"""The tiny random models (tests/tiny_torch.py) as tests of training use them: without folders and tokenizers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mindmerger_train.checkpoint import Checkpoint
from mindmerger_train.encoders import Encoder, EncoderSpec
from mindmerger_train.llms import LLMSpec, PromptSpec
from mindmerger_train.merger import Merger
from tests.tiny_torch import WIDTH, random_encoder, random_llama

VOCABULARY = 300
PROMPT = PromptSpec(template="Q: {question}\nA:", bos_id=1, eos_id=2, stop_ids=(2,))


def tiny_llama() -> nn.Module:
    return random_llama(VOCABULARY, tied=True)


def tiny_encoder(kind: str) -> Encoder:
    if kind == "bert":
        return Encoder(random_encoder("bert", VOCABULARY, 32, 0.02), (1, 3))
    return Encoder(random_encoder("mt5", VOCABULARY), ())


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
