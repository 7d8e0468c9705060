"""Start of the gate's language head: softmax regression on the mean encoder states of the recipe's questions.

Which language a question is in has nothing to do with the LLM, so it need not be learnt a few rows a step: a fit of a minute
knows what thousands of steps would teach. The head goes on learning beside the gate.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from mindmerger_train.data.sources import Example
from mindmerger_train.encoder_tokenizer import EncoderTokenizer
from mindmerger_train.encoders import Encoder
from mindmerger_train.gate import Gate

# Questions of each language that are looked at, and every how many-th of them is held out.
PER_LANGUAGE, HELD_OUT = 160, 10


@torch.no_grad()
def start_language_head(
    gate: Gate, encoder: Encoder, tokenizer: EncoderTokenizer, examples: Iterable[Example], *, batch: int = 32
) -> float:
    """Fit the head on `examples`; returns the share of held-out questions that it then names rightly (nan without any).

    A language that is no row of the gate counts as "unknown", as in training.
    """
    chosen = _choose(examples)
    texts = [(text, language) for language, own in chosen.items() for text in own]
    states = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        ids = [tokenizer.encode(text, language if tokenizer.frames else "").ids for text, language in part]
        rows, mask = encoder.states(ids)
        states.append(gate.mean_state(rows.float(), mask).cpu())
        print(f"\rlanguage head: {start + len(part)}/{len(texts)} questions", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    targets = torch.tensor([gate.spec.row_of(language) for _, language in texts])
    kept = torch.tensor([index % HELD_OUT < HELD_OUT - 1 for own in chosen.values() for index in range(len(own))])
    means = torch.cat(states)
    weight, bias = fit(means[kept], targets[kept], gate.language_head.out_features)
    gate.language_head.weight.copy_(weight)
    gate.language_head.bias.copy_(bias)
    right = (means[~kept] @ weight.T + bias).argmax(dim=1) == targets[~kept]
    return float(right.float().mean())


@torch.enable_grad()
def fit(
    features: torch.Tensor, targets: torch.Tensor, classes: int, decay: float = 1e-3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax regression by L-BFGS: features (n, width) float32, targets (n,) → weight (classes, width), bias (classes,).

    `decay` is the weight of the squared norm, on features scaled to unit variance.
    """
    mean, scale = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-6)
    scaled = (features - mean) / scale
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(scaled @ weight.T + bias, targets) + decay * weight.pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    folded = (weight / scale).detach()
    return folded, (bias - folded @ mean).detach()


def _choose(examples: Iterable[Example]) -> Mapping[str, Sequence[str]]:
    """Up to PER_LANGUAGE different questions of each language, at random but always the same."""
    found: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        found[example.language].add(example.query)
    chosen = {}
    for language, texts in sorted(found.items()):
        own = sorted(texts)
        random.Random(0).shuffle(own)
        chosen[language] = own[:PER_LANGUAGE]
    return chosen
