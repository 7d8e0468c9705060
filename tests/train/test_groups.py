"""Groups of processes as a user starts them: `accelerate launch --cpu`, `mm-train --processes`, and what they say of failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mindmerger.errors import InputError
from mindmerger_train.processes import processes_to_start, told_in
from tests import tiny_torch
from tests.train.test_launch import RECIPE

LAUNCHERS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU")


@pytest.fixture(autouse=True)
def nobody_launched(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    tiny_torch.encoder_folder(folder / "encoder", "bert")
    tiny_torch.llm_folder(folder / "llm")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    return folder


def start(folder, out, *options, launcher=()):
    """A process that trains 20 steps of about 300 positions."""
    steps = ["schedule.batch_tokens=300", "schedule.accumulate=1", "schedule.tokens=5_000", "states.keep='off'"]
    words = [*launcher, "-m", "mindmerger_train.cli", "--config", str(folder / "recipe.toml"), "--data", str(folder)]
    words += ["--out", str(folder / out), *(word for key in steps for word in ("--set", key)), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def ended(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_the_command_that_accelerate_does_not_take_at_its_word(folder):
    """`accelerate launch --cpu --num_processes 2` against one process: two shared every step, and the numbers are the same."""
    launcher = ("-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2")
    alone, two = start(folder, "one"), start(folder, "two", launcher=launcher)
    assert ended(alone)[0] == 0
    code, out, err = ended(two)
    assert code == 0, err
    assert out.split() == [str(folder / "two")]
    assert "2 processes share every step" in err
    one, other = (torch.load(folder / name / "state" / "state.pt", weights_only=True) for name in ("one", "two"))
    assert one["progress"]["step"] == other["progress"]["step"] >= 20
    for name, value in one["parameters"].items():
        torch.testing.assert_close(other["parameters"][name], value, atol=1e-4, rtol=0)


def test_ctrl_c_saves_the_state_of_a_group(folder):
    process = start(folder, "stopped", "--set", "schedule.tokens=10_000_000", "--processes", "2")
    metrics = folder / "stopped" / "metrics.jsonl"
    until = time.monotonic() + 90
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130, err
    assert "go on with --resume" in err
    state = torch.load(folder / "stopped" / "state" / "state.pt", weights_only=True)
    assert state["progress"]["step"] >= json.loads(metrics.read_text().splitlines()[0])["step"]


def test_a_failing_group_says_it_once_with_the_exit_code_of_one(folder):
    code, out, err = ended(start(folder, "diverged", "--set", "schedule.lr=1e30", "--processes", "2"))
    assert code == 9, err
    assert not out
    assert err.count("mm-train: ") == 1
    assert "lower schedule.lr" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("/bin/python /bin/accelerate launch --cpu --num_processes 2 -m mindmerger_train.cli --config x", 2),
        ("accelerate-launch --cpu --num_processes=3 train.py --num_processes 7", 3),
        ("python -m accelerate.commands.launch --num_processes 4 --cpu -m x", 4),
        ("python /lib/accelerate/commands/launch.py --cpu -m x", None),
        ("accelerate launch --unknown-option 2", None),
        ("python -m pytest --num_processes 2", None),
        ("", None),
    ],
)
def test_what_accelerate_was_told(words, count):
    assert told_in(words.split()) == count


def test_accelerate_on_several_machines_needs_another_launcher():
    with pytest.raises(InputError, match="torchrun"):
        told_in("accelerate launch --cpu --num_processes 4 --num_machines 2 x".split())


def test_how_many_processes_are_started(monkeypatch, capsys):
    assert processes_to_start(None) == 1
    assert processes_to_start(3) == 3
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert processes_to_start(None) == 1  # accelerate launched all that it was asked for: one
    monkeypatch.setenv("MASTER_PORT", "29500")  # more than one, but pytest is no accelerate: nobody knows how many
    assert not capsys.readouterr().err
    assert processes_to_start(None) == 1
    assert "--processes N" in capsys.readouterr().err
    assert processes_to_start(2) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes_to_start(None) == 1
    assert processes_to_start(2) == 1
    with pytest.raises(InputError, match="leave --processes to the launcher"):
        processes_to_start(4)
