"""ST-Merge's gate, LangBridge and the LLM alone: against independent readings, one example at a time."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from mindmerger.errors import CheckpointError
from mindmerger_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mindmerger_train.gate import UNKNOWN, GateSpec
from mindmerger_train.layout import Row
from mindmerger_train.merger import Merger
from mindmerger_train.stages import MergedTask, SteeringTask
from mindmerger_train.steering import Steering

WIDTH = 64
ROWS = [
    Row([5, 6, 7, 8, 9], [20, 21, 22], [30, 31, 32, 2], language="sw"),
    Row([5, 9], [20, 21, 22, 23, 24, 25], [40, 2], language="es", told="es"),
    Row([11, 12, 13], [26], [33, 34, 35, 36, 37, 2], language="qq", told=UNKNOWN),
]
SPECS = [
    GateSpec(("es", "sw"), granularity=granularity, language_input=language, pooling=pooling, activation=activation)
    for granularity, language, pooling, activation in [
        ("scalar", "soft", "mean", "gelu"),
        ("vector", "forced", "last", "relu"),
        ("token", "none", "mean", "tanh"),
        ("token", "soft", "mean", "silu"),
        ("scalar", "none", "max", "gelu"),
    ]
]


def steered(checkpoint: Checkpoint, spec: GateSpec, awake: bool = True) -> Checkpoint:
    """The checkpoint with a gate; `awake`: one whose weights are far from 1."""
    torch.manual_seed(4)
    merger = Merger(64, WIDTH, "st-merge", spec)
    merger.load_state_dict(checkpoint.merger.state_dict(), strict=False)
    if awake:
        with torch.no_grad():
            merger.gate.output.weight.normal_(std=0.5)
            merger.gate.output.bias.normal_(std=0.5)
            merger.gate.language_head.weight.normal_()
    return replace(checkpoint, merger=merger)


def slow_weights(merger: Merger, states: torch.Tensor, mapped: torch.Tensor, prompt: torch.Tensor, told: str | None):
    """DESIGN section 3, one question without padding, one head at a time."""
    gate, spec = merger.gate, merger.gate.spec

    def normal(rows):
        return rows / rows.pow(2).mean(-1, keepdim=True).sqrt()

    q, k, v = (
        normal(prompt) @ gate.query.weight.T,
        normal(mapped) @ gate.key.weight.T,
        normal(mapped) @ gate.value.weight.T,
    )
    size = WIDTH // spec.heads
    heads = []
    for start in range(0, WIDTH, size):
        part = slice(start, start + size)
        heads.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(size), -1) @ v[:, part])
    context = torch.cat(heads, -1)
    if told is None and spec.language_input == "soft":
        share = torch.softmax(gate.language_head(states.mean(0)), -1)
    else:
        share = torch.eye(3)[spec.row_of(told or UNKNOWN)]
    embedded = share @ gate.language_embedding

    def weigh(row):
        joined = row if spec.language_input == "none" else torch.cat([row, embedded])
        activation = torch.tanh if spec.activation == "tanh" else getattr(nn.functional, spec.activation)
        return 1 + torch.tanh(gate.output(activation(gate.hidden(joined))))

    if spec.granularity == "token":
        return torch.stack([weigh(row)[:1] for row in v]), torch.stack([weigh(row)[1:] for row in context])
    pooled = {"mean": context.mean(0), "max": context.amax(0), "last": context[-1]}[spec.pooling]
    both = weigh(pooled)
    return both[: len(both) // 2], both[len(both) // 2 :]


def slow_loss(encoder, llm, checkpoint: Checkpoint, row: Row) -> torch.Tensor:
    """Sum of −log p over the answer of one row, by the method's own sequence."""
    merger, embed = checkpoint.merger, llm.get_input_embeddings()
    parts = [embed(torch.tensor([checkpoint.prompt.bos_id]))]
    prompt = embed(torch.tensor(list(row.prompt_ids)))
    states = encoder(torch.tensor([row.encoder_ids]), torch.ones(1, len(row.encoder_ids), dtype=torch.int64))[0]
    mapped = merger.mlp(states)
    if merger.gate is not None:
        encoder_weight, llm_weight = slow_weights(merger, states, mapped, prompt, row.told)
        mapped, prompt = mapped * encoder_weight, prompt * llm_weight
    parts += [mapped, merger.end_boundary[0]] + ([prompt] if merger.method != "langbridge" else [])
    parts.append(embed(torch.tensor(list(row.label_ids))))
    joined = torch.cat(parts)[None]
    labels = torch.full((1, joined.shape[1]), -100)
    labels[0, -len(row.label_ids) :] = torch.tensor(list(row.label_ids))
    return llm(inputs_embeds=joined, labels=labels).loss * len(row.label_ids)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.granularity}-{spec.language_input}-{spec.pooling}")
def test_the_gate_is_the_formula(tiny_checkpoint, spec):
    encoder, llm, plain = tiny_checkpoint
    checkpoint = steered(plain, spec)
    with torch.no_grad():
        loss, count = MergedTask(llm, encoder, checkpoint).loss(ROWS)
        expected = sum(slow_loss(encoder, llm, checkpoint, row) for row in ROWS)
        closed, _ = MergedTask(llm, encoder, plain).loss(ROWS)
    assert abs(float(loss) - float(expected)) / count < 1e-5
    assert abs(float(loss) - float(closed)) / count > 1e-3, "the weights of this test do nothing"


