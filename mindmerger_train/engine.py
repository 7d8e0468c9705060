"""The training loop that all stages share: schedule, gradient step, log line, resumable state.

A stage says what to compute (`Task`); this module knows nothing of encoders, LLMs or data. Progress is counted in tokens, so
that the schedule does not depend on how batches are cut.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import pickle
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn

from mindmerger.errors import CheckpointError, MindMergerError
from mindmerger_train.layout import Row

STATE = "state"
# Parameter numbers of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train. `tokens`: positions seen by the LLM in all, padding not counted."""

    tokens: int
    lr: float
    batch_tokens: int = 3000
    warmup: float = 0.02
    final_lr: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    save_seconds: float = 300.0
    eval_tokens: int = 150_000

    def lr_at(self, seen: int) -> float:
        """Learning rate after `seen` tokens: linear warm-up, then a cosine down to `final_lr` of the peak."""
        progress = min(1.0, seen / self.tokens)
        if progress < self.warmup:
            return self.lr * (progress / self.warmup + 1e-3)
        cosine = 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
        return self.lr * (self.final_lr + (1 - self.final_lr) * cosine)


class Task(Protocol):
    """What a stage computes."""

    trained: nn.Module

    def loss(self, rows: list[Row]) -> tuple[torch.Tensor, int]:
        """Sum of the loss over response tokens, and their number."""

    def save(self, folder: Path, training: dict[str, object]) -> None:
        """Write what the stage has made, ready for the next stage."""


@dataclass
class Progress:
    """Where a run stands; all that a resumed run needs beside weights and optimiser."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf


class TrainingError(MindMergerError):
    """Training cannot go on (NaN loss). The last good state is kept. Exit code 9."""

    exit_code = 9


def evaluate(task: Task, accelerator: Accelerator, held_out: list[list[Row]]) -> float:
    """Mean loss per response token on held-out batches."""
    total, count = 0.0, 0
    with torch.no_grad(), accelerator.autocast():
        for rows in held_out:
            loss, tokens = task.loss(rows)
            total, count = total + float(loss), count + tokens
    return total / max(1, count)


def train(
    task: Task,
    stream: Iterator[list[Row]],
    held_out: list[list[Row]],
    schedule: Schedule,
    folder: Path,
    *,
    resume: bool = False,
    precision: str = "bf16",
) -> Progress:
    """Train until the token budget is spent; writes `metrics.jsonl`, `state/` and, through the task, the result.

    `precision` is `bf16` (autocast) or `no` (float32). Raises TrainingError on a NaN loss.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _keep_freed_memory()
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    # A task may ask for several groups, each with its `rate` as a multiple of the schedule's.
    groups = task.parameter_groups() if hasattr(task, "parameter_groups") else None
    parameters = [p for p in task.trained.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        groups or parameters,
        lr=schedule.lr,
        betas=schedule.betas,
        eps=schedule.eps,
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    progress = Progress()
    if resume and (folder / STATE).is_dir():
        progress = _load_state(folder / STATE, task.trained, optimiser)
        for _ in range(progress.step):
            next(stream)
    elif (folder / "metrics.jsonl").exists():
        (folder / "metrics.jsonl").unlink()
    started = time.monotonic() - progress.seconds
    saved, next_eval = time.monotonic(), (progress.tokens // schedule.eval_tokens + 1) * schedule.eval_tokens
    recent = _Recent()
    while progress.tokens < schedule.tokens:
        rows = next(stream)
        for group in optimiser.param_groups:
            group["lr"] = schedule.lr_at(progress.tokens) * group.get("rate", 1.0)
        with accelerator.autocast():
            loss, count = task.loss(rows)
        value = float(loss.detach()) / max(1, count)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {progress.step}; the state before it is in {folder / STATE}"
            )
        accelerator.backward(loss / max(1, count))
        norm = accelerator.clip_grad_norm_(parameters, schedule.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        progress.step += 1
        progress.tokens += sum(row.length() for row in rows)
        progress.seconds = time.monotonic() - started
        recent.add(float(loss.detach()), count, sum(row.length() for row in rows))
        if progress.step % 10 == 0:
            _log(folder, progress, schedule, recent, float(norm))
            recent = _Recent()
        if progress.tokens >= next_eval or progress.tokens >= schedule.tokens:
            next_eval += schedule.eval_tokens
            _evaluate_and_keep(task, accelerator, held_out, schedule, folder, progress)
        if time.monotonic() - saved > schedule.save_seconds:
            _save_state(folder / STATE, task.trained, optimiser, progress)
            saved = time.monotonic()
    _save_state(folder / STATE, task.trained, optimiser, progress)
    return progress


def _keep_freed_memory() -> None:
    """Ask glibc not to give large freed blocks back to the system.

    Each step allocates the same hundreds of megabytes again; faulting the pages in anew took up to half of a step. Other
    C libraries have no `mallopt`: then nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class _Recent:
    """Sums since the last log line."""

    def __init__(self) -> None:
        self.loss, self.count, self.tokens, self.since = 0.0, 0, 0, time.monotonic()

    def add(self, loss: float, count: int, tokens: int) -> None:
        self.loss, self.count, self.tokens = self.loss + loss, self.count + count, self.tokens + tokens


def _log(folder: Path, progress: Progress, schedule: Schedule, recent: _Recent, norm: float) -> None:
    seconds = max(1e-9, time.monotonic() - recent.since)
    line = {
        "step": progress.step,
        "tokens": progress.tokens,
        "loss": round(recent.loss / max(1, recent.count), 4),
        "lr": round(schedule.lr_at(progress.tokens), 7),
        "norm": round(norm, 3),
        "tokens_per_second": round(recent.tokens / seconds, 1),
        "seconds": round(progress.seconds, 1),
    }
    _append(folder, line)
    left = (schedule.tokens - progress.tokens) / max(1.0, recent.tokens / seconds)
    print(
        f"step {progress.step}  {progress.tokens / schedule.tokens:6.1%}  loss {line['loss']:.3f}  "
        f"{line['tokens_per_second']:.0f} tokens/s  {left / 60:.0f} min left",
        file=sys.stderr,
        flush=True,
    )


def _append(folder: Path, line: Mapping[str, object]) -> None:
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def _evaluate_and_keep(
    task: Task,
    accelerator: Accelerator,
    held_out: list[list[Row]],
    schedule: Schedule,
    folder: Path,
    progress: Progress,
) -> None:
    value = evaluate(task, accelerator, held_out)
    _append(folder, {"step": progress.step, "tokens": progress.tokens, "held_out_loss": round(value, 4)})
    print(f"step {progress.step}  held-out loss {value:.4f}", file=sys.stderr, flush=True)
    if value < progress.best:
        progress.best = value
        task.save(
            folder,
            {
                "tokens": progress.tokens,
                "steps": progress.step,
                "seconds": round(progress.seconds),
                "held_out_loss": round(value, 4),
                "schedule": asdict(schedule),
            },
        )


def _trained_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def _save_state(folder: Path, module: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Replace `folder` as a whole: a run that is killed while saving keeps the state before."""
    temporary = folder.with_name(folder.name + ".part")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    torch.save({"parameters": _trained_state(module), "optimiser": optimiser.state_dict()}, temporary / "state.pt")
    (temporary / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    temporary.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _load_state(folder: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    try:
        state = torch.load(folder / "state.pt", weights_only=True)
        progress = Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"the state in {folder} cannot be read ({error}): start without --resume") from error
    names = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in state["parameters"].items():
            names[name].copy_(value)
    optimiser.load_state_dict(state["optimiser"])
    return progress
