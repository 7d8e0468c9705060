"""The mean of checkpoints: their weights, their adapters, and what cannot be averaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from mindmerger.errors import CheckpointError, InputError
from mindmerger_train.adapter import Pair, read_adapter, write_adapter
from mindmerger_train.average import average, average_pairs, command
from mindmerger_train.checkpoint import load_checkpoint, save_checkpoint
from mindmerger_train.gate import GateSpec
from tests.tiny_torch import checkpoint as tiny_checkpoint


def moved(folder: Path, target: Path, seed: int) -> Path:
    """The checkpoint `folder` with other weights, its adapter scaled by `seed`."""
    shutil.copytree(folder, target)
    loaded = load_checkpoint(target)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in loaded.merger.parameters():
            parameter += torch.randn_like(parameter)
    save_checkpoint(loaded, target)
    if loaded.llm.adapter:
        config = AutoConfig.from_pretrained(loaded.llm.source)
        pairs, alpha = read_adapter(target / "adapter.gguf", config)
        scaled = {name: Pair(pair.a, pair.b * seed) for name, pair in pairs.items()}
        write_adapter(target / "adapter.gguf", scaled, alpha, config, "moved")
    return target


def deltas(folder: Path) -> dict[str, Any]:
    config = AutoConfig.from_pretrained(load_checkpoint(folder).llm.source)
    pairs, alpha = read_adapter(folder / "adapter.gguf", config)
    return {name: alpha / len(pair.a) * pair.b @ pair.a for name, pair in pairs.items()}


@pytest.mark.parametrize("gate", [None, GateSpec(languages=("en", "es"), heads=4, language_width=8, hidden_width=32)])
def test_the_mean_of_checkpoints(tmp_path, gate):
    one = tiny_checkpoint(tmp_path / "a", adapter=True, gate=gate, method="st-merge" if gate else "mindmerger")
    two, three = moved(one, tmp_path / "b", 2), moved(one, tmp_path / "c", 6)
    done = CliRunner().invoke(command, [str(one), str(two), str(three), "--out", str(tmp_path / "mean")])
    assert done.exit_code == 0
    assert done.stdout.strip() == str(tmp_path / "mean")
    mean = load_checkpoint(tmp_path / "mean")
    states = [load_checkpoint(folder).merger.state_dict() for folder in (one, two, three)]
    for key, value in mean.merger.state_dict().items():
        torch.testing.assert_close(value, (states[0][key] + states[1][key] + states[2][key]) / 3)
    # (1 + 2 + 6) / 3 of the same update, which needs no higher rank
    assert mean.adapter_path() == tmp_path / "mean" / "adapter.gguf"
    for name, delta in deltas(tmp_path / "mean").items():
        np.testing.assert_allclose(delta, 3 * deltas(one)[name], atol=0.02)
    assert "100.0 %" in done.stderr
    assert [entry["name"] for entry in mean.training["average"]] == ["tiny-bert"] * 3


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 3))
def test_adapters_are_averaged_to_the_nearest_of_their_rank(seed, rank, count):
    rng = np.random.default_rng(seed)
    adapters = []
    for index in range(count):
        a, b = rng.normal(size=(rank + index, 7)), rng.normal(size=(9, rank + index))
        adapters.append(({"layers.0.mlp.up_proj": Pair(a.astype(np.float32), b.astype(np.float32))}, 4.0))
    pairs, kept = average_pairs(adapters)
    pair = pairs["layers.0.mlp.up_proj"]
    own = [next(iter(each.values())) for each, _ in adapters]
    exact = sum(4.0 / len(each.a) * each.b @ each.a for each in own) / count
    values = np.linalg.svd(exact, compute_uv=False)
    assert pair.a.shape == (rank, 7)
    assert pair.b.shape == (9, rank)
    lost = float(np.square(exact - pair.b @ pair.a).sum())
    assert lost == pytest.approx(float(np.square(values[rank:]).sum()), abs=1e-3)
    assert kept == pytest.approx(1 - lost / float(np.square(values).sum()), abs=1e-4)


def test_what_cannot_be_averaged(tmp_path):
    one = tiny_checkpoint(tmp_path / "a", adapter=True)
    with pytest.raises(InputError, match="two checkpoints or more"):
        average([one], tmp_path / "out")
    with pytest.raises(InputError, match="give another folder"):
        average([one, one], one)
    for key, value, what in (("calculator", True, "calculator"), ("prompt", {"template": "{question}="}, "prompt")):
        other = moved(one, tmp_path / key, 1)
        config = json.loads((other / "config.json").read_text())
        config[key] = {**config[key], **value} if isinstance(value, dict) else not config[key]
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=f"they differ in the {what}"):
            average([one, other], tmp_path / "out")
    with pytest.raises(CheckpointError, match="differ in the encoder"):
        average([one, tiny_checkpoint(tmp_path / "d", "mt5", adapter=True)], tmp_path / "out")
    pair = Pair(np.ones((1, 3), np.float32), np.ones((2, 1), np.float32))
    with pytest.raises(CheckpointError, match="different modules"):
        average_pairs([({"x": pair}, 1.0), ({"y": pair}, 1.0)])
    with pytest.raises(CheckpointError, match="x differs in shape"):
        average_pairs([({"x": pair}, 1.0), ({"x": Pair(np.ones((1, 4), np.float32), pair.b)}, 1.0)])
    assert not (tmp_path / "out").exists()
