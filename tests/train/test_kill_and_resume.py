"""kill −9 at any moment, then --resume: the same numbers as a run that nobody touched. In every stage."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from safetensors.torch import load_file

from tests.train import tiny_run

TIMES = ("seconds", "tokens_per_second")
# In this order, each after a resume: where the run is killed, and at the how-manieth time that it comes there.
MOMENTS = [
    ("half a state", 3),
    ("between steps", 3),
    ("config.json, before", 1),
    ("state.pt, before", 4),
    ("merger.safetensors, after", 1),
    ("half a log line", 2),
    ("training.svg, before", 1),
    ("state.pt, after", 2),
]
# The merger's stages share their code: every moment in one of them, in the others those that differ.
MOMENTS_OF = {"mapping": MOMENTS, "augmentation": MOMENTS[:2], "steering": MOMENTS[:3], "reason": MOMENTS[:4]}


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def same_result(one, other):
    for path in one.glob("*.safetensors"):
        ours, theirs = load_file(path), load_file(other / path.name)
        assert ours.keys() == theirs.keys()
        assert all(bool((ours[key] == theirs[key]).all()) for key in ours)
    for name in ("adapter.gguf",):
        assert (one / name).is_file() == (other / name).is_file()
        if (one / name).is_file():
            assert (one / name).read_bytes() == (other / name).read_bytes()
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (one, other))
    assert ours["training"].get("held_out_loss") == theirs["training"].get("held_out_loss")


def approximately(lines):
    return [pytest.approx(line, abs=1e-6) if "weights" not in line else line for line in lines]


@pytest.mark.parametrize("stage", tiny_run.STAGES)
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path, stage):
    whole = tiny_run.start(tiny_run.run, stage, tmp_path / "whole")
    for attempt, (moment, count) in enumerate(MOMENTS_OF[stage]):
        process = tiny_run.start(tiny_run.run_and_die, stage, tmp_path / "cut", moment, count, attempt > 0)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, moment
    last = tiny_run.start(resumed, stage, tmp_path / "cut")
    last.join(60)
    whole.join(60)
    assert (whole.exitcode, last.exitcode) == (0, 0)
    expected = metrics(tmp_path / "whole")
    assert len(expected) > 6
    assert metrics(tmp_path / "cut") == approximately(expected)
    assert [line["step"] for line in expected] == sorted(line["step"] for line in expected)
    same_result(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob("*.part"))


def resumed(stage, folder):
    tiny_run.run(stage, folder, resume=True)


def test_a_kill_from_outside_at_any_time(tmp_path):
    """Not at a place that the test has chosen: after so many milliseconds."""
    whole = tiny_run.start(tiny_run.run, "mapping", tmp_path / "whole")
    whole.join(60)
    for wait in (0.35, 0.2, 0.5):
        process = tiny_run.start(resumed, "mapping", tmp_path / "cut")
        time.sleep(wait)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join(60)
    last = tiny_run.start(resumed, "mapping", tmp_path / "cut")
    last.join(60)
    assert last.exitcode == 0
    assert metrics(tmp_path / "cut") == approximately(metrics(tmp_path / "whole"))
    same_result(tmp_path / "whole", tmp_path / "cut")


def test_ctrl_c_saves_the_step_that_was_done(tmp_path):
    process = tiny_run.start(tiny_run.run_until_interrupted, "mapping", tmp_path / "cut")
    process.join(60)
    assert process.exitcode == 130
    last = tiny_run.start(resumed, "mapping", tmp_path / "cut")
    whole = tiny_run.start(tiny_run.run, "mapping", tmp_path / "whole")
    last.join(60)
    whole.join(60)
    assert metrics(tmp_path / "cut") == approximately(metrics(tmp_path / "whole"))


def test_a_full_disk_leaves_the_state_before(tmp_path):
    """A limit on the size of files stands for the full disk; it is lowered in the middle of a run."""
    process = tiny_run.start(tiny_run.run_out_of_disk, "mapping", tmp_path / "cut")
    process.join(60)
    assert process.exitcode == 0
    message = (tmp_path / "message").read_text()
    assert "could not be written" in message and "File too large" in message and "--resume" in message
    assert not list((tmp_path / "cut").rglob("*.part"))
    last = tiny_run.start(resumed, "mapping", tmp_path / "cut")
    whole = tiny_run.start(tiny_run.run, "mapping", tmp_path / "whole")
    last.join(60)
    whole.join(60)
    assert metrics(tmp_path / "cut") == approximately(metrics(tmp_path / "whole"))
    same_result(tmp_path / "whole", tmp_path / "cut")