@pytest.mark.parametrize("spec", SPECS[:3], ids=lambda spec: spec.granularity)
def test_a_fresh_gate_is_mindmerger(tiny_checkpoint, spec):
    encoder, llm, checkpoint = tiny_checkpoint
    fresh = steered(checkpoint, spec, awake=False)
    with torch.no_grad():
        assert float(MergedTask(llm, encoder, fresh).loss(ROWS)[0]) == float(
            MergedTask(llm, encoder, checkpoint).loss(ROWS)[0]
        )


def test_langbridge_is_one_linear_and_the_soft_prompt_alone(tiny_checkpoint):
    encoder, llm, checkpoint = tiny_checkpoint
    checkpoint = replace(checkpoint, merger=Merger(64, WIDTH, "langbridge"))
    assert set(checkpoint.merger.state_dict()) == {"mlp.weight", "mlp.bias", "end_boundary"}
    rows = [replace(row, prompt_ids=[]) for row in ROWS]
    loss, count = MergedTask(llm, encoder, checkpoint).loss(rows)
    expected = sum(slow_loss(encoder, llm, checkpoint, row) for row in ROWS)
    assert abs(float(loss) - float(expected)) / count < 1e-5


def test_steering_reaches_the_gate_and_the_mapping_only_if_wanted(tiny_checkpoint):
    encoder, llm, checkpoint = tiny_checkpoint
    for train_mapping in (False, True):
        task = SteeringTask(llm, encoder, steered(checkpoint, SPECS[0]), Steering(train_mapping=train_mapping))
        groups = task.parameter_groups()
        assert [group["rate"] for group in groups] == ([1.0, 0.02] if train_mapping else [1.0])
        loss, count = task.loss(ROWS)
        (loss / count).backward()
        for name, parameter in task.trained.named_parameters():
            moved = parameter.grad is not None and float(parameter.grad.abs().max()) > 0
            assert moved == (train_mapping or name.startswith("gate.")), name
        assert all(p.grad is None for module in (encoder, llm) for p in module.parameters())
        trained = {id(p) for group in groups for p in group["params"]}
        assert trained == {id(p) for p in task.trained.parameters() if p.requires_grad}


def test_the_gate_moves_and_learns_the_language(tiny_checkpoint):
    encoder, llm, checkpoint = tiny_checkpoint
    task = SteeringTask(llm, encoder, steered(checkpoint, SPECS[0], awake=False), Steering())
    optimiser = torch.optim.Adam(task.parameter_groups(), lr=3e-3)
    with torch.no_grad():
        first = float(task.loss(ROWS)[0])
    report = task.report()
    assert report["weights"]["sw"] == {"encoder": [1.0, 0.0], "llm": [1.0, 0.0]}
    for _ in range(60):
        loss, count = task.loss(ROWS)
        (loss / count).backward()
        optimiser.step()
        optimiser.zero_grad()
    with torch.no_grad():
        assert float(task.loss(ROWS)[0]) < first
    report = task.report()
    assert report["language_accuracy"] == 1.0
    assert abs(report["weights"]["sw"]["encoder"][0] - 1) > 0.01
    assert task.report() == {}


def test_rows_without_a_source_pass_the_gate_by(tiny_checkpoint):
    encoder, llm, checkpoint = tiny_checkpoint
    task = SteeringTask(llm, encoder, steered(checkpoint, SPECS[0]), Steering())
    alone = [replace(ROWS[0], encoder_ids=None), replace(ROWS[1], prompt_ids=[])]
    with torch.no_grad():
        both = float(task.loss(alone)[0])
        plain = float(MergedTask(llm, encoder, checkpoint).loss(alone)[0])
        # among others that do have both
        mixed = float(task.loss([ROWS[2], *alone])[0]) - float(task.loss([ROWS[2]])[0])
    assert both == plain
    assert abs(mixed - both) < 1e-3


def test_a_gated_checkpoint_comes_back(tiny_checkpoint, tmp_path):
    _, _, checkpoint = tiny_checkpoint
    gated = steered(checkpoint, SPECS[1])
    save_checkpoint(gated, tmp_path)
    back = load_checkpoint(tmp_path)
    assert back.method == "st-merge"
    assert back.merger.gate.spec == SPECS[1]
    for name, value in gated.merger.state_dict().items():
        assert torch.equal(value, back.merger.state_dict()[name]), name


def test_the_llm_alone_has_no_weights(tiny_checkpoint, tmp_path):
    _, _, checkpoint = tiny_checkpoint
    save_checkpoint(replace(checkpoint, merger=Merger(64, WIDTH, "mono")), tmp_path)
    assert load_checkpoint(tmp_path).method == "mono"
    assert not load_checkpoint(tmp_path).merger.state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "row"},
        {"heads": 0},
        {"attention_width": 30},
        {"languages": ["sw", "sw"]},
        {"languages": [UNKNOWN]},
        {"colour": "red"},
    ],
)
def test_options_that_make_no_gate(options):
    with pytest.raises(CheckpointError):
        GateSpec.from_json(options)


def test_what_the_gate_is_told():
    generator = random.Random(0)
    drawn = [Steering(told=0.5, hidden=0.25).draw("sw", generator) for _ in range(2000)]
    assert abs(drawn.count("sw") / 2000 - 0.5) < 0.05
    assert abs(drawn.count(UNKNOWN) / 2000 - 0.25) < 0.05
    assert abs(drawn.count(None) / 2000 - 0.25) < 0.05
