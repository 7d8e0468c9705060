"""What a user can get wrong ends in one sentence, the documented exit code, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindmerger.errors import CheckpointError, InputError, MindMergerError, ModelError, ParityError
from mindmerger.manifest_rules import FORMAT_VERSION
from mindmerger_export import bundle_writer, cli, parity, space
from mindmerger_export.bundle_writer import Request, export_bundle
from mindmerger_train.checkpoint import load_checkpoint, save_checkpoint
from tests import tiny_torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkpoint(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage; its encoder and LLM too."""
    shutil.copytree(checkpoints["bert"].parent, tmp_path / "models", ignore=shutil.ignore_patterns("exact"))
    folder = tmp_path / "models" / "checkpoint"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["encoder"]["source"] = str(tmp_path / "models" / "encoder")
    config["llm"]["source"] = str(tmp_path / "models" / "llm")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


class Run:
    """One run of the command in this process: what it printed and the code that it left with."""

    def __init__(self, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch, *arguments: str) -> None:
        capsys.readouterr()
        patch.setattr(sys, "argv", ["mm-export", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        self.exit_code = left.value.code
        self.stdout, self.stderr = capsys.readouterr()


@pytest.fixture
def mm_export(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    return lambda *arguments: Run(capsys, monkeypatch, *arguments)


def fails(checkpoint: Path, tmp_path: Path, error: type[MindMergerError], match: str, **options: Any) -> None:
    target = tmp_path / "results" / "bundle"
    target.parent.mkdir(exist_ok=True)
    with pytest.raises(error, match=match) as caught:
        export_bundle(Request(str(checkpoint), target, **{"precision": "fp32", "llm_type": "f32", **options}))
    assert "\n" not in str(caught.value)
    assert list(target.parent.iterdir()) == []


def test_widths_of_another_llm(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    save_checkpoint(replace(loaded, merger=tiny_torch.random_merger(128, 96)), checkpoint)
    fails(checkpoint, tmp_path, CheckpointError, "does not fit")
    # Consistent in itself, but the LLM in that place is another one.
    save_checkpoint(
        replace(loaded, merger=tiny_torch.random_merger(128, 96), llm=replace(loaded.llm, width=96)), checkpoint
    )
    fails(checkpoint, tmp_path, CheckpointError, "width")


def test_truncated_and_nan_weights(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "merger.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails(checkpoint, tmp_path, CheckpointError, "damaged")
    path.write_bytes(whole)
    state = load_file(path)
    state["mlp.linear1.bias"][3] = torch.nan
    save_file(state, path)
    fails(checkpoint, tmp_path, CheckpointError, "NaN")


def test_damaged_encoder_and_llm(checkpoint: Path, tmp_path: Path) -> None:
    for part in ("encoder", "llm"):
        path = checkpoint.parent / part / "model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        fails(checkpoint, tmp_path, CheckpointError, "cannot be read|damaged")
        path.write_bytes(whole)
    path = checkpoint.parent / "encoder" / "model.safetensors"
    state = load_file(path)
    state["encoder.layer.0.output.dense.weight"][0, 0] = torch.nan
    save_file(state, path, metadata={"format": "pt"})
    fails(checkpoint, tmp_path, CheckpointError, r"encoder's weights contain NaN .*layer\.0\.output\.dense")


def test_unknown_architecture_names_the_known(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint.parent / "llm" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "model_type": "mamba"}), encoding="utf-8")
    fails(checkpoint, tmp_path, CheckpointError, "llama")


def test_missing_parts(checkpoint: Path, tmp_path: Path) -> None:
    adapter = (checkpoint / "adapter.gguf").read_bytes()
    (checkpoint / "adapter.gguf").unlink()
    fails(checkpoint, tmp_path, CheckpointError, "adapter")
    (checkpoint / "adapter.gguf").write_bytes(adapter)
    # what the folder says of a tokenizer is not enough to make one of
    (checkpoint.parent / "encoder" / "tokenizer.json").write_text("{}", encoding="utf-8")
    fails(checkpoint, tmp_path, MindMergerError, "tokenizer")
    fails(tmp_path / "nowhere", tmp_path, CheckpointError, "no checkpoint")


def test_bad_options(checkpoint: Path, tmp_path: Path) -> None:
    fails(checkpoint, tmp_path, InputError, "--prune-text", max_pieces=100)
    fails(checkpoint, tmp_path, InputError, "tlh needs is not known", languages=("es", "tlh"))
    fails(
        checkpoint, tmp_path, InputError, "--whole-vocabulary", max_pieces=100, languages=("es",), whole_vocabulary=True
    )
    fails(checkpoint, tmp_path, InputError, "package", llm="package")
    fails(checkpoint, tmp_path, CheckpointError, "no GGUF", llm_gguf=tmp_path / "none.gguf", llm_type=None)
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUFjunk" * 100)
    fails(checkpoint, tmp_path, MindMergerError, "GGUF", llm_gguf=junk, llm_type=None)


def test_no_space_is_said_before_any_work(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(space, "free_disk", lambda _folder: 30_000_000)
        fails(checkpoint, tmp_path, ModelError, "30 MB are free")
    with monkeypatch.context() as patch:
        patch.setattr(space, "available_memory", lambda: 100_000_000)
        fails(checkpoint, tmp_path, ModelError, "memory")


def test_parity_failure_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bundle_writer.export_graph

    def wrong(module: Any, metadata: dict[str, str]) -> Any:
        with torch.no_grad():
            module.merger.mlp.linear2.bias += 0.001
            model = real(module, metadata)
            # The graph shares torch's memory, so the change must outlive the saving: give torch other memory.
            module.merger.mlp.linear2.bias = torch.nn.Parameter(module.merger.mlp.linear2.bias - 0.001)
        return model

    monkeypatch.setattr(bundle_writer, "export_graph", wrong)
    fails(checkpoint, tmp_path, ParityError, "rows differ")


def test_no_injection_scale_fails(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = parity.EmbeddingTable.rows
    monkeypatch.setattr(parity.EmbeddingTable, "rows", lambda table, ids: 3 * rows(table, ids))
    fails(checkpoint, tmp_path, ParityError, "injection_scale")


def test_existing_folder(
    checkpoint: Path, exact: tuple[Path, Path], tmp_path: Path, mm_export: Callable[..., Run]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "diary.txt").write_text("dear diary", encoding="utf-8")
    for force in (False, True):
        with pytest.raises(InputError, match="exists"):
            export_bundle(Request(str(checkpoint), other, force=force))
    assert (other / "diary.txt").is_file()
    mine = tmp_path / "mine"
    shutil.copytree(exact[1], mine)
    (mine / "stale").touch()
    result = mm_export("--checkpoint", str(checkpoint), "--out", str(mine))
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines()[-1].startswith(f"mm-export: {mine} exists")
    options = ["--precision", "fp32", "--llm-type", "f16", "--force"]
    result = mm_export("--checkpoint", str(checkpoint), "--out", str(mine), *options)
    assert (result.exit_code, result.stdout) == (0, f"{mine}\n"), result.stderr
    assert not (mine / "stale").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_adapter_shared_with_a_published_checkpoint_is_never_lost(checkpoint: Path) -> None:
    # As `mindmerger_train.publish` lays it out: the checkpoint's only adapter is inside the folder of its bundle.
    (checkpoint / "bundle").mkdir()
    shared = (checkpoint / "adapter.gguf").rename(checkpoint / "bundle" / "adapter.gguf")
    whole = shared.read_bytes()
    loaded = load_checkpoint(checkpoint)
    published = replace(loaded, llm=replace(loaded.llm, adapter="bundle/adapter.gguf"))
    save_checkpoint(published, checkpoint)
    published = load_checkpoint(checkpoint)
    out = checkpoint / "bundle"
    for force in (False, True):
        with pytest.raises(InputError, match="--llm package"):
            bundle_writer._check_target(out, Request(str(checkpoint), force=force), published)
    # Nothing but the adapter is there: a first export needs no --force, a second does.
    bundle_writer._check_target(out, Request(str(checkpoint), llm="package"), published)
    (out / "manifest.json").touch()
    with pytest.raises(InputError, match="exists"):
        bundle_writer._check_target(out, Request(str(checkpoint), llm="package"), published)
    bundle_writer._check_target(out, Request(str(checkpoint), llm="package", force=True), published)
    assert shared.read_bytes() == whole


def test_command_line_errors(checkpoint: Path, tmp_path: Path, mm_export: Callable[..., Run]) -> None:
    shown = mm_export("--help")
    assert shown.exit_code == 0 and "inspect" in shown.stdout
    assert mm_export().exit_code == 2
    assert mm_export("--checkpoint", "x", "--precision", "fp16").exit_code == 2
    assert mm_export("--checkpoint", "x", "inspect", "y").exit_code == 2
    assert mm_export("--checkpoint", str(tmp_path)).exit_code == 6
    golden = tmp_path / "golden.tsv"
    golden.write_text("no tab here\n", encoding="utf-8")
    result = mm_export("--checkpoint", str(checkpoint), "--golden", str(golden))
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    result = mm_export("--checkpoint", str(checkpoint), "--llm-gguf", "x", "--llm-type", "f16")
    assert result.exit_code == 3


def test_inspect_and_verify(exact: tuple[Path, Path], tmp_path: Path, mm_export: Callable[..., Run]) -> None:
    bundle = str(exact[1])
    shown = mm_export("inspect", bundle)
    assert shown.exit_code == 0 and shown.stderr == ""
    for words in (f"mindmerger, format {FORMAT_VERSION}", "tiny-llama", "merger.onnx", "MB", "max_abs", "layers"):
        assert words in shown.stdout
    facts = json.loads(mm_export("inspect", bundle, "--json").stdout)
    assert facts["llm"]["width"] == 64 and facts["gate"] is None and facts["bytes"]["llm.gguf"] > 0
    sound = mm_export("verify", bundle)
    assert sound.exit_code == 0, sound.stderr
    assert "identical" in sound.stdout.splitlines()[-1]
    damaged = tmp_path / "damaged"
    shutil.copytree(exact[1], damaged)
    manifest = json.loads((damaged / "manifest.json").read_text(encoding="utf-8"))
    del manifest["sha256"]
    for golden in manifest["golden"]:
        golden["token_ids"] = [7, 7, 7]
    (damaged / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert mm_export("verify", str(damaged)).exit_code == 8
    (damaged / "merger.data").write_bytes((damaged / "merger.data").read_bytes()[:-1])
    assert mm_export("verify", str(damaged)).exit_code == 4
    assert mm_export("inspect", str(tmp_path / "nowhere")).exit_code == 4


def test_mono_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    save_checkpoint(
        replace(load_checkpoint(checkpoint), merger=tiny_torch.random_merger(128, method="mono")), checkpoint
    )
    fails(checkpoint, tmp_path, CheckpointError, "LLM alone")


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a child process")
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_leaves_nothing(checkpoint: Path, tmp_path: Path, number: int, code: int, word: str) -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("runtime", "export", "."))
    target = tmp_path / "results" / "bundle"
    process = subprocess.Popen(
        [sys.executable, "-m", "mindmerger_export.cli", "--checkpoint", str(checkpoint), "--out", str(target)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "exporting the merger graph" in line:
            break
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == "" and "Traceback" not in err and err.strip().splitlines()[-1].startswith(f"mm-export: {word}")
    assert list(target.parent.iterdir()) == []
