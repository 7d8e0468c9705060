"""The merger: everything that is trained (DESIGN, section 2): mapping, boundary row and, for ST-Merge, the gate.

MindMerger's mapping is as in the authors' code: `Linear(d_enc, 2·d_enc) → ReLU → Linear(2·d_enc, d)`, bias in both, no norm, no
dropout, and a zero-initialised boundary row of shape (1, 1, d). LangBridge's is one Linear with bias.
"""

from __future__ import annotations

import torch
from torch import nn

from mindmerger.errors import CheckpointError
from mindmerger_train.gate import Gate, GateSpec

METHODS = ("mindmerger", "langbridge", "st-merge", "mono")


class Mapping(nn.Module):
    """2-layer MLP from the encoder's states to the LLM's embedding space."""

    def __init__(self, input_width: int, output_width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(input_width, 2 * input_width)
        self.relu = nn.ReLU()
        self.linear2 = nn.Linear(2 * input_width, output_width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…, input width) → (…, output width)."""
        mapped: torch.Tensor = self.linear2(self.relu(self.linear1(states)))
        return mapped

    @torch.no_grad()
    def set_linear(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Make the mapping compute exactly `weight @ x + bias`; weight (output, input), bias (output,).

        The hidden layer is twice as wide as its input, so it can hold relu(x) and relu(−x), whose difference is x. The
        boundary between the two halves is where training starts to bend it.
        """
        width = weight.shape[1]
        identity = torch.eye(width)
        self.linear1.weight.copy_(torch.cat([identity, -identity]))
        self.linear1.bias.zero_()
        self.linear2.weight.copy_(torch.cat([weight, -weight], dim=1))
        self.linear2.bias.copy_(bias)


class LinearMapping(nn.Linear):
    """LangBridge's mapping: (…, input width) → (…, output width)."""

    @torch.no_grad()
    def set_linear(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Make the mapping `weight @ x + bias`."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)


class Merger(nn.Module):
    """Mapping, boundary row and gate: encoder states in, soft prompt out.

    `method` decides the parts: `mindmerger` mlp; `st-merge` mlp and gate; `langbridge` one Linear; `mono` nothing at all,
    the LLM alone.
    """

    def __init__(
        self, input_width: int, output_width: int, method: str = "mindmerger", gate: GateSpec | None = None
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise CheckpointError(f"the method must be one of {', '.join(METHODS)}, not {method!r}")
        self.method = method
        self.gate = Gate(gate or GateSpec(), input_width, output_width) if method == "st-merge" else None
        if method == "mono":
            return
        self.mlp: Mapping | LinearMapping = (LinearMapping if method == "langbridge" else Mapping)(
            input_width, output_width
        )
        self.end_boundary = nn.Parameter(torch.zeros(1, 1, output_width))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Encoder states (batch, n, input width) → soft prompt (batch, n + 1, d), unweighted, the boundary row last.

        Rows of padded positions are mapped too and have no meaning: whoever assembles the sequence drops them.
        """
        boundary = self.end_boundary.to(states.dtype).expand(states.shape[0], 1, -1)
        return torch.cat([self.mlp(states), boundary], dim=1)
