"""The loop: budget, log, result, and a resumed run that equals an uninterrupted one."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch

from mindmerger.errors import CheckpointError
from mindmerger_train.checkpoint import Checkpoint, load_checkpoint
from mindmerger_train.encoders import EncoderSpec
from mindmerger_train.engine import Schedule, TrainingError, train
from mindmerger_train.layout import Row
from mindmerger_train.llms import LLMSpec
from mindmerger_train.merger import Merger
from mindmerger_train.optimisers import NAMES
from mindmerger_train.stages import MergedTask
from tests.train.conftest import PROMPT, tiny_encoder, tiny_llama


def make_task():
    torch.manual_seed(4)
    encoder = tiny_encoder("bert")
    spec = EncoderSpec("nowhere", "tiny", "bert", 32, (1, 3), 64)
    return MergedTask(
        tiny_llama(), encoder, Checkpoint(Merger(64, 64), spec, LLMSpec("x", "tiny", "llama", 64), PROMPT)
    )


def stream():
    for step in itertools.count():
        yield [Row([4 + step % 50, 60, 61 + i], [], [70 + (step + i) % 20, 2]) for i in range(4)]


HELD_OUT = [[Row([9, 60, 61], [], [75, 2])]]
ROW_TOKENS = 4 * 7


def run(folder, steps, **options):
    schedule = Schedule(tokens=steps * ROW_TOKENS, lr=1e-2, eval_tokens=5 * ROW_TOKENS, **options)
    task = make_task()
    return task, train(task, stream(), HELD_OUT, schedule, folder, precision="no")


@pytest.mark.parametrize("optimiser", NAMES)
def test_training_lowers_the_loss_and_writes_a_checkpoint(tmp_path, optimiser):
    _, progress = run(tmp_path, 40, optimiser=optimiser)
    assert (progress.step, progress.tokens) == (40, 40 * ROW_TOKENS)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    assert all(line["tokens_per_second"] > 0 for line in lines if "loss" in line)
    assert load_checkpoint(tmp_path).training["held_out_loss"] == pytest.approx(progress.best, abs=1e-3)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("optimiser", NAMES)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, optimiser):
    whole, _ = run(tmp_path / "whole", 30, optimiser=optimiser)
    cut = make_task()
    schedule = Schedule(30 * ROW_TOKENS, 1e-2, optimiser, eval_tokens=5 * ROW_TOKENS, save_seconds=0.0)
    rows = stream()

    def broken():
        yield from itertools.islice(rows, 17)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cut, broken(), HELD_OUT, schedule, tmp_path / "cut", precision="no")
    again = make_task()
    train(again, stream(), HELD_OUT, schedule, tmp_path / "cut", resume=True, precision="no")
    for name, value in whole.trained.state_dict().items():
        torch.testing.assert_close(again.trained.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_a_run_whose_budget_was_lowered_below_what_it_has_keeps_what_it_has(tmp_path):
    rows = stream()

    def broken():
        yield from itertools.islice(rows, 17)
        raise KeyboardInterrupt

    schedule = Schedule(tokens=30 * ROW_TOKENS, lr=1e-2, eval_tokens=10 * ROW_TOKENS, save_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(make_task(), broken(), HELD_OUT, schedule, tmp_path, precision="no")
    assert load_checkpoint(tmp_path).training["steps"] == 10
    lower = replace(schedule, tokens=15 * ROW_TOKENS)
    for _ in range(2):  # the second time there is nothing left to look at
        progress = train(make_task(), stream(), HELD_OUT, lower, tmp_path, resume=True, precision="no")
        assert progress.step == progress.best_step == load_checkpoint(tmp_path).training["steps"] == 17
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "held_out_loss" in line] == [10, 17]


def test_a_nan_loss_stops_and_keeps_the_state(tmp_path):
    task = make_task()
    schedule = Schedule(tokens=1000 * ROW_TOKENS, lr=1e-2, save_seconds=0.0)

    def poisoned():
        yield from itertools.islice(stream(), 3)
        with torch.no_grad():
            task.checkpoint.merger.end_boundary.fill_(math.nan)
        yield from stream()

    with pytest.raises(TrainingError, match="the loss is nan at step 3; a state before it is in"):
        train(task, poisoned(), HELD_OUT, schedule, tmp_path, precision="no")
    again = replace(schedule, save_seconds=1000.0)
    with pytest.raises(TrainingError, match="at step 0; no state was saved before it: lower"):
        train(task, stream(), HELD_OUT, again, tmp_path / "other", precision="no")
    state = torch.load(tmp_path / "state" / "state.pt", weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in state["parameters"].values())


def test_a_damaged_state_is_refused(tmp_path):
    run(tmp_path, 5)
    (tmp_path / "state" / "state.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(make_task(), stream(), HELD_OUT, Schedule(tokens=99, lr=1e-2), tmp_path, resume=True, precision="no")


def test_the_schedule_warms_up_and_decays():
    schedule = Schedule(tokens=1000, lr=1.0, warmup=0.1, final_lr=0.05)
    rates = [schedule.lr_at(tokens) for tokens in (0, 50, 100, 500, 1000, 2000)]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(1.0)
    assert rates[2] > rates[3] > rates[4] == rates[5] == pytest.approx(0.05)
