"""Greedy decoding in torch for several sequences at once, with a key-value cache and the calculator.

The rules are the runtime's, so that a checkpoint is measured as its bundle will answer: after `<<48/2=` the calculator's digits
and `>>` follow, whatever the LLM would have written; they are tokenised on their own and count as tokens.

What this module does not know: encoders, mergers, questions. It takes embedding rows and gives text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from mindmerger.calculator import calculate, pending_expression
from mindmerger_train.llms import LLMTokenizer
from mindmerger_train.transfer import whole_numbers


@dataclass(frozen=True)
class Rules:
    """When an answer ends, and whether the calculator writes in it. `limit` is in tokens."""

    stop_ids: Collection[int]
    limit: int
    calculator: bool


@dataclass
class Answer:
    """An answer while it grows. `place` is that of its sequence among those given."""

    place: int
    ids: list[int] = field(default_factory=list)
    forced: int = 0
    finish: str | None = None
    waiting: deque[int] = field(default_factory=deque)

    def take(self, drawn: int, tokenizer: LLMTokenizer, rules: Rules) -> int:
        """Go on by one token: one that the calculator still has to write, else `drawn`. Returns it."""
        if self.waiting:
            token = self.waiting.popleft()
            self.forced += 1
            self.ids.append(token)
        else:
            token = drawn
            if token in rules.stop_ids:
                self.finish = "stop"
                return token
            self.ids.append(token)
            if rules.calculator:
                self.waiting.extend(self._calculated(token, tokenizer))
        if len(self.ids) >= rules.limit:
            self.finish = "length"
        return token

    def _calculated(self, token: int, tokenizer: LLMTokenizer) -> list[int]:
        if not tokenizer.decode([token]).endswith("="):
            return []
        # 256 characters, as in the runtime, and no token has none
        expression = pending_expression(tokenizer.decode(self.ids[-256:])[-256:])
        value = None if expression is None else calculate(expression)
        return [] if value is None else tokenizer.encode(value + ">>")


@torch.no_grad()
def decode(llm: nn.Module, prefixes: Sequence[torch.Tensor], tokenizer: LLMTokenizer, rules: Rules) -> Iterator[Answer]:
    """Answer every prefix, (length, d) each, in the LLM's dtype; yields answers as they end.

    Padding is on the left, positions count from each prefix's own beginning. Sequences that have ended are taken out of the
    cache when there are enough of them to pay for the copy.
    """
    from transformers import DynamicCache

    model = cast(Any, llm)
    longest = max(len(prefix) for prefix in prefixes)
    rows = torch.stack([nn.functional.pad(prefix, (0, 0, longest - len(prefix), 0)) for prefix in prefixes])
    device = rows.device
    lengths = whole_numbers([len(prefix) for prefix in prefixes], device)
    mask = (torch.arange(longest, device=device)[None] >= longest - lengths[:, None]).long()
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    answers = [Answer(place) for place in range(len(prefixes))]
    inputs: dict[str, torch.Tensor] = {"inputs_embeds": rows}
    while True:
        output = model(
            **inputs, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        drawn = output.logits[:, -1].argmax(-1).cpu().tolist()
        tokens = [
            token if answer.finish else answer.take(token, tokenizer, rules)
            for answer, token in zip(answers, drawn, strict=True)
        ]
        for answer in answers:
            if answer.finish and answer.place >= 0:
                yield Answer(answer.place, answer.ids, answer.forced, answer.finish)
                answer.place = -1  # told
        left = [row for row, answer in enumerate(answers) if not answer.finish]
        if not left:
            return
        following = whole_numbers(tokens, device)[:, None]
        if len(left) <= 0.75 * len(answers):
            kept = whole_numbers(left, device)
            cache.batch_select_indices(kept)
            mask, lengths, following = (part.index_select(0, kept) for part in (mask, lengths, following))
            answers = [answers[row] for row in left]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        places = lengths[:, None]
        lengths = lengths + 1
        inputs = {"input_ids": following}
