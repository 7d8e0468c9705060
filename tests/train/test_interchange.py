"""The authors' checkpoint file, read and written; and what else may come under its name."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from torch import nn

from mindmerger.errors import CheckpointError
from mindmerger_train.interchange import read_published, write_published
from mindmerger_train.merger import Merger


class PublishedMapping(nn.Module):
    """The authors' module, as docs/method.md has it."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.linear1 = nn.Linear(source, 2 * source)
        self.mlp.linear2 = nn.Linear(2 * source, target)
        self.end_boundary = nn.Parameter(torch.randn(1, 1, target))

    def forward(self, states):
        mapped = self.mlp.linear2(torch.relu(self.mlp.linear1(states)))
        return torch.cat([mapped, self.end_boundary.expand(len(states), 1, -1)], 1)


def test_a_published_file_computes_what_it_did(tmp_path):
    theirs = PublishedMapping(24, 40)
    torch.save({"model_state_dict": theirs.state_dict()}, tmp_path / "pytorch_model.bin")
    ours = read_published(tmp_path / "pytorch_model.bin")
    states = torch.randn(2, 5, 24)
    torch.testing.assert_close(ours(states), theirs(states))


def test_there_and_back(tmp_path):
    merger = Merger(24, 40)
    write_published(merger, tmp_path / "pytorch_model.bin")
    theirs = PublishedMapping(24, 40)
    theirs.load_state_dict(torch.load(tmp_path / "pytorch_model.bin", weights_only=True)["model_state_dict"])
    for name, value in read_published(tmp_path / "pytorch_model.bin").state_dict().items():
        assert torch.equal(value, merger.state_dict()[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_a_gate_does_not_fit_the_format(tmp_path):
    with pytest.raises(CheckpointError, match="st-merge"):
        write_published(Merger(24, 40, "st-merge"), tmp_path / "pytorch_model.bin")


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


GOOD = PublishedMapping(24, 40).state_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil()), "not read at all"),
        (saved({"model_state_dict": GOOD, "extra": Evil()}), "not read at all"),
        (b"", "not read at all"),
        (saved({"model_state_dict": GOOD})[:5000], "not read at all"),
        (saved([1, 2]), "no 'model_state_dict'"),
        (saved({"weights": GOOD}), "no 'model_state_dict'"),
        (saved({"model_state_dict": {**GOOD, "more": torch.zeros(1)}}), "'more' is unknown"),
        (saved({"model_state_dict": {k: v for k, v in GOOD.items() if k != "end_boundary"}}), "'end_boundary' is missing"),
        (saved({"model_state_dict": {**GOOD, "mlp.linear1.bias": torch.zeros(3)}}), "mlp.linear1.bias is"),
        (saved({"model_state_dict": {**GOOD, "mlp.linear1.weight": torch.zeros(3)}}), "shapes"),
        (saved({"model_state_dict": {**GOOD, "mlp.linear1.bias": [1, 2]}}), "no floating-point tensors"),
        (saved({"model_state_dict": {**GOOD, "end_boundary": torch.full((1, 1, 40), torch.nan)}}), "NaN"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, content, message, capfd):
    (tmp_path / "file.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_published(tmp_path / "file.bin")
    assert "must not run" not in capfd.readouterr().out


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_published(tmp_path / "none.bin")
