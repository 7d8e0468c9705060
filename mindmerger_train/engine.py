"""The training loop that all stages share: schedule, step, evaluation, what is kept and when.

A stage says what to compute (`Task`); this module knows nothing of encoders, LLMs or data, nothing of files' formats
(runstate.py, runlog.py), and leaves precision and several processes to accelerate. Progress is counted in tokens, so that the
schedule does not depend on how batches are cut. What a step computes does not depend on how many processes share it:
every process draws the same batches and computes its part of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from mindmerger.errors import InputError, MindMergerError
from mindmerger.reclaim import give_memory_back
from mindmerger_train.charts import write_chart
from mindmerger_train.layout import Row
from mindmerger_train.optimisers import NAMES, make_optimiser
from mindmerger_train.runlog import RunLog
from mindmerger_train.runstate import FOLDER, Progress, load_state, save_state, saving, state_file
from mindmerger_train.tables import above_zero, at_least
from mindmerger_train.transfer import CPU, best_device

# Steps between two lines of the log.
LOG_STEPS = 10
# Parameter numbers of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train. `tokens`: positions seen by the LLM in all, padding not counted.

    A step is `accumulate` batches of at most `batch_tokens` positions each (padding included), over all processes together;
    where the number of processes does not divide `accumulate`, each batch is shared out by rows. `optimiser`: `adamw`, or
    `muon` for the matrices (optimisers.py), which wants ten times the `lr` and small batches; `betas` and `eps` are AdamW's.
    """

    tokens: int
    lr: float
    optimiser: str = "adamw"
    batch_tokens: int = 3000
    accumulate: int = 1
    warmup: float = 0.02
    final_lr: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    precision: str = "bf16"
    save_seconds: float = 300.0
    eval_tokens: int = 150_000

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_tokens", "accumulate", "eval_tokens"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"schedule.{name} must be a whole number of at least 1, not {getattr(self, name)!r}")
        above_zero("schedule.", lr=self.lr, eps=self.eps, clip=self.clip)
        at_least(0, "schedule.", weight_decay=self.weight_decay, final_lr=self.final_lr, save_seconds=self.save_seconds)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"schedule.betas must be at least 0 and below 1, not {list(self.betas)}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"schedule.warmup is a share of the run, at least 0 and below 1, not {self.warmup!r}")
        if self.optimiser not in NAMES:
            raise InputError(f"schedule.optimiser must be {' or '.join(NAMES)}, not {self.optimiser!r}")
        if self.precision not in ("bf16", "no"):
            raise InputError(f"schedule.precision must be bf16 or no (float32), not {self.precision!r}")

    def lr_at(self, seen: int) -> float:
        """Learning rate after `seen` tokens: linear warm-up, then a cosine down to `final_lr` of the peak."""
        progress = min(1.0, seen / self.tokens)
        if progress < self.warmup:
            return self.lr * (progress / self.warmup + 1e-3)
        cosine = 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
        return self.lr * (self.final_lr + (1 - self.final_lr) * cosine)


class Task(Protocol):
    """What a stage computes.

    Optional besides: `parameter_groups() -> list[dict]` for the optimiser, each group with its `rate` as a multiple of the
    schedule's; `report() -> dict`, asked after each evaluation and merged into its line of the log; `to(device)`, for what a
    step needs besides `trained`.
    """

    trained: nn.Module

    def loss(self, rows: list[Row]) -> tuple[torch.Tensor, int]:
        """Sum of the loss over response tokens, and their number."""

    def save(self, folder: Path, training: dict[str, object]) -> None:
        """Write what the stage has made, ready for the next stage."""


class TrainingError(MindMergerError):
    """Training cannot go on (NaN loss). The last good state is kept. Exit code 9."""

    exit_code = 9


