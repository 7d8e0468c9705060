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

from mindmerger_train.gate import UNKNOWN, Gate, Weights


@dataclass(frozen=True)
class Steering:
    """How the gate is trained. Its learning rate is the schedule's: a gate that starts at 1 stays there at the mapping's 2e-5.

    * `train_mapping`, `mapping_rate`: whether the mapping and the boundary go on learning, and at which share of the rate.
    * `language_loss`: weight of the language head's cross-entropy, a token of the answer counting 1.
    * `told`: share of examples whose language the gate is told; in the others it asks the head, as an answer does.
    * `hidden`: share of examples whose language is called "unknown", so that this row means something too.
    """

    train_mapping: bool = False
    mapping_rate: float = 0.02
    language_loss: float = 0.1
    told: float = 0.3
    hidden: float = 0.05

    def draw(self, language: str, generator: random.Random) -> str | None:
        """What the gate is told about an example: its language, "unknown", or None (ask the head)."""
        value = generator.random()
        if value < self.hidden:
            return UNKNOWN
        return language if value < self.hidden + self.told else None


def pad_rows(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of several examples, (m_i, d) each → (batch, longest, d) and mask (batch, longest), padded on the right."""
    longest = max(len(part) for part in rows)
    padded = torch.stack([nn.functional.pad(part, (0, 0, 0, longest - len(part))) for part in rows])
    mask = torch.tensor([[1] * len(part) + [0] * (longest - len(part)) for part in rows])
    return padded, mask


def weigh(
    gate: Gate,
    states: torch.Tensor,
    mask: torch.Tensor,
    mapped: torch.Tensor,
    prompts: Sequence[torch.Tensor],
    told: Sequence[str | None],
) -> Weights:
    """The gate's weights for a batch whose every example has a prompt; shapes as in `Gate.forward`."""
    padded, prompt_mask = pad_rows(prompts)
    return gate(states, mask, mapped, padded, prompt_mask, gate.spec.distribution(told))  # type: ignore[no-any-return]


def language_loss(gate: Gate, weights: Weights, languages: Sequence[str]) -> torch.Tensor:
    """Cross-entropy of the language head, one value an example; a language that is no row of the gate is "unknown"."""
    rows = torch.tensor([gate.spec.row_of(language) for language in languages])
    return nn.functional.cross_entropy(weights.language_logits, rows, reduction="none")


@dataclass
class WeightLog:
    """Both weights of every example that was looked at, per language, since the last `take`."""

    seen: dict[str, list[tuple[float, float, bool]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, gate: Gate, weights: Weights, languages: Sequence[str]) -> None:
        guesses = weights.language_logits.argmax(dim=-1).tolist()
        for index, language in enumerate(languages):
            right = guesses[index] == gate.spec.row_of(language)
            self.seen[language].append((float(weights.encoder[index].mean()), float(weights.llm[index].mean()), right))

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


def _mean_and_deviation(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    return [round(mean, 4), round(math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)), 4)]
