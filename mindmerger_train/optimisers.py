"""The optimisers of `schedule.optimiser`: AdamW for everything, or Muon for matrices and AdamW for the rest.

Muon makes all singular values of a matrix's update alike (K. Jordan and others, 2024, https://kellerjordan.github.io/posts/muon/;
torch.optim.Muon). The encoder's states lie in few of their many directions, so the gradient of the mapping's first matrix does
too, and what AdamW takes for a step there is mostly the same few directions again. Measured: docs/log.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from mindmerger_train.engine import Schedule

NAMES = ("adamw", "muon")
VECTOR_RATE = 0.05
"""Rate of AdamW's part beside Muon's, whose rates are an order of magnitude above what AdamW bears."""


def make_optimiser(
    parameters: Iterable[nn.Parameter] | Sequence[dict[str, Any]], schedule: Schedule
) -> torch.optim.Optimizer:
    """The schedule's optimiser for parameters, or for groups of them with a `rate` each (a multiple of the schedule's)."""
    adamw = {
        "lr": schedule.lr,
        "betas": schedule.betas,
        "eps": schedule.eps,
        "weight_decay": schedule.weight_decay,
        "fused": True,
    }
    if schedule.optimiser == "adamw":
        return torch.optim.AdamW(cast(Any, parameters), **cast(Any, adamw))
    return MuonAndAdamW(parameters, schedule.lr, schedule.weight_decay, adamw)


class MuonAndAdamW(torch.optim.Optimizer):
    """One optimiser to its callers: Muon steps the matrices, AdamW vectors and whatever else is no matrix."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Sequence[dict[str, Any]],
        lr: float,
        weight_decay: float,
        adamw: dict[str, Any],
    ) -> None:
        listed: list[Any] = list(parameters)
        groups: list[dict[str, Any]] = listed if listed and isinstance(listed[0], dict) else [{"params": listed}]
        matrices, others = [], []
        for group in groups:
            own, rate = list(group["params"]), group.get("rate", 1.0)
            matrices.append({**group, "params": [p for p in own if p.ndim == 2], "rate": rate})
            others.append({**group, "params": [p for p in own if p.ndim != 2], "rate": rate * VECTOR_RATE})
        self._parts: list[torch.optim.Optimizer] = []
        if any(group["params"] for group in matrices):
            used = [group for group in matrices if group["params"]]
            self._parts.append(
                torch.optim.Muon(
                    cast(Any, used), lr=lr, weight_decay=weight_decay, momentum=0.9, adjust_lr_fn="match_rms_adamw"
                )
            )
        if any(group["params"] for group in others):
            used = [group for group in others if group["params"]]
            self._parts.append(torch.optim.AdamW(used, **adamw))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Make groups and states one with the parts': who sets a rate here sets it there, and there is one state to save."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both; returns what `closure` does, if there is one."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimiser's. Raises ValueError where the state is of other parameters, or of another optimiser."""
        super().load_state_dict(state_dict)
        self._share()
