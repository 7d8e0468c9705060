"""Whole runs of each stage with tiny random models in float32, for processes that are killed or work together.

Started from a fork server (`processes`), which imports torch once; a test's processes then begin in milliseconds.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import peft  # noqa: F401  (here, so that the fork server has it)
import torch
import transformers.models.bert.modeling_bert
import transformers.models.llama.modeling_llama  # noqa: F401

from mindmerger.errors import ModelError
from mindmerger_train import runlog
from mindmerger_train.checkpoint import Checkpoint
from mindmerger_train.encoders import EncoderSpec
from mindmerger_train.engine import Schedule, train
from mindmerger_train.gate import GateSpec
from mindmerger_train.layout import Row
from mindmerger_train.llms import LLMSpec
from mindmerger_train.merger import Merger
from mindmerger_train.stages import MergedTask, ReasonTask, SteeringTask
from mindmerger_train.steering import Steering
from tests.train.conftest import PROMPT, WIDTH, tiny_encoder, tiny_llama

STAGES = ("reason", "mapping", "augmentation", "steering")
LANGUAGES = ("en", "es", "sw")


def task(stage: str) -> MergedTask:
    """A stage's task, the same in every process."""
    llm, encoder = tiny_llama(), tiny_encoder("bert")
    torch.manual_seed(4)
    spec = EncoderSpec("nowhere", "tiny", "bert", 32, (1, 3), 64)
    method, gate = ("st-merge", GateSpec(LANGUAGES)) if stage == "steering" else ("mindmerger", None)
    checkpoint = Checkpoint(Merger(64, WIDTH, method, gate), spec, LLMSpec("x", "tiny", "llama", WIDTH), PROMPT)
    if stage == "reason":
        return ReasonTask(llm, None, checkpoint, rank=4)
    if stage == "steering":
        return SteeringTask(llm, encoder, checkpoint, Steering(train_mapping=True))
    return MergedTask(llm, encoder, checkpoint)


def batches(stage: str) -> Iterator[list[Row]]:
    """Small batches of unlike sizes; some rows have no soft prompt, a batch in seven has a single row."""
    for step in itertools.count():
        rows = []
        for index in range(1 if step % 7 == 3 else 3 + step % 2):
            encoder_ids = [4 + step % 50, 60, 61 + index] if stage != "reason" and (step + index) % 4 else None
            prompt_ids = [] if stage == "mapping" else [30 + step % 9, 31 + index]
            label_ids = [70 + (step + index) % 3, 80 + index, 2]
            language = LANGUAGES[(step + index) % 3]
            rows.append(
                Row(encoder_ids, prompt_ids, label_ids, frozenset({1}) if index == 1 else frozenset(), language)
            )
        yield rows


HELD_OUT = [[Row([9, 60, 61], [33], [71, 81, 2], language="es"), Row(None, [30], [72, 82, 2], language="en")]]


def run(stage: str, folder: Path, *, tokens: int = 600, resume: bool = False, **schedule: Any) -> None:
    """One training run with float32 throughout; a state after every step."""
    torch.set_num_threads(1)
    settings = {"lr": 1e-2, "eval_tokens": 100, "save_seconds": 0.0, **schedule}
    rows = [batch if stage != "reason" else batch[1:] for batch in HELD_OUT]
    train(task(stage), batches(stage), rows, Schedule(tokens=tokens, **settings), folder, resume=resume, precision="no")


def die() -> None:
    """What `kill -9` does, at this very moment."""
    os.kill(os.getpid(), signal.SIGKILL)


def _when(count: int, action: Any) -> Any:
    """A function that calls `action` the `count`-th time it is called."""
    counter = itertools.count(1)
    return lambda: action() if next(counter) == count else None


def run_and_die(stage: str, folder: Path, moment: str, count: int, resume: bool) -> None:
    """A run that is killed the `count`-th time that it comes to `moment`."""
    due = _when(count, die)
    if moment == "between steps":
        real_advance = runlog.RunLog.advance
        runlog.RunLog.advance = lambda *args: (real_advance(*args), due())[0]  # type: ignore[assignment, method-assign]
    elif moment == "half a log line":
        real_line = runlog.RunLog.line

        def half_line() -> None:
            with (folder / runlog.METRICS).open("a") as stream:
                stream.write('{"step": 12, "tok')
            die()

        due_line = _when(count, half_line)
        runlog.RunLog.line = lambda *args: (due_line(), real_line(*args))[1]  # type: ignore[assignment, method-assign]
    elif moment == "half a state":
        real_save = torch.save

        def half_state() -> None:
            (folder / "state" / "state.pt.part").write_bytes(b"PK" + bytes(1000))
            die()

        due_state = _when(count, half_state)
        torch.save = lambda *args: (due_state(), real_save(*args))[1]  # type: ignore[assignment]
    else:
        # Before or after the rename that makes a file the new one: of the state, of the checkpoint.
        name, when = moment.split(", ")
        real_replace = Path.replace

        def replace(self: Path, target: Any) -> Path:
            hit = Path(target).name == name
            if hit and when == "before":
                due()
            result = real_replace(self, target)
            if hit and when == "after":
                due()
            return result

        Path.replace = replace  # type: ignore[method-assign]
    run(stage, folder, resume=resume)


def run_together(
    rank: int, processes: int, port: int, stage: str, folder: Path, accumulate: int, **schedule: Any
) -> None:
    """One of several processes that share the steps of a run over gloo."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    run(stage, folder, tokens=20 * 31 * accumulate, accumulate=accumulate, **schedule)


def run_interrupted(rank: int, port: int, folder: Path) -> None:
    """One of two processes, of which the second alone gets Ctrl-C, in its 6th step. No state before that."""
    real_backward = torch.Tensor.backward
    due = _when(6, lambda: os.kill(os.getpid(), signal.SIGINT) if rank else None)
    torch.Tensor.backward = lambda *args, **named: (due(), real_backward(*args, **named))[1]  # type: ignore[assignment, method-assign]
    try:
        run_together(rank, 2, port, "augmentation", folder, 1, save_seconds=1000.0)
    except KeyboardInterrupt:
        os._exit(130)


def start(target: Any, *args: Any) -> BaseProcess:
    """Start `target(*args)` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.tiny_run"])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def run_until_interrupted(stage: str, folder: Path) -> None:
    """A run that gets Ctrl-C in the middle of its 13th step; leaves with 130 as commands do. No state before that."""
    real_backward = torch.Tensor.backward
    due = _when(13, lambda: os.kill(os.getpid(), signal.SIGINT))
    torch.Tensor.backward = lambda *args, **named: (due(), real_backward(*args, **named))[1]  # type: ignore[assignment, method-assign]
    try:
        run(stage, folder, save_seconds=1000.0)
    except KeyboardInterrupt:
        os._exit(130)


def run_out_of_disk(stage: str, folder: Path) -> None:
    """A run for which the disk is full from its 12th step on; its error goes to `message` beside the folder."""
    real_advance = runlog.RunLog.advance
    due = _when(12, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000_000)))
    runlog.RunLog.advance = lambda *args: (real_advance(*args), due())[0]  # type: ignore[assignment, method-assign]
    try:
        run(stage, folder)
    except ModelError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000_000, 30_000_000))
        (folder.parent / "message").write_text(str(error))
