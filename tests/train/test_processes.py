"""Two processes over gloo against one with the same global batch: the same parameters."""

from __future__ import annotations

import json
import socket

import pytest
import torch

from mindmerger_train.engine import response_tokens, share_out
from mindmerger_train.layout import Row
from tests.train import tiny_run


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def together(processes, stage, folder, accumulate):
    port = free_port()
    started = [
        tiny_run.start(tiny_run.run_together, rank, processes, port, stage, folder, accumulate)
        for rank in range(processes)
    ]
    return started


@pytest.mark.parametrize(("stage", "accumulate"), [("reason", 1), ("augmentation", 2), ("steering", 1)])
def test_two_processes_train_as_one_does(tmp_path, stage, accumulate):
    """`accumulate` 2: each process gets a batch; 1: each gets half of every batch, which may be nothing."""
    started = together(1, stage, tmp_path / "one", accumulate) + together(2, stage, tmp_path / "two", accumulate)
    for process in started:
        process.join(90)
    assert [process.exitcode for process in started] == [0, 0, 0]
    one, two = (torch.load(tmp_path / name / "state" / "state.pt", weights_only=True) for name in ("one", "two"))
    assert one["progress"]["step"] >= 20
    assert one["progress"]["step"] == two["progress"]["step"]
    moved = 0.0
    start = dict(tiny_run.task(stage).trained.named_parameters())
    for name, value in one["parameters"].items():
        torch.testing.assert_close(two["parameters"][name], value, atol=1e-4, rtol=0)
        moved = max(moved, float((value - start[name].detach()).abs().max()))
    assert moved > 0.01
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        key = "loss" if "loss" in mine else "held_out_loss"
        assert mine[key] == pytest.approx(other[key], abs=1e-4)


def test_batches_are_shared_out_whole_and_once():
    packs = [[Row(None, [1], [index, inner]) for inner in range(index + 1)] for index in range(6)]
    rows = {id(row) for pack in packs for row in pack}
    for processes in (1, 2, 3, 4, 6, 7):
        parts = [share_out(packs, process, processes) for process in range(processes)]
        assert len({len(part) for part in parts}) == 1
        shared = [id(row) for part in parts for pack in part for row in pack]
        assert len(shared) == len(rows) and set(shared) == rows
    assert share_out(packs, 1, 2) == [packs[1], packs[3], packs[5]]


def test_given_tokens_are_not_counted():
    assert response_tokens([Row(None, [1], [2, 3, 4], frozenset({1})), Row(None, [1], [2])]) == 3
