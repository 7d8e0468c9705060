"""From Python lists and kept states to tensors on a model's device: one transfer for each, which nothing waits for.

What this module does not know: what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

CPU = torch.device("cpu")


def best_device() -> torch.device:
    """The GPU that torch finds, else the CPU. Apple's are left out: nobody has tried training on them."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return CPU if found is None or found.type == "mps" else found


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are (all of them at one place)."""
    return next(module.parameters()).device


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on `device`. From the CPU to a GPU it goes out of page-locked memory, while Python goes on."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def whole_numbers(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device = CPU) -> torch.Tensor:
    """int64 tensor of a list, or of a list of lists that are equally long."""
    return send(torch.tensor(values, dtype=torch.int64), device)


def pad_right(rows: Sequence[Sequence[int]], device: torch.device = CPU) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of several texts → int64 ids and mask (batch, longest), padded on the right with 0."""
    longest = max(len(row) for row in rows)
    ids = whole_numbers([[*row, *([0] * (longest - len(row)))] for row in rows], device)
    return ids, lengths_mask([len(row) for row in rows], device)


def lengths_mask(lengths: Sequence[int], device: torch.device = CPU) -> torch.Tensor:
    """int64 (batch, longest): 1 for what is there, then 0."""
    longest = max(lengths)
    return whole_numbers([[1] * length + [0] * (longest - length) for length in lengths], device)


def index_rows(tensor: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    """The rows `places` of a tensor; the tensor itself where that is all of them in order."""
    if list(places) == list(range(len(tensor))):
        return tensor
    return tensor.index_select(0, whole_numbers(places, tensor.device))
