"""A frozen LLM in the three parts that training uses: embedding layer, trunk (all blocks and the last norm), output head.

Families differ where it is easy to be silently wrong: Gemma multiplies token embeddings by √d, Gemma 2 squashes logits, some
scale them or add a bias. Here the differences are read off the model, and `check_llm` proves on the loaded model that the
parts compute what the whole does. What this module does not know: sequences, losses, encoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from mindmerger.errors import CheckpointError


def embedding_of(llm: nn.Module) -> nn.Module:
    """The layer that turns ids into what the trunk takes as `inputs_embeds`: call it, its `weight` alone may lack a scale."""
    return cast(nn.Module, cast(Any, llm).get_input_embeddings())


def trunk_of(llm: nn.Module) -> nn.Module:
    """Everything between embeddings and output head; its output has `last_hidden_state`."""
    return cast(nn.Module, cast(Any, llm).base_model)


@dataclass(frozen=True)
class Head:
    """The output head: logits = cap(scale · (h Wᵀ + b)), where cap(u) = softcap · tanh(u / softcap) if there is one.

    `weight` (vocabulary, d), `bias` (vocabulary,) or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, d) → (n, vocabulary) float32; the product is computed in the weights' dtype."""
        logits = (hidden.to(self.weight.dtype) @ self.weight.T).float()
        if self.bias is not None:
            logits += self.bias.float()
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def slope(self, logits: torch.Tensor) -> torch.Tensor | None:
        """d logits / d (h Wᵀ + b), element by element, from the logits; None where it is 1 everywhere."""
        if self.softcap is not None:
            return (1.0 - (logits / self.softcap) ** 2) * self.scale
        return None if self.scale == 1.0 else torch.full_like(logits, self.scale)


def head_of(llm: nn.Module) -> Head:
    """The LLM's output head, tied or untied. Raises CheckpointError when it is no linear layer."""
    layer = cast(Any, llm).get_output_embeddings()
    config = cast(Any, llm).config.get_text_config()
    if not isinstance(layer, nn.Linear):
        raise CheckpointError(f"a {config.model_type!r} model has no linear output layer: it cannot be trained against")
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(layer.weight, layer.bias, getattr(config, "final_logit_softcapping", None), scale)


@torch.no_grad()
def check_llm(llm: nn.Module) -> None:
    """Prove that embedding, trunk and head compute the LLM's own logits, alone and beside a longer row (left padding).

    A few positions, float32 or bfloat16. Raises CheckpointError when they do not: training would be wrong without a word.
    """
    model = cast(Any, llm)
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[3, 5, 7, 4, 6]], device=device)
    padded = torch.tensor([[0, 0, 3, 5, 7], [3, 5, 7, 4, 6]], device=device)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], device=device)
    whole = [model(input_ids=ids[:, :3]).logits[0].float(), model(input_ids=ids).logits[0].float()]
    try:
        hidden = trunk_of(llm)(
            inputs_embeds=embedding_of(llm)(padded), attention_mask=mask, use_cache=False
        ).last_hidden_state
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"a {model.config.model_type!r} model takes no embedding rows: {error}") from error
    head = head_of(llm)
    parts = [head.logits(hidden[0, 2:]), head.logits(hidden[1])]
    # Rounding only: bfloat16 keeps 8 bits of each of some dozens of sums.
    allowed = 1e-3 if hidden.dtype == torch.float32 else 0.1
    for expected, found in zip(whole, parts, strict=True):
        if not float((expected - found).abs().max()) <= allowed * max(1.0, float(expected.abs().max())):
            raise CheckpointError(
                f"a {model.config.model_type!r} model does not compute from embedding rows what it computes from tokens: "
                "it cannot be trained against"
            )
