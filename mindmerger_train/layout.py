"""The sequence that the LLM is trained on, and its loss (docs/method.md, "Sequence").

`[BOS | mapped rows | boundary | prompt | labels + EOS]`; padding on the left of the whole, none inside, labels −100 but on the
response. The published code pads each part and squeezes the padding out afterwards; here the parts are joined without any,
which is the same sequence. Logits are computed only where labels are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from mindmerger_train.trunk import Head, head_of, trunk_of

IGNORED = -100
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Row:
    """One example in ids. `encoder_ids` None: no soft prompt. `prompt_ids` empty: no prompt part.

    `given` are the positions within `label_ids` that the LLM is shown but not asked for (what the calculator writes).
    `language` is what the question is in, `told` what the gate is told about that (None: it asks its language head).
    """

    encoder_ids: Sequence[int] | None
    prompt_ids: Sequence[int]
    label_ids: Sequence[int]
    given: frozenset[int] = frozenset()
    language: str = ""
    told: str | None = None

    def length(self) -> int:
        """Positions that the LLM sees, BOS and boundary included."""
        soft = len(self.encoder_ids) + 1 if self.encoder_ids is not None else 0
        return 1 + soft + len(self.prompt_ids) + len(self.label_ids)


@dataclass(frozen=True)
class Batch:
    """Embedding rows (batch, length, d), mask and labels (batch, length), int64."""

    embeddings: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor


def assemble(
    rows: Sequence[Row],
    soft_prompts: Sequence[torch.Tensor | None],
    embed: nn.Module,
    bos_id: int | None,
    prompts: Sequence[torch.Tensor | None] | None = None,
) -> Batch:
    """Join the parts of each row and pad on the left.

    `soft_prompts[i]` is (n_i + 1, d), the boundary row last, or None. `embed` is the LLM's embedding layer. `prompts[i]`
    (m_i, d), where given, stand for the embeddings of the prompt: the gate has weighted them.
    """
    sequences, labels = [], []
    for row, soft, prompt in zip(rows, soft_prompts, prompts or [None] * len(rows), strict=True):
        head = [bos_id] if bos_id is not None else []
        tail = [*row.prompt_ids, *row.label_ids]
        tokens = embed(torch.tensor(head + tail, dtype=torch.int64))
        parts = [tokens[: len(head)], tokens[len(head) :]]
        if soft is not None:
            parts.insert(1, soft.to(tokens.dtype))
        if prompt is not None:
            parts[-1:] = [prompt.to(tokens.dtype), parts[-1][len(prompt) :]]
        sequence = torch.cat(parts)
        sequences.append(sequence)
        asked = [IGNORED if index in row.given else label for index, label in enumerate(row.label_ids)]
        labels.append([IGNORED] * (len(sequence) - len(asked)) + asked)
    longest = max(len(sequence) for sequence in sequences)
    embeddings = torch.stack(
        [nn.functional.pad(sequence, (0, 0, longest - len(sequence), 0)) for sequence in sequences]
    )
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences])
    padded = torch.tensor([[IGNORED] * (longest - len(row)) + row for row in labels])
    return Batch(embeddings, mask, padded)


class _FrozenHeadLoss(torch.autograd.Function):
    """Cross-entropy through a frozen output head, its gradient worked out on the way forward, a few rows at a time.

    With a frozen head the only gradient wanted is that of the hidden states, `((softmax − one-hot) · slope) @ W` with the slope
    of the head's cap and scale; so no logits need to be kept, and the vocabulary-sized rows stay in the processor's cache.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, len(hidden), ROWS_AT_ONCE):
            part, wanted = hidden[start : start + ROWS_AT_ONCE], targets[start : start + ROWS_AT_ONCE]
            logits = head.logits(part)
            slope = head.slope(logits)
            log_sum = torch.logsumexp(logits, dim=-1)
            total += (log_sum - logits.gather(1, wanted[:, None]).squeeze(1)).sum()
            logits.sub_(log_sum[:, None]).exp_()
            logits[torch.arange(len(wanted)), wanted] -= 1.0
            if slope is not None:
                logits *= slope
            gradient[start : start + ROWS_AT_ONCE] = logits.to(head.weight.dtype) @ head.weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None


def response_loss(llm: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """Sum of −log p over the response tokens (float32 scalar), and how many they are. The LLM's head must be frozen."""
    hidden = trunk_of(llm)(inputs_embeds=batch.embeddings, attention_mask=batch.mask, use_cache=False).last_hidden_state
    targets = batch.labels[:, 1:]
    wanted = targets != IGNORED
    loss = cast(
        torch.Tensor,
        _FrozenHeadLoss.apply(hidden[:, :-1][wanted], head_of(llm), targets[wanted]),  # type: ignore[no-untyped-call]
    )
    return loss, int(wanted.sum())
