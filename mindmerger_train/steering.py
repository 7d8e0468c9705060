"""The gate at work on a batch of training rows, and what is kept of its weights for the log.

What this module does not know: how the sequence is joined, where the encoder's states come from, the optimiser.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from mindmerger.errors import InputError
from mindmerger_train.gate import UNKNOWN, Gate, Weights
from mindmerger_train.tables import at_least
from mindmerger_train.transfer import device_of, pad_right, whole_numbers


@dataclass(frozen=True)
class Steering:
    """How the gate is trained. Its learning rate is the schedule's: a gate that starts at 1 stays there at the mapping's 2e-5.

    * `train_mapping`, `mapping_rate`: whether the mapping and the boundary go on learning, and at which share of the rate.
    * `language_loss`: weight of the language head's cross-entropy, a token of the answer counting 1.
    * `told`: share of examples whose language the gate is told; in the others it asks the head, as an answer does.
    * `hidden`: share of examples whose language is called "unknown", so that this row means something too.
    * `head_start`: whether a fresh gate's language head is fitted to the recipe's questions before the first step.
    """

    train_mapping: bool = False
    mapping_rate: float = 0.02
    language_loss: float = 0.1
    told: float = 0.3
    hidden: float = 0.05
    head_start: bool = True

    def __post_init__(self) -> None:
        at_least(0, "steering.", mapping_rate=self.mapping_rate, language_loss=self.language_loss, told=self.told)
        at_least(0, "steering.", hidden=self.hidden)
        if self.told + self.hidden > 1:
            raise InputError("steering.told and steering.hidden are shares: together at most 1")

    def draw(self, language: str, generator: random.Random) -> str | None:
        """What the gate is told about an example: its language, "unknown", or None (ask the head)."""
        value = generator.random()
        if value < self.hidden:
            return UNKNOWN
        return language if value < self.hidden + self.told else None


def embed_prompts(embed: nn.Module, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts in ids → their rows in the LLM's table (batch, longest, d) and mask (batch, longest), padded on the right."""
    ids, mask = pad_right(prompts, device_of(embed))
    return embed(ids), mask


def weigh(
    gate: Gate,
    states: torch.Tensor,
    mask: torch.Tensor,
    merged: torch.Tensor,
    prompt: torch.Tensor,
    prompt_mask: torch.Tensor,
    told: Sequence[str | None],
) -> Weights:
    """The gate's weights for a batch whose every example has a prompt; shapes as in `Gate.forward`, all on one device.

    `merged` is what the merger made of `states`, with the boundary row.
    """
    language = gate.spec.distribution(told, states.device)
    return gate(states, mask, merged[:, :-1], prompt, prompt_mask, language)  # type: ignore[no-any-return]


def language_loss(gate: Gate, weights: Weights, languages: Sequence[str]) -> torch.Tensor:
    """Cross-entropy of the language head, one value an example; a language that is no row of the gate is "unknown"."""
    logits = weights.language_logits
    rows = whole_numbers([gate.spec.row_of(language) for language in languages], logits.device)
    return nn.functional.cross_entropy(logits, rows, reduction="none")


@dataclass
class WeightLog:
    """Both weights of every example that was looked at, per language, since the last `take`."""

    seen: dict[str, list[tuple[float, float, bool]]] = field(default_factory=lambda: defaultdict(list))

    def add(
        self, gate: Gate, weights: Weights, mask: torch.Tensor, prompt_mask: torch.Tensor, languages: Sequence[str]
    ) -> None:
        """The weights of a batch; the masks (of the encoder's states, of the prompt) say which of their rows count."""
        guesses = weights.language_logits.argmax(dim=-1).cpu().tolist()
        encoder, llm = (
            _masked_mean(own, kept).cpu().tolist()
            for own, kept in ((weights.encoder, mask), (weights.llm, prompt_mask))
        )
        for index, language in enumerate(languages):
            right = guesses[index] == gate.spec.row_of(language)
            self.seen[language].append((encoder[index], llm[index], right))

    def take(self) -> dict[str, object]:
        """`{"weights": {language: {"encoder": [mean, sd], "llm": [mean, sd]}}, "language_accuracy": share}`.

        Empties the log.
        """
        if not self.seen:
            return {}
        table = {
            language: {
                "encoder": _mean_and_deviation([encoder for encoder, _, _ in values]),
                "llm": _mean_and_deviation([llm for _, llm, _ in values]),
            }
            for language, values in sorted(self.seen.items())
        }
        everyone = [right for values in self.seen.values() for _, _, right in values]
        self.seen = defaultdict(list)
        return {"weights": table, "language_accuracy": round(sum(everyone) / len(everyone), 4)}


def _masked_mean(weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(batch, rows or 1, d or 1) → (batch,): the mean over dimensions, and over the rows that are no padding."""
    rows = weights.mean(dim=2)
    if rows.shape[1] == 1:
        return rows[:, 0]
    kept = mask.to(rows.dtype)
    return (rows * kept).sum(dim=1) / kept.sum(dim=1)


def _mean_and_deviation(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    return [round(mean, 4), round(math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)), 4)]
