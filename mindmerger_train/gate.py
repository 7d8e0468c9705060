"""ST-Merge's gate: cross-attention, language embedding, and the two weights that it outputs (DESIGN, section 3).

    C = softmax((H_r W_q)(H_m W_k)ᵀ/√d_h) (H_m W_v)              prompt rows ask, mapped rows answer
    c = pooled C over the prompt rows
    (encoder weight, LLM weight) = 1 + tanh(W_2 φ(W_1 [c ; e_l] + b_1) + b_2)

With W_2 = b_2 = 0, as it starts, both weights are exactly 1 and ST-Merge is MindMerger. The paper (arXiv 2606.19002) says
"gated cross-attention with a learnable language embedding" and "1 + tanh"; the rest of the formula is our reading, and what the
paper leaves open is an option of `GateSpec`. What this module does not know: encoders, LLMs, sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from mindmerger.errors import CheckpointError
from mindmerger_train.transfer import CPU, send

UNKNOWN = "unknown"
_CHOICES = {
    "granularity": ("scalar", "vector", "token"),
    "pooling": ("mean", "max", "last"),
    "language_input": ("none", "forced", "soft"),
    "activation": ("gelu", "relu", "silu", "tanh"),
}


@dataclass(frozen=True)
class GateSpec:
    """The gate's options. `languages` are the rows of the language embedding after row 0, which is "unknown".

    * `granularity`: one weight a source (`scalar`), one a dimension (`vector`), or one a row (`token`).
    * `attention_width`: width of query, key and value over all `heads`; 0 means the LLM's width.
    * `pooling`: how the rows of C become one vector.
    * `language_input`: `soft` asks the language head, `forced` takes what is given (else "unknown"), `none` has no language.
    * `normalise`: rows are scaled to a root mean square of 1 before the attention, because the size of embeddings
      differs fiftyfold between LLMs and the gate's learning rate should not have to.
    """

    languages: tuple[str, ...] = ()
    granularity: str = "scalar"
    heads: int = 4
    attention_width: int = 0
    pooling: str = "mean"
    language_input: str = "soft"
    language_width: int = 32
    hidden_width: int = 128
    activation: str = "gelu"
    normalise: bool = True

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise CheckpointError(f"gate.{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("heads", "language_width", "hidden_width"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise CheckpointError(f"gate.{name} must be a whole number of at least 1")
        if self.attention_width < 0 or self.attention_width % self.heads:
            raise CheckpointError(f"gate.attention_width must be a multiple of the {self.heads} heads")
        if UNKNOWN in self.languages or len(set(self.languages)) != len(self.languages):
            raise CheckpointError(f"gate.languages must be different codes, without {UNKNOWN!r}, which is always there")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "languages": list(self.languages)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GateSpec:
        unknown = sorted(set(data) - set(cls.__dataclass_fields__))
        if unknown:
            raise CheckpointError(f"the gate has an option {unknown[0]!r} that this version does not know: update")
        return cls(**{**data, "languages": tuple(data.get("languages", ()))})

    def row_of(self, language: str) -> int:
        """Row of a language in the embedding; 0 for one that the gate was not trained with."""
        return self.languages.index(language) + 1 if language in self.languages else 0

    def distribution(self, languages: Sequence[str | None], device: torch.device = CPU) -> torch.Tensor:
        """float32 (batch, 1 + languages): all of a row on the given language, zeros for None (ask the head)."""
        rows = [[0.0] * (1 + len(self.languages)) for _ in languages]
        for index, language in enumerate(languages):
            if language is not None:
                rows[index][self.row_of(language)] = 1.0
        return send(torch.tensor(rows), device)


class Weights(NamedTuple):
    """What the gate says, float32.

    `encoder` and `llm` broadcast over (batch, rows, d): (batch, 1, 1) for `scalar`, (batch, 1, d) for `vector`, (batch,
    rows, 1) for `token`; every value is in (0, 2). `language` (batch, 1 + languages) is the distribution that was used,
    `language_logits` the head's own opinion.
    """

    encoder: torch.Tensor
    llm: torch.Tensor
    language: torch.Tensor
    language_logits: torch.Tensor


class Gate(nn.Module):
    """Cross-attention, language head and embedding, and the network that gives the two weights."""

    def __init__(self, spec: GateSpec, input_width: int, output_width: int) -> None:
        super().__init__()
        self.spec = spec
        width = spec.attention_width or output_width
        if width % spec.heads:
            raise CheckpointError(f"the gate's width {width} is no multiple of its {spec.heads} heads")
        rows = 1 + len(spec.languages)
        self.query = nn.Linear(output_width, width, bias=False)
        self.key = nn.Linear(output_width, width, bias=False)
        self.value = nn.Linear(output_width, width, bias=False)
        self.language_head = nn.Linear(input_width, rows)
        self.language_embedding = nn.Parameter(torch.randn(rows, spec.language_width) * 0.1)
        language_width = 0 if spec.language_input == "none" else spec.language_width
        self.hidden = nn.Linear(width + language_width, spec.hidden_width)
        self.output = nn.Linear(spec.hidden_width, 2 * (output_width if spec.granularity == "vector" else 1))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        states: torch.Tensor,
        mask: torch.Tensor,
        mapped: torch.Tensor,
        prompt: torch.Tensor,
        prompt_mask: torch.Tensor,
        language: torch.Tensor,
    ) -> Weights:
        """The two weights of each question.

        states (batch, n, input width) and mask (batch, n) of the encoder; mapped (batch, n, d), without the boundary; prompt
        (batch, m, d), the LLM's embeddings of the prompt, and its mask (batch, m), at least one 1 a row; language (batch, 1 +
        languages), where a row of zeros leaves it to the head.
        """
        logits = self.language_logits(states, mask)
        used = self._language(logits, language)
        context, values = self._attend(mapped, mask, prompt)
        if self.spec.granularity == "token":
            # A prompt row is weighed by what it read, a mapped row by what others would read from it.
            return Weights(
                self._weigh(values, used)[..., :1].float(), self._weigh(context, used)[..., 1:].float(), used, logits
            )
        both = self._weigh(self._pool(context, prompt_mask).unsqueeze(1), used)
        encoder, llm = both.chunk(2, dim=-1)
        return Weights(encoder, llm, used, logits)

    def language_logits(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The language head on the mean encoder state: (batch, 1 + languages), float32."""
        logits: torch.Tensor = self.language_head(self.mean_state(states, mask)).float()
        return logits

    @staticmethod
    def mean_state(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the language head reads: (batch, n, input width) and mask (batch, n) → (batch, input width)."""
        weight = mask.unsqueeze(-1).to(states.dtype)
        return (states * weight).sum(dim=1) / weight.sum(dim=1)

    def _language(self, logits: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        total = given.sum(dim=-1, keepdim=True)
        if self.spec.language_input == "soft":
            # The head learns languages from its own loss alone: the answer's loss must not bend it.
            otherwise = torch.softmax(logits.detach(), dim=-1)
        else:
            otherwise = torch.nn.functional.pad(torch.ones_like(total), (0, given.shape[-1] - 1))
        return torch.where(total > 0, given / total.clamp(min=1e-6), otherwise)

    def _attend(
        self, mapped: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """C (batch, m, width) and the values (batch, n, width)."""
        if self.spec.normalise:
            mapped, prompt = _unit_rms(mapped), _unit_rms(prompt)
        query, key = self._split(self.query(prompt)), self._split(self.key(mapped))
        value = self.value(mapped)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores = scores.float().masked_fill(mask[:, None, None, :] == 0, -1e30)
        heads = torch.softmax(scores, dim=-1).to(value.dtype) @ self._split(value)
        return heads.transpose(1, 2).flatten(2), value

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(*rows.shape[:2], self.spec.heads, -1).transpose(1, 2)

    def _pool(self, context: torch.Tensor, prompt_mask: torch.Tensor) -> torch.Tensor:
        keep = prompt_mask.unsqueeze(-1)
        if self.spec.pooling == "max":
            return context.masked_fill(keep == 0, -torch.inf).amax(dim=1)
        if self.spec.pooling == "last":
            after = torch.nn.functional.pad(prompt_mask[:, 1:], (0, 1))
            keep = (prompt_mask * (1 - after)).unsqueeze(-1)
        weight = keep.to(context.dtype)
        return (context * weight).sum(dim=1) / weight.sum(dim=1)

    def _weigh(self, context: torch.Tensor, language: torch.Tensor) -> torch.Tensor:
        """(batch, rows, width) → weights (batch, rows, outputs), float32."""
        if self.spec.language_input != "none":
            embedded = (language @ self.language_embedding.float()).to(context.dtype)
            context = torch.cat([context, embedded.unsqueeze(1).expand(-1, context.shape[1], -1)], dim=-1)
        activation = getattr(torch.nn.functional, self.spec.activation, torch.tanh)
        # tanh and the sum in float32: near 1, bfloat16 has steps of 0.008.
        return 1.0 + torch.tanh(self.output(activation(self.hidden(context))).float())


def _unit_rms(rows: torch.Tensor) -> torch.Tensor:
    # Clamped, not added to: the ONNX exporter takes "+ 1e-12" for "+ 0", and padding would become NaN.
    return rows * torch.rsqrt(rows.float().pow(2).mean(dim=-1, keepdim=True).clamp(min=1e-12)).to(rows.dtype)
