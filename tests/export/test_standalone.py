"""`mm-export standalone`: a folder that needs no package and prepares nothing, and answers as before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mindmerger
from mindmerger.bundle import open_bundle
from mindmerger.errors import BundleError, InputError, ModelError
from mindmerger.manifest import read_manifest
from mindmerger_export import standalone
from mindmerger_export.standalone import make_standalone
from tests import tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / "cache"


def test_what_is_prepared_at_first_use_becomes_a_file(tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bake", llm="bake")
    (bundle / "report.json").write_text("{}", encoding="utf-8")
    out = make_standalone(str(bundle), tmp_path / "application" / "bundle")
    assert sorted(path.name for path in out.iterdir()) == [
        "llm.gguf", "manifest.json", "merger.onnx", "report.json", "tokenizer.json",
    ]  # fmt: skip
    manifest = read_manifest(out)
    assert manifest.bake is None and not any(entry.package for entry in manifest.files)
    assert open_bundle(out).llm() == out / "llm.gguf"
    with mindmerger.load(bundle, threads=1) as whole, mindmerger.load(out, threads=1) as alone:
        assert alone.continuation_ids("hola", 8) == whole.continuation_ids("hola", 8)
    again = make_standalone(str(out), tmp_path / "again")
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in out.iterdir()
    }


def test_what_a_package_ships_becomes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    weights = tiny.random_llm(tmp_path / "weights.gguf").read_bytes()
    (site / "carrier").mkdir(parents=True)
    (site / "carrier" / "weights.gguf").write_bytes(weights)
    (site / "carrier-1.0.dist-info").mkdir()
    (site / "carrier-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    (site / "carrier-1.0.dist-info" / "RECORD").write_text("carrier/weights.gguf,,\n")
    monkeypatch.syspath_prepend(str(site))
    folder = tiny.bundle(tmp_path / "of-a-package")
    document = json.loads((folder / "manifest.json").read_text())
    del document["sha256"]
    document["files"][2] |= {"package": "carrier", "path": "carrier/weights.gguf"}
    (folder / "manifest.json").write_text(json.dumps(document))
    (folder / "llm.gguf").unlink()
    out = make_standalone(str(folder), tmp_path / "out")
    assert (out / "llm.gguf").read_bytes() == weights
    assert all(entry.package is None for entry in open_bundle(out).manifest.files)


def test_what_is_there_is_not_replaced_and_nothing_half_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny.bundle(tmp_path / "tiny")
    out = make_standalone(str(bundle), tmp_path / "out")
    with pytest.raises(InputError, match="exists"):
        make_standalone(str(bundle), out)
    make_standalone(str(bundle), out, force=True)
    monkeypatch.setattr(standalone, "free_disk", lambda folder: 1 << 20)
    with pytest.raises(ModelError, match="make room"):
        make_standalone(str(bundle), tmp_path / "full")
    (bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="damaged"):
        make_standalone(str(bundle), tmp_path / "damaged")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["out", "tiny"]


def test_the_command_needs_nothing_of_torch(tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "tiny")
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(('torch', 'transformers', 'onnx', 'safetensors')))\n"
        "from mindmerger_export.cli import main\nmain()"
    )
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(str(root / part) for part in ("runtime", "export", "."))
    result = subprocess.run(
        [sys.executable, "-c", code, "standalone", str(bundle), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'out'}\n"
