"""The dry run: counts that are exact, estimates that follow what they depend on, no weights anywhere."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from mindmerger_train import encoders, llms
from mindmerger_train.cli import command
from mindmerger_train.encoders import EncoderSpec
from mindmerger_train.engine import Schedule
from mindmerger_train.layout import Row
from mindmerger_train.llms import LLMSpec
from mindmerger_train.merger import Merger
from mindmerger_train.plan import Shape, assumed_shape, llm_on_meta, make_plan, measured_shape, trace
from tests.train.conftest import tiny_encoder, tiny_llama

RECIPE = """
stage = "mapping"
longest = 400
[encoder]
source = "{folder}/encoder"
[llm]
source = "{folder}/llm"
[schedule]
tokens = 30_000_000
lr = 2e-5
[data.generator]
languages = ["es"]
count = 10
"""


def test_mt5_xl_and_a_7b_llama_from_their_configurations_alone(tmp_path):
    from transformers import LlamaConfig, MT5Config

    MT5Config(d_model=2048, d_ff=5120, num_layers=24, num_heads=32, d_kv=64, vocab_size=250112).save_pretrained(
        tmp_path / "encoder"
    )
    LlamaConfig().save_pretrained(tmp_path / "llm")  # its defaults are Llama-2-7B
    (tmp_path / "recipe.toml").write_text(RECIPE.format(folder=tmp_path))
    result = CliRunner().invoke(command, ["--dry-run", "--config", str(tmp_path / "recipe.toml")])
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line}
    assert lines["mapping"][1:3] == ["25,178,112", "25,178,112"]
    assert lines["LLM"][1:3] == ["6,738,415,616", "0"]
    assert lines["encoder"][1:3] == ["1,669,958,656", "0"]
    assert float(lines["activations"][1]) > 1
    assert 20 < float(lines["in"][4]) < 80
    assert "assumed" in result.stdout and "bfloat16 matrix product" in result.stdout


def test_parts_of_the_embedded_default():
    schedule, merger = Schedule(tokens=100_000, lr=1e-4), Merger(1152, 576)
    shape = assumed_shape(schedule, 200, True)
    merged = make_plan("augmentation", schedule, encoders.default_spec(), llms.default_spec(), merger, shape)
    parts = {part.name: part for part in merged.parts}
    assert parts["mapping"].trained == sum(p.numel() for p in merger.parameters())
    assert (parts["LLM"].parameters, parts["LLM"].trained) == (134_515_008, 0)
    muon = replace(schedule, optimiser="muon")
    of_muon = make_plan("augmentation", muon, encoders.default_spec(), llms.default_spec(), merger, shape)
    kept = [{name: size for name, size, _ in plan.memory}["gradients and optimiser"] for plan in (merged, of_muon)]
    assert kept[1] == pytest.approx(kept[0] * 8 / 12)
    reason = make_plan("reason", schedule, None, llms.default_spec(), merger, shape, rank=32)
    parts = {part.name: part for part in reason.parts}
    assert parts["adapter"].trained == 9_768_960
    assert "mapping" not in parts


def test_the_speed_of_an_earlier_run_is_used(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "llm")
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "tokens_per_second": 400.0}) + "\n" for step in range(3)) + '{"step": 4, "tok'
    )
    schedule, llm = Schedule(tokens=80_000, lr=1e-4), LLMSpec(str(tmp_path / "llm"), "tiny", "llama", 64)
    found = make_plan(
        "reason", schedule, None, llm, Merger(4, 4), assumed_shape(schedule, 200, True), rank=4, out=tmp_path
    )
    assert found.seconds == pytest.approx(200.0)
    assert "400 tokens/s of the log" in found.text()


def test_what_autograd_keeps_is_counted_as_it_is():
    """The same count on the meta device and on a real tiny model with real tensors."""
    kept, flops = trace(tiny_llama().to("meta", torch.bfloat16), None, Shape(3, 20, 0, 5, 20, ""))
    assert kept == 0  # nothing is trained below the LLM, so nothing needs to be kept
    merger = Merger(64, 64)
    kept, flops = trace(tiny_llama().to("meta", torch.bfloat16), merger, Shape(3, 20, 8, 5, 20, ""))
    twice, more = trace(tiny_llama().to("meta", torch.bfloat16), merger, Shape(6, 20, 8, 5, 20, ""))
    assert 1.9 < twice / kept < 2.1 and more == pytest.approx(2 * flops, rel=0.01)
    llm = tiny_llama().to(torch.bfloat16)
    seen = {}

    def pack(tensor):
        if tensor.untyped_storage()._cdata not in own:
            seen[tensor.untyped_storage()._cdata] = (tensor, tensor.untyped_storage().nbytes())
        return tensor

    mapping = merger.mlp.to(torch.bfloat16)
    own = {t.untyped_storage()._cdata for t in (*llm.parameters(), *llm.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rows = mapping(torch.randn(3, 8, 64, dtype=torch.bfloat16))
        embeddings = torch.cat([rows, torch.randn(3, 12, 64, dtype=torch.bfloat16)], dim=1)
        llm.model(inputs_embeds=embeddings, attention_mask=torch.ones(3, 20, dtype=torch.int64), use_cache=False)
    assert kept == pytest.approx(sum(size for _, size in seen.values()), rel=0.1)


def test_the_meta_models_have_the_real_ones_parameters(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "llm")
    meta = llm_on_meta(LLMSpec(str(tmp_path / "llm"), "tiny", "llama", 64))
    assert {name: p.shape for name, p in meta.named_parameters()} == {
        name: p.shape for name, p in tiny_llama().named_parameters()
    }
    tiny_encoder("mt5").model.save_pretrained(tmp_path / "encoder")
    from mindmerger_train.plan import encoder_on_meta

    meta = encoder_on_meta(EncoderSpec(str(tmp_path / "encoder"), "tiny", "mt5", 64, (), 64))
    assert sum(p.numel() for p in meta.parameters()) == sum(p.numel() for p in tiny_encoder("mt5").model.parameters())


def test_the_shape_is_measured_on_rows_that_fit():
    rows = [Row([1] * (4 + index % 3), [2] * 5, [3] * 4, frozenset({0})) for index in range(30)] + [
        Row(None, [2] * 500, [3])
    ]
    shape = measured_shape(iter(rows), Schedule(tokens=1, lr=1.0, batch_tokens=100), 100)
    assert shape.encoder_tokens == 5 and shape.response_tokens == 3 and shape.length == pytest.approx(1 + 6 + 5 + 4)
    assert shape.rows * shape.longest <= 100
    assert "measured on 30 examples" in shape.basis
