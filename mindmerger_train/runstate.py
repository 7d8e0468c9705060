"""The state of a run on disk: weights, optimiser and progress in one file, so that one rename makes it the last good one.

What this module does not know: losses, logs, when to save.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from mindmerger.errors import CheckpointError, ModelError
from mindmerger_train.files import whole

FOLDER = "state"
FILE = "state.pt"


@dataclass
class Progress:
    """Where a run stands; all that a resumed run needs beside weights and optimiser.

    `tokens`: positions seen by the LLM in all, padding not counted. `best`: the lowest held-out loss so far, at `best_step`.
    `evaluated_step`: where the held-out rows were last looked at. `window_…`: sums since the last line of the log, so that a
    resumed run writes the same next line.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    evaluated_step: int = -1
    window_loss: float = 0.0
    window_count: int = 0
    window_tokens: int = 0
    window_seconds: float = 0.0


def state_file(out: Path) -> Path:
    """Where the state of a run that writes to `out` is."""
    return out / FOLDER / FILE


@contextlib.contextmanager
def saving(what: str, folder: Path) -> Iterator[None]:
    """Turn a write to `folder` that fails into a ModelError that says so."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch makes a RuntimeError out of a failed write; any other RuntimeError is a defect and passes.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError | SafetensorError):
            cause = cause.__context__
        if cause is None:
            raise
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
        raise ModelError(
            f"{what} could not be written to {folder} ({reason}); what was saved before is as it was: free some space and "
            "go on with --resume"
        ) from error


def save_state(out: Path, module: nn.Module, optimiser: Any, progress: Progress) -> None:
    """Write the state of the trained parameters. A run that is killed meanwhile keeps the state before.

    Raises ModelError when it cannot be written (a full disk).
    """
    target = state_file(out)
    parameters = {name: p.detach().cpu() for name, p in module.named_parameters() if p.requires_grad}
    learned = optimiser.state_dict()
    # On the CPU, so that a run may go on where there is another device.
    learned["state"] = {
        key: {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in entry.items()}
        for key, entry in learned["state"].items()
    }
    with saving("the state", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as part, part.open("wb") as stream:
            torch.save({"parameters": parameters, "optimiser": learned, "progress": asdict(progress)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        # Versions before the single file had the progress beside it: it would now be of another step.
        (target.parent / "progress.json").unlink(missing_ok=True)


def load_state(out: Path, module: nn.Module, optimiser: Any) -> Progress:
    """Put weights and optimiser back to where they were.

    Raises CheckpointError when the state is damaged or of something else than what is trained now.
    """
    path = state_file(out)
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        values = state["progress"] if "progress" in state else json.loads(path.with_name("progress.json").read_bytes())
        progress = Progress(**{entry.name: values[entry.name] for entry in fields(Progress) if entry.name in values})
        parameters: dict[str, torch.Tensor] = state["parameters"]
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"the state {path} cannot be read ({error}): start again without --resume") from error
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    different = sorted(
        name
        for name in trained.keys() | parameters.keys()
        if name not in trained or name not in parameters or trained[name].shape != parameters[name].shape
    )
    if different:
        raise CheckpointError(
            f"the state {path} is of another run than this recipe's: {different[0]} differs; use its recipe, or another --out"
        )
    with torch.no_grad():
        for name, value in parameters.items():
            trained[name].copy_(value)
    try:
        optimiser.load_state_dict(state["optimiser"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"the optimiser's state in {path} does not fit this recipe ({error})") from error
    return progress
