"""MindMerger's published checkpoint file, both ways (docs/method.md, "Checkpoint file").

The authors' code keeps `torch.save({"model_state_dict": {…}})` with five tensors. A pickle can run code when it is read, so
it is read with `weights_only=True`, and anything but exactly those tensors is refused.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch

from mindmerger.errors import CheckpointError
from mindmerger_train.files import whole
from mindmerger_train.merger import Merger

KEYS = ("end_boundary", "mlp.linear1.weight", "mlp.linear1.bias", "mlp.linear2.weight", "mlp.linear2.bias")


# What torch says of a pickle that would call something.
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")


def read_published(path: Path) -> Merger:
    """The merger in a `pytorch_model.bin` of the authors' code, float32; its widths are those of the file.

    Raises CheckpointError when the file is missing, no such checkpoint, or its tensors do not fit each other.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        name = _FOREIGN.search(str(error))
        what = f"it holds {name[1]}" if name else "torch.save did not write it, or it is damaged"
        raise CheckpointError(f"{path} cannot be read as tensors alone, so it is not read at all: {what}") from None
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has no 'model_state_dict': it is no MindMerger checkpoint")
    if set(state) != set(KEYS):
        odd = sorted(set(state) ^ set(KEYS))[0]
        raise CheckpointError(
            f"{path} should have exactly the tensors {', '.join(KEYS)}; {odd!r} is {'unknown' if odd in state else 'missing'}"
        )
    if not all(isinstance(value, torch.Tensor) and value.is_floating_point() for value in state.values()):
        raise CheckpointError(f"{path} has values that are no floating-point tensors")
    first = state["mlp.linear1.weight"]
    if first.ndim != 2 or state["end_boundary"].ndim != 3:
        raise CheckpointError(f"{path}: the shapes are not those of a MindMerger mapping")
    merger = Merger(first.shape[1], state["end_boundary"].shape[2])
    for key, expected in merger.state_dict().items():
        if state[key].shape != expected.shape:
            raise CheckpointError(f"{path}: {key} is {tuple(state[key].shape)}, expected {tuple(expected.shape)}")
        if not bool(torch.isfinite(state[key]).all()):
            raise CheckpointError(f"{path}: {key} contains NaN or infinite weights")
    merger.load_state_dict({key: state[key].float() for key in KEYS})
    return merger


def write_published(merger: Merger, path: Path) -> None:
    """Write a merger as the authors' code keeps it. Raises CheckpointError when the format has no room for it."""
    if merger.method != "mindmerger":
        raise CheckpointError(f"the published format holds a mindmerger mapping; this checkpoint is {merger.method}")
    state = {key: value.detach().clone() for key, value in merger.state_dict().items()}
    with whole(path) as part:
        torch.save({"model_state_dict": state}, part)
