"""Groups of processes as a user starts them (`accelerate launch --cpu`, `mm-train --processes`), and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mindmerger.errors import InputError
from mindmerger_train.cli import _arguments, command
from mindmerger_train.processes import processes_to_start, told_in
from tests.train import tiny_run
from tests.train.test_launch import recipe_folder
from tests.train.test_processes import free_port

LAUNCHERS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU")


@pytest.fixture(autouse=True)
def nobody_launched(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return recipe_folder(tmp_path_factory.mktemp("groups"))


def mm_train(folder, out, *options):
    """The words of a command that trains 20 steps of about 300 positions."""
    # A rate as in the recipes: Adam makes a whole step of a rounding error where a gradient is about zero.
    steps = [
        "schedule.lr=1e-4",
        "schedule.batch_tokens=300",
        "schedule.accumulate=1",
        "schedule.tokens=5_000",
        "states.keep='off'",
    ]
    words = ["--config", str(folder / "recipe.toml"), "--data", str(folder), "--out", str(folder / out)]
    return [*words, *(word for key in steps for word in ("--set", key)), *options]


def test_the_command_that_accelerate_does_not_take_at_its_word(folder):
    """`accelerate launch --cpu --num_processes 2` against one process: two shared every step, and the numbers are the same."""
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    words = [accelerate, "launch", "--cpu", "--num_processes", "2", "-m", "mindmerger_train.cli"]
    # Both in processes of their own: what other tests left behind in this one (threads, flags) rounds otherwise.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*words, *mm_train(folder, "two")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    words = [sys.executable, "-m", "mindmerger_train.cli", *mm_train(folder, "one")]
    alone = subprocess.run(words, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert alone.returncode == 0, alone.stderr
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.split() == [str(folder / "two")]
    assert "2 processes share every step" in err
    one, other = (torch.load(folder / name / "state" / "state.pt", weights_only=True) for name in ("one", "two"))
    assert one["progress"]["step"] == other["progress"]["step"] >= 20
    for name, value in one["parameters"].items():
        torch.testing.assert_close(other["parameters"][name], value, atol=1e-4, rtol=0)


def group(*arguments):
    """A process that runs tests/train/group_member.py in a group of two."""
    code = "import sys; from mindmerger_train.processes import run_group; "
    code += "sys.exit(run_group(2, sys.argv[1:], 'tests.train.group_member'))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["done"], 0, ["0 of 2 with 1 thread"]),
        (["both fail"], 7, ["process 0 says no"]),  # once, not twice
        (["the second fails"], 9, ["process 1 failed:", "process 1 says no"]),
        (["the first is killed"], 137, ["process 0 of 2 was ended by SIGKILL"]),
    ],
)
def test_how_a_group_ends(arguments, code, said, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    process = group(*arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    lines = [
        line.removeprefix("mm-train: ") for line in (out + err).splitlines() if "process" in line or " of " in line
    ]
    assert lines == said


def test_a_group_that_is_interrupted_hears_of_it(tmp_path):
    process = group("wait", str(tmp_path))
    until = time.monotonic() + 120
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["interrupted", "interrupted"]


def test_processes_stop_after_the_same_step(tmp_path):
    """One of two is interrupted: both finish the step, the state of it is saved, and both leave as interrupted."""
    port = free_port()
    processes = [tiny_run.start(tiny_run.run_interrupted, rank, port, tmp_path) for rank in range(2)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [130, 130]
    state = torch.load(tmp_path / "state" / "state.pt", weights_only=True)
    assert state["progress"]["step"] == 6


def test_a_command_is_said_again_whole():
    words = ["--config", "a.toml", "--data", "d", "--out", "o", "--resume", "--set", "x=1", "--set", "y=2"]
    with command.make_context("mm-train", [*words, "--processes", "2"]) as context:
        again = _arguments(context)
    with command.make_context("mm-train", again) as other:
        assert other.params == {**context.params, "processes": None}


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("/bin/python /bin/accelerate launch --cpu --num_processes 2 -m mindmerger_train.cli --config x", 2),
        ("python -m accelerate.commands.accelerate_cli launch --cpu --num_processes 5 x", 5),
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
        told_in(["accelerate", "launch", "--cpu", "--num_processes=4", "--num_machines=2", "x"])


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
