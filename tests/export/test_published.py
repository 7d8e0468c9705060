"""A checkpoint file of the authors' code goes all the way: pytorch_model.bin → checkpoint → bundle → answers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from click.testing import CliRunner

import mindmerger
from mindmerger_export import space
from mindmerger_export.bundle_writer import export_bundle
from mindmerger_export.request import Request
from mindmerger_train import encoders
from mindmerger_train.cli_interchange import import_command
from tests import tiny_families, tiny_torch


def test_the_authors_file_becomes_a_bundle(tmp_path: Path) -> None:
    """mT5's encoder and a Llama with the papers' prompt, random weights with the authors' names."""
    encoder = tiny_families.encoder_folder(tmp_path / "encoder", "mt5")
    llm = tiny_torch.llm_folder(tmp_path / "llm")
    torch.manual_seed(7)
    width = tiny_families.ENCODER_WIDTH
    state = {
        "end_boundary": torch.randn(1, 1, llm.width),
        "mlp.linear1.weight": torch.randn(2 * width, width) / 6,
        "mlp.linear1.bias": torch.randn(2 * width) / 6,
        "mlp.linear2.weight": torch.randn(llm.width, 2 * width) / 8,
        "mlp.linear2.bias": torch.randn(llm.width) / 8,
    }
    torch.save({"model_state_dict": state}, tmp_path / "pytorch_model.bin")
    checkpoint = tmp_path / "checkpoint"
    arguments = [str(tmp_path / "pytorch_model.bin"), "--encoder", str(encoder), "--llm", llm.source]
    result = CliRunner().invoke(import_command, [*arguments, "--out", str(checkpoint), "--languages", "sw,bn"])
    assert result.exit_code == 0, result.output
    request = Request(
        str(checkpoint), tmp_path / "bundle", precision="fp32", llm_type="f32", golden=(("sw", "3 + 4?"),)
    )
    bundle = export_bundle(request)
    manifest = mindmerger.read_manifest(bundle)
    assert (manifest.method, manifest.languages) == ("mindmerger", ("bn", "sw"))
    assert "step by step" in manifest.prompt.template
    assert manifest.parity["rows"]["max_abs"] <= 1e-4 and manifest.parity["answers"]["llm_kl_mean"] < 1e-4
    # By hand, from the published tensors alone.
    spec = encoders.spec_from_folder(encoder)
    ids = torch.tensor([encoders.load_tokenizer(spec).encode("3 + 4?").ids])
    with torch.no_grad():
        states = encoders.load_encoder(spec)(ids, torch.ones_like(ids))[0]
        inner = torch.relu(states @ state["mlp.linear1.weight"].T + state["mlp.linear1.bias"])
        rows = torch.cat([inner @ state["mlp.linear2.weight"].T + state["mlp.linear2.bias"], state["end_boundary"][0]])
    with mindmerger.load(bundle, threads=1) as model:
        assert abs(model.soft_prompt_rows("3 + 4?") - rows.numpy()).max() <= 1e-4
        assert model.answer("3 + 4?", max_new_tokens=4).token_ids


def test_sizes_are_read_from_headers(tmp_path: Path) -> None:
    """What is counted is the encoder, not its decoder; a damaged file counts nothing, for reading it will tell."""
    folder = tiny_families.encoder_folder(tmp_path / "encoder", "mt5")
    spec = encoders.spec_from_folder(folder)
    true = sum(parameter.numel() for parameter in encoders.load_encoder(spec).model.parameters())
    shapes = space._shapes(folder)
    half = [shape for key, shape in shapes.items() if "decoder" not in key and "lm_head" not in key]
    assert sum(space._product(shape) for shape in half) == true
    (folder / "model.safetensors").write_bytes(json.dumps({}).encode())
    assert space._shapes(folder) == {}
