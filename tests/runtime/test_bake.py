"""Baking an adapter into a GGUF: against numpy and the gguf package, and the life of the cached file."""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest

from mindmerger import bake as baking
from mindmerger import cache
from mindmerger.bake import bake
from mindmerger.bundle import open_bundle
from mindmerger.errors import BundleError, ModelError
from mindmerger.gguf_file import read_gguf
from mindmerger.llama import LLM
from tests import tiny


def _tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def _values(tensor: gguf.ReaderTensor) -> np.ndarray:
    return gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)


@pytest.mark.parametrize("kind", ["q8_0", "q4_1"])
@pytest.mark.parametrize("source", [None, "q8_0", "q4_1"])
def test_against_numpy(tmp_path: Path, kind: str, source: str | None) -> None:
    base = tiny.random_llm(tmp_path / "base.gguf", quantised=source)
    lora = tiny.adapter(tmp_path / "adapter.gguf", rank=4, alpha=8.0)
    out = tmp_path / "out.gguf"
    digest = bake(base, lora, out, kind)
    assert digest == cache.sha256_of(out)
    before, after, halves = _tensors(base), _tensors(out), _tensors(lora)
    assert list(before) == list(after)
    for name, tensor in before.items():
        if f"{name}.lora_a" not in halves:
            assert after[name].tensor_type == tensor.tensor_type
            assert after[name].data.tobytes() == tensor.data.tobytes()
            continue
        delta = 8.0 / 4 * (_values(halves[f"{name}.lora_b"]) @ _values(halves[f"{name}.lora_a"]))
        expected = gguf.quants.quantize(
            (_values(tensor) + delta).astype(np.float32), gguf.GGMLQuantizationType[kind.upper()]
        )
        wanted = gguf.quants.dequantize(expected, gguf.GGMLQuantizationType[kind.upper()])
        # the order of a sum may differ in the last bit, which can move a value by one step of the quantisation
        step = np.abs(wanted).max() / (127 if kind == "q8_0" else 7.5)
        difference = np.abs(_values(after[name]) - wanted)
        assert difference.max() <= 1.01 * step
        assert (difference == 0).mean() > 0.95


def test_metadata_is_kept(tmp_path: Path) -> None:
    base, lora = tiny.random_llm(tmp_path / "b.gguf"), tiny.adapter(tmp_path / "a.gguf")
    bake(base, lora, tmp_path / "out.gguf", "q8_0")
    before, after = gguf.GGUFReader(base).fields, gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert list(before) == list(after)
    for name, field in before.items():
        if name == "general.file_type":
            assert after[name].contents() == int(gguf.LlamaFileType.MOSTLY_Q8_0)
        else:
            assert after[name].contents() == field.contents(), name


def test_runs_and_differs_from_the_base(tmp_path: Path) -> None:
    base, lora = tiny.random_llm(tmp_path / "b.gguf"), tiny.adapter(tmp_path / "a.gguf")
    bake(base, lora, tmp_path / "out.gguf", "q8_0")
    logits = []
    for path in (base, tmp_path / "out.gguf"):
        with LLM(path, context=64, threads=1) as llm:
            llm.decode_tokens([1, 40, 41, 42])
            logits.append(llm.logits())
    assert np.isfinite(logits[1]).all()
    assert not np.allclose(logits[0], logits[1], atol=1e-3)


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    base, lora = tiny.random_llm(tmp_path / "b.gguf"), tiny.adapter(tmp_path / "a.gguf")
    assert bake(base, lora, tmp_path / "1.gguf", "q4_1") == bake(base, lora, tmp_path / "2.gguf", "q4_1")


def test_cached_file_is_used_and_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_bundle(tiny.bundle(tmp_path / "bundle", llm="bake"))
    path = opened.llm()
    whole = path.read_bytes()
    assert cache.sha256_of(path) == path.name.split(".")[1]
    calls = []
    real = baking._write
    monkeypatch.setattr(baking, "_write", lambda *a: (calls.append(a), real(*a))[1])
    assert opened.llm() == path
    assert calls == []
    flipped = bytearray(whole)
    flipped[-5] ^= 4
    for count, damaged in enumerate((whole[:1000], flipped, b""), 1):
        path.write_bytes(damaged)
        assert opened.llm() == path
        assert path.read_bytes() == whole
        assert len(calls) == count
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_interrupted_bake_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    opened = open_bundle(tiny.bundle(tmp_path / "bundle", llm="bake"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(baking, "quantise", interrupt)
    with pytest.raises(KeyboardInterrupt):
        opened.llm()
    assert list((own_cache / "mindmerger" / "baked").iterdir()) == []


def test_many_at_once(tmp_path: Path) -> None:
    opened = open_bundle(tiny.bundle(tmp_path / "bundle", llm="bake"))
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(opened.llm())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4 and len(set(paths)) == 1
    assert len(list(paths[0].parent.iterdir())) == 1


def test_cache_that_cannot_be_written_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("")
    opened = open_bundle(tiny.bundle(tmp_path / "bundle", llm="bake"))
    monkeypatch.setattr(cache, "cache_folders", lambda: [blocker / "x", tmp_path / "second"])
    assert opened.llm().is_relative_to(tmp_path / "second")
    monkeypatch.setattr(cache, "cache_folders", lambda: [blocker / "x"])
    with pytest.raises(ModelError, match="XDG_CACHE_HOME"):
        opened.llm()


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, lora = tiny.random_llm(tmp_path / "b.gguf"), tiny.adapter(tmp_path / "a.gguf")
    monkeypatch.setattr(baking.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
    with pytest.raises(ModelError, match="1 MB are free"):
        bake(base, lora, tmp_path / "out.gguf", "q8_0")
    assert not (tmp_path / "out.gguf").exists()


def test_adapter_for_another_llm(tmp_path: Path) -> None:
    base = tiny.random_llm(tmp_path / "b.gguf")
    with pytest.raises(BundleError, match="another LLM"):
        bake(base, tiny.adapter(tmp_path / "1.gguf", names=["blk.9.attn_q.weight"]), tmp_path / "o.gguf", "q8_0")
    with pytest.raises(BundleError, match="another LLM"):
        bake(base, tiny.adapter(tmp_path / "2.gguf", names=["blk.0.ffn_gate.weight"]), tmp_path / "o.gguf", "q8_0")
    with pytest.raises(BundleError, match="not a LoRA adapter"):
        bake(base, base, tmp_path / "o.gguf", "q8_0")
    assert not (tmp_path / "o.gguf").exists()


def test_truncated_gguf_is_refused_everywhere(tmp_path: Path) -> None:
    whole = tiny.adapter(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError):
            read_gguf(path)


def test_altered_gguf_is_read_or_refused(tmp_path: Path) -> None:
    whole = tiny.adapter(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "altered.gguf"
    rng = random.Random(0)
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(700)] = rng.randrange(256)
        path.write_bytes(content)
        with contextlib.suppress(BundleError):
            read_gguf(path)


def test_reader_agrees_with_gguf(smollm2: Path) -> None:
    ours = read_gguf(smollm2)
    theirs = gguf.GGUFReader(smollm2)
    assert ours.text("general.architecture") == "llama"
    assert [(tensor.name, tensor.shape, tensor.type) for tensor in ours.tensors] == [
        (tensor.name, tuple(reversed(tensor.shape.tolist())), int(tensor.tensor_type)) for tensor in theirs.tensors
    ]
    for one, other in list(zip(ours.tensors, theirs.tensors, strict=True))[1:9]:
        assert one.data.tobytes() == other.data.tobytes()
