"""The sequence that the LLM is trained on, and its loss (docs/method.md, "Sequence").

`[BOS | mapped rows | boundary | prompt | labels + EOS]`; padding on the left of the whole, none inside, asked for is the
response alone. The published code pads each part and squeezes the padding out afterwards; here the parts are joined without
any, which is the same sequence. Logits are computed only where something is asked for. What is where follows from lists, so
that a GPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from mindmerger_train.transfer import device_of, whole_numbers
from mindmerger_train.trunk import Head, head_of, trunk_of

# Rows whose logits are computed at once: on a CPU what its cache holds, elsewhere what keeps it busy.
ROWS_AT_ONCE = 64
ROWS_AT_ONCE_ELSEWHERE = 256


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
    """What the LLM is given, and what it is asked for.

    `embeddings` (batch, length, d) and `mask` (batch, length), int64. `targets` (n,), int64: the tokens that are asked for;
    `places` (n,), int64: where each is predicted, counted over batch × length.
    """

    embeddings: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    places: torch.Tensor


def assemble(
    rows: Sequence[Row],
    soft_prompts: Sequence[torch.Tensor | None],
    embed: nn.Module,
    bos_id: int | None,
    prompts: Sequence[torch.Tensor | None] | None = None,
) -> Batch:
    """Join the parts of each row and pad on the left, on the device of the embeddings.

    `soft_prompts[i]` is (n_i + 1, d), the boundary row last, or None. `embed` is the LLM's embedding layer. `prompts[i]`
    (m_i, d), where given, stand for the embeddings of the prompt: the gate has weighted them.
    """
    device = device_of(embed)
    head = [] if bos_id is None else [bos_id]
    softs = [0 if soft is None else len(soft) for soft in soft_prompts]
    lengths = [
        len(head) + soft + len(row.prompt_ids) + len(row.label_ids) for row, soft in zip(rows, softs, strict=True)
    ]
    longest = max(lengths)
    ids: list[list[int]] = []
    values: list[torch.Tensor] = []  # rows that no token stands for, and where they go
    goals: list[int] = []
    targets: list[int] = []
    places: list[int] = []
    for index, (row, soft) in enumerate(zip(rows, softs, strict=True)):
        start = longest - lengths[index]
        ids.append([0] * start + head + [0] * soft + [*row.prompt_ids, *row.label_ids])
        after = index * longest + start + len(head)
        own = soft_prompts[index]
        weighted = prompts[index] if prompts is not None else None
        for part, first in ((own, after), (weighted, after + soft)):
            if part is not None:
                values.append(part)
                goals.extend(range(first, first + len(part)))
        response = after + soft + len(row.prompt_ids)
        for offset, label in enumerate(row.label_ids):
            # The first position of a row is predicted by nothing.
            if offset not in row.given and response + offset > index * longest + start:
                targets.append(label)
                places.append(response + offset - 1)
    both = whole_numbers([*ids, *([0] * (longest - length) + [1] * length for length in lengths)], device)
    tokens, mask = both[: len(rows)], both[len(rows) :]
    embeddings = embed(tokens)
    if values:
        flat = embeddings.flatten(0, 1)
        rest = torch.cat([part.to(flat.dtype) for part in values])
        embeddings = flat.index_copy(0, whole_numbers(goals, device), rest).view_as(embeddings)
    asked = whole_numbers([targets, places], device)
    return Batch(embeddings, mask, asked[0], asked[1])


class _FrozenHeadLoss(torch.autograd.Function):
    """Cross-entropy through a frozen output head, its gradient worked out on the way forward, a few rows at a time.

    With a frozen head the only gradient wanted is that of the hidden states, `((softmax − one-hot) · slope) @ W` with the slope
    of the head's cap and scale; so no logits need to be kept, and the vocabulary-sized rows stay in the processor's cache.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        minus_one = total.new_full((1, 1), -1.0)
        step = ROWS_AT_ONCE if hidden.device.type == "cpu" else ROWS_AT_ONCE_ELSEWHERE
        for start in range(0, len(hidden), step):
            part, wanted = hidden[start : start + step], targets[start : start + step]
            logits = head.logits(part)
            slope = head.slope(logits)
            log_sum = torch.logsumexp(logits, dim=-1)
            total += (log_sum - logits.gather(1, wanted[:, None]).squeeze(1)).sum()
            logits.sub_(log_sum[:, None]).exp_()
            logits.scatter_add_(1, wanted[:, None], minus_one.expand(len(wanted), 1))
            if slope is not None:
                logits *= slope
            gradient[start : start + step] = logits.to(head.weight.dtype) @ head.weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None


def response_loss(llm: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """Sum of −log p over the response tokens (float32 scalar), and how many they are. The LLM's head must be frozen."""
    hidden = trunk_of(llm)(inputs_embeds=batch.embeddings, attention_mask=batch.mask, use_cache=False).last_hidden_state
    asked = hidden.flatten(0, 1).index_select(0, batch.places)
    loss = cast(
        torch.Tensor,
        _FrozenHeadLoss.apply(asked, head_of(llm), batch.targets),  # type: ignore[no-untyped-call]
    )
    return loss, len(batch.targets)
