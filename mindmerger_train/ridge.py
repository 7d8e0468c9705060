"""Start of the mapping in closed form: ridge regression from encoder states to LLM embeddings.

For English text, both tokenizers cut the same characters. The target of an encoder token is the mean embedding of the LLM's
tokens that overlap it; the encoder is multilingual, so the map found on English carries over to other languages well
enough for training to start from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn

from mindmerger_train.encoder_tokenizer import EncoderTokenizer
from mindmerger_train.encoders import Encoder
from mindmerger_train.trunk import embedding_of


def overlap_means(
    encoder_spans: Sequence[tuple[int, int]], llm_spans: Sequence[tuple[int, int]], embeddings: torch.Tensor
) -> tuple[list[int], torch.Tensor]:
    """Encoder positions that overlap LLM tokens, and the mean embedding of those tokens: (k, d)."""
    positions, means = [], []
    for index, (start, end) in enumerate(encoder_spans):
        inside = [i for i, (a, b) in enumerate(llm_spans) if a < end and b > start]
        if end > start and inside:
            positions.append(index)
            means.append(embeddings[inside].mean(dim=0))
    return positions, torch.stack(means) if means else torch.empty(0, embeddings.shape[1])


@torch.no_grad()
def linear_start(
    encoder: Encoder,
    encoder_tokenizer: EncoderTokenizer,
    llm: nn.Module,
    llm_tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    ridge: float = 1e-3,
    batch: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (d, encoder output width) and bias (d,) that map the states of ASCII `texts` to LLM embeddings.

    `ridge` is relative to the mean squared size of the centred states. Texts outside ASCII are left out: there characters
    and bytes differ, and the LLM's tokens need not be whole characters.
    """
    layer = embedding_of(llm)
    # Through the layer, not out of its table: Gemma's multiplies by √d.
    table = layer(torch.arange(cast(Any, layer).weight.shape[0])).float()
    usable = [text for text in texts if text.isascii() and text.strip()]
    language = "en" if encoder_tokenizer.frames else ""
    gram = cross = state_sum = target_sum = None
    count = 0
    for start in range(0, len(usable), batch):
        chunk = usable[start : start + batch]
        encodings = [encoder_tokenizer.encode(text, language) for text in chunk]
        hidden, _ = encoder.states([encoding.ids for encoding in encodings])
        states, targets = [], []
        for text, encoding, rows in zip(chunk, encodings, hidden, strict=True):
            llm_encoding = llm_tokenizer.encode(text, add_special_tokens=False)
            positions, means = overlap_means(encoding.offsets, llm_encoding.offsets, table[llm_encoding.ids])
            states.append(rows[positions])
            targets.append(means)
        x, y = torch.cat(states).double(), torch.cat(targets).double()
        if gram is None or cross is None or state_sum is None or target_sum is None:
            gram, cross, state_sum, target_sum = x.T @ x, x.T @ y, x.sum(0), y.sum(0)
        else:
            gram, cross, state_sum, target_sum = (
                gram + x.T @ x,
                cross + x.T @ y,
                state_sum + x.sum(0),
                target_sum + y.sum(0),
            )
        count += len(x)
        print(f"\rlinear start: {start + len(chunk)}/{len(usable)} texts", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if gram is None or cross is None or state_sum is None or target_sum is None:
        raise ValueError("no ASCII text to fit the linear start on")
    mean_x, mean_y = state_sum / count, target_sum / count
    centred = gram / count - torch.outer(mean_x, mean_x)
    size = float(centred.diagonal().mean())
    weight = torch.linalg.solve(
        centred + ridge * size * torch.eye(len(centred), dtype=torch.float64),
        cross / count - torch.outer(mean_x, mean_y),
    ).T
    return weight.float(), (mean_y - weight @ mean_x).float()