class _Step(nn.Module):
    """What accelerate wraps: the sum of the loss over some rows.

    Every trained parameter takes part, if only with a zero, so that rows that miss some (or all: a process may have no row of
    a small batch) still have a gradient for each: processes then agree on what they exchange, and on what moves.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.trained = task.trained
        self._loss = task.loss

    def forward(self, rows: list[Row]) -> torch.Tensor:
        parameters = [p for p in self.trained.parameters() if p.requires_grad]
        touched = torch.stack([p.flatten()[0].float() for p in parameters]).sum() * 0.0
        return self._loss(rows)[0] + touched if rows else touched


def share_out(packs: Sequence[list[Row]], process: int, processes: int) -> list[list[Row]]:
    """The batches of one step that `process` of `processes` computes: as many in each process, together all rows once."""
    if len(packs) % processes == 0:
        return list(packs[process::processes])
    return [pack[process::processes] for pack in packs]


def response_tokens(rows: Sequence[Row]) -> int:
    """Tokens that the LLM is asked for."""
    return sum(len(row.label_ids) - len(row.given) for row in rows)


def evaluate(task: Task, accelerator: Accelerator, held_out: list[list[Row]]) -> float:
    """Mean loss per response token on held-out batches, in the memory of one batch."""
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
    precision: str | None = None,
) -> Progress:
    """Train until the token budget is spent; writes log, chart, `state/` and, through the task, the result.

    `stream` gives the same batches in the same order in every run and every process. `precision` overrides the schedule's.
    Without `resume`, a state in `folder` is thrown away. Raises TrainingError on a NaN loss, ModelError when the disk is full,
    CheckpointError when the state does not fit; KeyboardInterrupt after Ctrl-C or SIGTERM, once the state is saved.
    """
    with saving("the result", folder):
        folder.mkdir(parents=True, exist_ok=True)
    _keep_freed_memory()
    run = _Run(task, held_out, schedule, folder, precision or schedule.precision)
    run.start(stream, resume)
    try:
        with _deferred_interrupts() as run.interrupted:
            while run.progress.tokens < schedule.tokens:
                run.step([next(stream) for _ in range(schedule.accumulate)])
                if run.stopping or (run.interrupted.is_set() and run.accelerator.num_processes == 1):
                    run.save()
                    run.accelerator.wait_for_everyone()
                    raise KeyboardInterrupt
        run.finish()
    finally:
        run.log.close()
    return run.progress


class _Run:
    """One call of `train`. Only the main process logs, evaluates and saves; the others wait for it at their next step."""

    def __init__(self, task: Task, held_out: list[list[Row]], schedule: Schedule, folder: Path, precision: str) -> None:
        self.task, self.held_out, self.schedule, self.folder = task, held_out, schedule, folder
        # A second run in one process may want another precision.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=precision, cpu=best_device() == CPU)
        self.main = bool(self.accelerator.is_main_process)
        # Before the optimiser sees the parameters. Which of several GPUs is this process's, accelerate says.
        if hasattr(task, "to"):
            cast(Any, task).to(self.accelerator.device)
        self.parameters = [p for p in task.trained.parameters() if p.requires_grad]
        groups = cast(Any, task).parameter_groups() if hasattr(task, "parameter_groups") else self.parameters
        self.model, self.optimiser = self.accelerator.prepare(_Step(task), make_optimiser(groups, schedule))
        self.progress = Progress()
        self.saved = time.monotonic()
        self.interrupted = threading.Event()
        self.stopping = False  # some process has been interrupted: all of them know after the same step

    def start(self, stream: Iterator[list[Row]], resume: bool) -> None:
        """Go to where the state is, or throw away what an earlier run has left."""
        if resume and state_file(self.folder).is_file():
            self.progress = load_state(self.folder, self.task.trained, self.optimiser)
            for _ in range(self.progress.step * self.schedule.accumulate):
                next(stream)
        elif self.main:
            state_file(self.folder).unlink(missing_ok=True)
        self.log = RunLog(self.folder, self.schedule.tokens, self.progress, silent=not self.main)
        if self.accelerator.num_processes > 1:
            self.log.say(f"{self.accelerator.num_processes} processes share every step")
        if self.progress.step:
            self.log.say(f"going on after step {self.progress.step} ({self.progress.tokens:,} tokens)")
        self.next_eval = self._next_eval()

    def step(self, packs: list[list[Row]]) -> None:
        """One optimiser step on `packs`, then what is due after it."""
        started = time.monotonic()
        progress, schedule, accelerator = self.progress, self.schedule, self.accelerator
        for group in self.optimiser.param_groups:
            group["lr"] = schedule.lr_at(progress.tokens) * group.get("rate", 1.0)
        # What a stage draws at random follows from the step, so that nothing of it needs to be kept.
        torch.manual_seed(schedule.seed * 1_000_003 + progress.step * 257 + accelerator.process_index)
        count = max(1, sum(response_tokens(pack) for pack in packs))
        loss, norm = self._gradient(share_out(packs, accelerator.process_index, accelerator.num_processes), count)
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = f"the loss is {loss / count}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
            raise TrainingError(
                f"{what} at step {progress.step}; {self._last_good()}, or look at the data of that step"
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        tokens = sum(row.length() for pack in packs for row in pack)
        seconds = time.monotonic() - started
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += seconds
        progress.window_loss += loss
        progress.window_count += count
        progress.window_tokens += tokens
        progress.window_seconds += seconds
        self.log.advance(progress, tokens, loss / count)
        if progress.step % LOG_STEPS == 0 or progress.tokens >= schedule.tokens:
            self._log(norm)
        if progress.tokens >= self.next_eval or progress.tokens >= schedule.tokens:
            self._evaluate()
        if time.monotonic() - self.saved > schedule.save_seconds:
            self.save()

    def _gradient(self, batches: list[list[Row]], count: int) -> tuple[float, float]:
        """Gradient of the loss of all processes together, clipped. Returns its loss (a sum) and the norm before clipping."""
        accelerator = self.accelerator
        total = torch.zeros(2, device=accelerator.device)
        for index, rows in enumerate(batches):
            last = index == len(batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.model(rows)
                total[0] += loss.detach()
                # The mean that processes make of their gradients is undone; `count` is of all of them already.
                accelerator.backward(loss * (accelerator.num_processes / count))
        norm = accelerator.clip_grad_norm_(self.parameters, self.schedule.clip)
        total[1] += float(self.interrupted.is_set())
        whole, interrupted = accelerator.reduce(total, "sum").cpu().tolist()
        self.stopping = bool(interrupted)
        return float(whole), float(norm)

    def _log(self, norm: float) -> None:
        progress = self.progress
        line = {
            "step": progress.step,
            "tokens": progress.tokens,
            "loss": round(progress.window_loss / progress.window_count, 7),
            "lr": float(f"{self.schedule.lr_at(progress.tokens):.4g}"),
            "norm": round(norm, 4),
            "tokens_per_second": round(progress.window_tokens / max(1e-9, progress.window_seconds), 1),
            "seconds": round(progress.seconds, 1),
        }
        progress.window_loss, progress.window_count = 0.0, 0
        progress.window_tokens, progress.window_seconds = 0, 0.0
        self.log.training(line, progress)
        # Batches of ever other shapes leave holes in the memory that is kept (see _keep_freed_memory): without this a run
        # grew to five times what a step needs.
        give_memory_back()

    def _next_eval(self) -> int:
        return (self.progress.tokens // self.schedule.eval_tokens + 1) * self.schedule.eval_tokens

    def _evaluate(self) -> None:
        """Look at the held-out rows, and keep the result if it is the best so far (always, where nothing is held out)."""
        self.next_eval = self._next_eval()
        if not self.main:
            return
        progress = self.progress
        progress.evaluated_step = progress.step
        started = time.monotonic()
        line: dict[str, object] = {"step": progress.step, "tokens": progress.tokens}
        value = evaluate(self.task, self.accelerator, self.held_out) if self.held_out else -math.inf
        if math.isnan(value):
            raise TrainingError(f"the held-out loss is NaN after step {progress.step}; {self._last_good()}")
        if self.held_out:
            line |= {"held_out_loss": round(value, 7), "perplexity": round(math.exp(min(value, 700.0)), 5)}
            self.log.say(
                f"step {progress.step}  held-out loss {value:.4f}  perplexity {math.exp(min(value, 700.0)):.3f}"
            )
        if hasattr(self.task, "report"):
            line |= cast(Any, self.task).report()
        self.log.line(line)
        if value < progress.best or not self.held_out:
            progress.best, progress.best_step = value if self.held_out else math.inf, progress.step
            training: dict[str, object] = {
                "tokens": progress.tokens,
                "steps": progress.step,
                "seconds": round(progress.seconds),
                "held_out_loss": round(value, 4) if self.held_out else None,
                "schedule": asdict(self.schedule),
            }
            with saving("the checkpoint", self.folder):
                self.task.save(self.folder, training)
        write_chart(self.folder)
        progress.seconds += time.monotonic() - started

    def _last_good(self) -> str:
        """What is left of a run that has diverged, and what to do with it."""
        best = (
            f"; the best result so far, of step {self.progress.best_step}, is in {self.folder}"
            if self.progress.best_step
            else ""
        )
        if state_file(self.folder).is_file():
            return f"a state before it is in {self.folder / FOLDER}{best}: lower schedule.lr and go on with --resume"
        return f"no state was saved before it{best}: lower schedule.lr and start again"

    def save(self) -> None:
        """Save the state."""
        if self.main:
            save_state(self.folder, self.task.trained, self.optimiser, self.progress)
        self.saved = time.monotonic()

    def finish(self) -> None:
        """Save the state, draw the chart, show the table."""
        if self.progress.evaluated_step != self.progress.step:  # resumed with a budget that was spent already
            self._evaluate()
        self.save()
        if self.main:
            write_chart(self.folder)
        self.log.close()
        self.log.say(self.log.table(self.progress))
        self.accelerator.wait_for_everyone()


@contextlib.contextmanager
def _deferred_interrupts() -> Iterator[threading.Event]:
    """A first Ctrl-C or SIGTERM sets the event, so that a step is finished and its state saved; a second one interrupts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep_freed_memory() -> None:
    """Ask glibc not to give large freed blocks back to the system.

    Each step allocates the same hundreds of megabytes again; faulting the pages in anew took up to half of a step. Other
    C libraries have no `mallopt`: then nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
