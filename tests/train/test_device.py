"""Every stage and method on a device that is not the CPU: nothing is left behind on it, and the numbers are the CPU's."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mindmerger_train import llms
from mindmerger_train.checkpoint import load_checkpoint
from mindmerger_train.engine import Schedule, train
from mindmerger_train.evaluation.modes import ENCODER_ONLY, GATE_OFF, MERGE
from mindmerger_train.evaluation.torch_backend import TorchBackend
from mindmerger_train.gate import GateSpec
from mindmerger_train.layout import Row
from mindmerger_train.merger import Merger
from mindmerger_train.stages import MergedTask, ReasonTask
from mindmerger_train.states import DTYPES, KeptEncoder, StateStore
from mindmerger_train.transfer import best_device, send
from tests import tiny_torch
from tests.train import tiny_run
from tests.train.conftest import WIDTH
from tests.train.far import Far, Mixed, far_device

QUESTIONS = ["¿Cuánto es 15 + 27?", "2 + 2", "Maria ana vitabu 12. Anapata 5."]
# stage, method, gate
CASES = {
    "reason": ("reason", "mono", None),
    "reason with a merger": ("reason", "mindmerger", None),
    "mapping": ("mapping", "mindmerger", None),
    "mapping of langbridge": ("mapping", "langbridge", None),
    "augmentation": ("augmentation", "mindmerger", None),
    "augmentation behind a gate": ("augmentation", "st-merge", GateSpec(tiny_run.LANGUAGES)),
    "steering": ("steering", "st-merge", GateSpec(tiny_run.LANGUAGES)),
    "steering by dimension": ("steering", "st-merge", GateSpec(tiny_run.LANGUAGES, granularity="vector")),
    "steering by row": ("steering", "st-merge", GateSpec(tiny_run.LANGUAGES, granularity="token", pooling="last")),
}


def task(stage: str, method: str, gate: GateSpec | None, states: Path) -> MergedTask:
    made = tiny_run.task("steering" if stage == "steering" else "augmentation")
    encoder = made.encoder
    assert encoder is not None
    torch.manual_seed(5)
    merger = Merger(64, WIDTH, method, gate)
    checkpoint = replace(made.checkpoint, merger=merger)
    kept = KeptEncoder(encoder, "no", StateStore(states / "store", 64, DTYPES["float16"], 10**8))
    if stage == "reason":
        return ReasonTask(made.llm, None if method == "mono" else kept, checkpoint, rank=4)
    if stage == "steering":
        return type(made)(made.llm, kept, checkpoint, made.steering)  # type: ignore[attr-defined]
    return MergedTask(made.llm, kept, checkpoint)


def rows(stage: str, method: str) -> list[Row]:
    found = [row for _, batch in zip(range(3), tiny_run.batches("augmentation"), strict=False) for row in batch]
    if method == "mono":
        return [replace(row, encoder_ids=None) for row in found]
    return [replace(row, prompt_ids=[]) if stage == "mapping" else row for row in found if row.encoder_ids]


def run(name: str, folder: Path, precision: str) -> tuple[dict[str, torch.Tensor], float, list[str]]:
    """Two steps, an evaluation, a checkpoint and a state; then two more out of the state. Parameters, best loss, devices."""
    stage, method, gate = CASES[name]
    batch = rows(stage, method)
    tokens = sum(row.length() for row in batch)
    for steps in (2, 4):
        made = task(stage, method, gate, folder)
        schedule = Schedule(tokens=steps * tokens, lr=1e-3, accumulate=2, warmup=0.0, final_lr=1.0)
        packs = iter([batch[::2], batch[1::2]] * 4)
        progress = train(made, packs, [batch[:3]], schedule, folder, resume=True, precision=precision)
    parameters = {name: p for name, p in made.trained.named_parameters() if p.requires_grad}
    devices = sorted({p.device.type for p in parameters.values()})
    return {name: p.detach().cpu() for name, p in parameters.items()}, progress.best, devices


def in_a_process(target: Any, *args: Any) -> Any:
    """What `target(*args)` returns, of a process of its own: autograd counts the devices once, at its first step."""
    with tempfile.TemporaryDirectory() as folder:
        process = tiny_run.start(leave_result, Path(folder) / "result.pt", target, *args)
        process.join(90)
        assert process.exitcode == 0
        return torch.load(Path(folder) / "result.pt", weights_only=True)


def leave_result(path: Path, target: Any, *args: Any) -> None:
    torch.set_num_threads(1)
    torch.save(target(*args), path)


def run_far(name: str, folder: Path) -> tuple[dict[str, torch.Tensor], float, list[str]]:
    with far_device():
        return run(name, folder, "no")


@pytest.mark.parametrize("name", CASES)
def test_a_stage_leaves_nothing_on_the_cpu(tmp_path, name):
    near, loss, devices = run(name, tmp_path / "near", "no")
    assert devices == ["cpu"]
    far, far_loss, devices = in_a_process(run_far, name, tmp_path / "far")
    assert devices == ["far"]
    assert far_loss == pytest.approx(loss, abs=1e-4)
    assert far.keys() == near.keys()
    for key, value in near.items():
        torch.testing.assert_close(far[key], value, atol=1e-4, rtol=0)
    if CASES[name][0] != "reason":  # and what was written there is read here
        written = load_checkpoint(tmp_path / "far").merger.state_dict()
        for key, value in near.items():
            assert written[key].device.type == "cpu"
            torch.testing.assert_close(written[key], value, atol=1e-4, rtol=0)


def devices_of_autocast(folder: Path) -> list[str]:
    """Where a run in bfloat16 asks for autocast (transformers asks too, not to have it)."""
    asked = set()
    real = torch.autocast.__init__

    def note(self: Any, device_type: Any, *args: Any, **named: Any) -> None:
        if named.get("enabled", True):
            asked.add(str(device_type))
        real(self, device_type, *args, **named)

    torch.autocast.__init__ = note  # type: ignore[method-assign]
    with far_device():
        run("mapping", folder, "bf16")
    return sorted(asked)


def test_in_bfloat16_autocast_is_asked_for_on_the_device_of_the_model(tmp_path):
    assert in_a_process(devices_of_autocast, tmp_path) == ["far"]


def answers(folder: Path, options: dict[str, Any]) -> list[tuple[int, str, str, int, str | None]]:
    backend = TorchBackend(str(folder), slots=2)
    replies = backend.generate(QUESTIONS, max_tokens=12, calculator=None, options=options)
    return sorted((reply.index, reply.text, reply.finish, reply.tokens, reply.error) for reply in replies)


def far_answers(folder: Path, options: dict[str, Any]) -> list[tuple[int, str, str, int, str | None]]:
    real = llms.load_llm
    # bfloat16 as on a GPU would leave nothing to compare: a random LLM's best two tokens are close.
    llms.load_llm = lambda spec, dtype, adapter: real(spec, torch.float32, adapter)
    with far_device():
        return answers(folder, options)


@pytest.mark.parametrize("method", ["mindmerger", "st-merge", "langbridge", "mono"])
def test_a_checkpoint_answers_on_another_device(tmp_path, monkeypatch, method):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gate = GateSpec(languages=("es", "sw"), heads=2) if method == "st-merge" else None
    folder = tiny_torch.checkpoint(tmp_path / "model", adapter=True, method=method, gate=gate)
    for mode in (MERGE, ENCODER_ONLY, GATE_OFF) if gate is not None else (MERGE,):
        near = answers(folder, dict(mode.options))
        assert in_a_process(far_answers, folder, dict(mode.options)) == near
        assert all(error is None for *_, error in near)
        # a random LLM, of a tokenizer that is never trained alike twice, may end an answer at once, but not all
        assert any(tokens for *_, tokens, _ in near)


def test_the_far_device_is_one():
    """What the tests above lean on: it computes, it refuses to mix, and it is gone afterwards."""
    with far_device() as device:
        there = send(torch.tensor([1.0, 2.0]), device)
        assert isinstance(there, Far)
        assert (there * 2).cpu().tolist() == [2.0, 4.0]
        with pytest.raises(Mixed):
            there + torch.ones(2)
        with pytest.raises(Mixed):
            torch.stack([there, torch.ones(2)])
        with pytest.raises(Mixed):
            there[torch.tensor([0])]
    assert best_device().type == "cpu"
