"""The LLM of a bundle: types, overrides, adapters, what goes wrong, and whole bundles of LLMs that differ in scale."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mindmerger
from mindmerger.errors import CheckpointError, InputError, MindMergerError, ModelError
from mindmerger.llama import LLM
from mindmerger.manifest import PromptInfo
from mindmerger_export import kquants, parity, space
from mindmerger_export.adapters import gguf_adapter
from mindmerger_export.bundle_writer import Request, export_bundle
from mindmerger_export.hf_gguf import open_hf
from mindmerger_export.llm import LLMOptions, prepare_llm
from mindmerger_export.requantise import read_gguf
from mindmerger_train import llms
from mindmerger_train.checkpoint import Checkpoint, save_checkpoint
from mindmerger_train.gate import GateSpec
from mindmerger_train.llms import LLMSpec, PromptSpec
from tests import tiny_llms, tiny_torch

TEXT = "Question: What is 15+27?\nAnswer:"


def spec_of(folder: Path) -> LLMSpec:
    return LLMSpec(str(folder), "tiny", "any", tiny_llms.WIDTH)


def checkpoint_of(folder: Path, **changes: Any) -> Checkpoint:
    """Only what the conversion of an LLM looks at."""
    merger = tiny_torch.random_merger(64)
    prompt = PromptSpec("Question: {question}\nAnswer:", 1, 2, (2,))
    return Checkpoint(merger, cast(Any, None), replace(spec_of(folder), **changes), prompt, languages=("sw",))


def converted(folder: Path, out: Path, type: str | None, **options: Any) -> Any:
    out.mkdir()
    return prepare_llm(checkpoint_of(folder), out, "embed", type, None, LLMOptions(**options))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llms.llm_folder(tmp_path_factory.mktemp("llama") / "llm", "llama2")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose rows divide into blocks of 256."""
    return tiny_llms.llm_folder(
        tmp_path_factory.mktemp("wide") / "llm",
        "llama2",
        hidden_size=256,
        intermediate_size=512,
        initializer_range=0.06,
    )


def test_k_quants(wide: Path, tmp_path: Path) -> None:
    kl: dict[str, float] = {}
    model = cast(Any, llms.load_llm(replace(spec_of(wide), width=256)))
    ids = llms.load_llm_tokenizer(spec_of(wide)).encode(TEXT)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
    for kind, main in (("q6_k", "q6_k"), ("q5_k_m", "q5_k"), ("q4_k_m", "q4_k")):
        made = converted(wide, tmp_path / kind, kind)
        assert made.kind == kind and made.report["tensors"][main] > 10 and "fallbacks" not in made.report
        assert [path.name for path in made.gguf.parent.iterdir()] == ["llm.gguf"]
        assert read_gguf(made.gguf).get_field("general.file_type").contents() == kquants.TYPES[kind]
        with LLM(made.gguf, context=64, threads=1) as llm:
            llm.decode_tokens(ids)
            kl[kind] = parity.kl(wanted, llm.logits())
    assert 0 < kl["q6_k"] < kl["q5_k_m"] < kl["q4_k_m"] < 0.5
    assert converted(wide, tmp_path / "default", None).kind == "q5_k_m"


def test_overrides_and_fallbacks(llama: Path, wide: Path, tmp_path: Path) -> None:
    made = converted(wide, tmp_path / "a", "q4_k_m", tensor_types=(r"ffn_down=q8_0", r"blk\.0\.=F16"))
    types = {tensor.name: tensor.tensor_type.name for tensor in read_gguf(made.gguf).tensors}
    assert types["blk.0.attn_q.weight"] == "F16" and types["blk.1.attn_q.weight"] == "Q4_K"
    assert types["blk.0.ffn_down.weight"] == types["blk.1.ffn_down.weight"] == "Q8_0"
    # A type that gguf writes itself goes through llama.cpp where a tensor is to have another.
    made = converted(llama, tmp_path / "b", "q8_0", tensor_types=("token_embd=f16",))
    types = {tensor.name: tensor.tensor_type.name for tensor in read_gguf(made.gguf).tensors}
    assert types["token_embd.weight"] == "F16" and types["output.weight"] == "Q8_0"
    made = converted(llama, tmp_path / "c", "q4_k_m")
    assert (
        made.report["fallbacks"]["blk.0.attn_q.weight"] == "q5_0"
        and "blk.0.attn_norm.weight" not in made.report["fallbacks"]
    )
    for wrong in ("ffn_down", "=q8_0", "ffn_down=q9", "(=q8_0"):
        with pytest.raises(InputError, match="--tensor-type"):
            kquants.parse_override(wrong)


def test_out_of_a_gguf(wide: Path, tmp_path: Path) -> None:
    """The same way for an LLM that is a GGUF already, with and without an adapter."""
    base = converted(wide, tmp_path / "base", "f16").gguf
    direct = converted(wide, tmp_path / "direct", "q4_k_m").gguf
    (tmp_path / "out").mkdir()
    checkpoint = checkpoint_of(wide, source=str(base))
    again = prepare_llm(checkpoint, tmp_path / "out", "embed", "q4_k_m", None)
    one, two = (
        {tensor.name: np.asarray(tensor.data) for tensor in read_gguf(path).tensors} for path in (direct, again.gguf)
    )
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    (tmp_path / "as").mkdir()
    stored = prepare_llm(checkpoint, tmp_path / "as", "embed", None, None)
    assert stored.kind == "as stored" and stored.gguf.read_bytes() == base.read_bytes()


@pytest.mark.parametrize("family", ["llama2", "qwen3"])
def test_peft_adapter(family: str, tmp_path: Path) -> None:
    """PEFT's own merging is the reference: two ranks, two alphas, rank-stabilised scale."""
    import peft

    folder = tiny_llms.llm_folder(tmp_path / "llm", family)
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "k_proj", "down_proj"],
        rank_pattern={"k_proj": 2}, alpha_pattern={"down_proj": 3}, init_lora_weights=False,
    )  # fmt: skip
    model = peft.get_peft_model(cast(Any, llms.load_llm(spec_of(folder))), config)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    ids = llms.load_llm_tokenizer(spec_of(folder)).encode(TEXT)
    with torch.no_grad():
        wanted = merged(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
    adapter = gguf_adapter(tmp_path / "adapter", tmp_path / "adapter.gguf", merged.config)
    out = tmp_path / "out"
    out.mkdir()
    made = prepare_llm(checkpoint_of(folder, adapter=str(adapter)), out, "embed", "f16", None)
    with LLM(made.gguf, context=64, threads=1) as llm:
        llm.decode_tokens(ids)
        assert parity.kl(wanted, llm.logits()) < 1e-4
    reference = cast(Any, llms.load_llm(spec_of(folder), adapter=adapter))
    with torch.no_grad():
        assert parity.kl(wanted, reference(input_ids=torch.tensor([ids])).logits[0, -1].numpy()) < 1e-4
    options = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for change, words in (
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "plain LoRA"),
    ):
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(options | change))
        with pytest.raises(CheckpointError, match=words):
            gguf_adapter(tmp_path / "adapter", tmp_path / "x.gguf", merged.config)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(options))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(weights)
    first = next(iter(state))
    save_file(state | {first: torch.full_like(state[first], torch.nan)}, weights)
    with pytest.raises(CheckpointError, match="NaN"):
        gguf_adapter(tmp_path / "adapter", tmp_path / "x.gguf", merged.config)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="pickle"):
        gguf_adapter(tmp_path / "adapter", tmp_path / "x.gguf", merged.config)


# -------------------------------------------------------------------------------------------------- bad input


def damaged(llama: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(llama, tmp_path / "llm")
    return tmp_path / "llm"


def refused(folder: Path, tmp_path: Path, words: str, type: str = "f16", error: Any = CheckpointError) -> None:
    out = tmp_path / f"out{time.monotonic_ns()}"
    with pytest.raises(error, match=words) as caught:
        converted(folder, out, type)
    assert "\n" not in str(caught.value)
    assert [path.name for path in out.iterdir() if path.name != "llm.gguf"] == []


def test_damaged_folders(llama: Path, tmp_path: Path) -> None:
    folder = damaged(llama, tmp_path)
    shards = sorted(folder.glob("*.safetensors"))
    whole = shards[1].read_bytes()
    for content, words in ((whole[: len(whole) // 2], "damaged"), (b"", "damaged"), (b"\xff" * 100, "damaged")):
        shards[1].write_bytes(content)
        refused(folder, tmp_path, words)
    shards[1].unlink()
    refused(folder, tmp_path, "missing")
    shards[1].write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    for name, words in (("../else.safetensors", "outside"), (shards[0].name, "promises")):
        moved = next(key for key, file in entries["weight_map"].items() if file == shards[1].name)
        index.write_text(json.dumps({"weight_map": entries["weight_map"] | {moved: name}}))
        refused(folder, tmp_path, words)
    index.write_text(json.dumps(entries))
    config = json.loads((folder / "config.json").read_text())
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model_type": "mamba"}, "supported: Llama, Mistral, Qwen 2, Qwen 3, Gemma"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised already"),
        ({"hidden_act": "relu"}, "relu"),
        ({"intermediate_size": 100}, "do not fit"),
        ({"num_hidden_layers": 4}, "blk.3.attn_norm is missing"),
        ({"vocab_size": 100}, "pieces"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}}, "."),
    )
    for change, words in changes:
        (folder / "config.json").write_text(json.dumps(config | change))
        refused(folder, tmp_path, words)
    (folder / "config.json").write_text("{")
    refused(folder, tmp_path, "cannot be read")
    (folder / "config.json").unlink()
    refused(folder, tmp_path, "config.json is missing")


def test_weights_that_are_no_numbers_or_no_safetensors(llama: Path, tmp_path: Path) -> None:
    folder = damaged(llama, tmp_path)
    shard = sorted(folder.glob("*.safetensors"))[-1]
    whole = load_file(shard)
    key = next(key for key, tensor in whole.items() if tensor.ndim == 2)
    for value, type, words in (
        (torch.nan, "q4_k_m", f"NaN.*{re.escape('.weight')}"),
        (1e5, "f16", "too large for f16"),
    ):
        changed = whole[key].clone()
        changed[3, 5] = value
        save_file(whole | {key: changed}, shard, metadata={"format": "pt"})
        refused(folder, tmp_path, words, type)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    refused(folder, tmp_path, "no .safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, tmp_path, "pickle")


def test_too_little_disk_or_memory(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "free_disk", lambda _folder: 50_000)
    refused(llama, tmp_path, "disk", "q4_k_m", ModelError)
    monkeypatch.setattr(space, "free_disk", lambda _folder: None)
    monkeypatch.setattr("mindmerger_export.llm.available_memory", lambda: 1_000_000)
    refused(llama, tmp_path, "memory", "q4_k_m", ModelError)


def test_llama_cpp_that_fails_or_is_stopped_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(ModelError, match="could not quantise"):
        kquants.quantise_gguf(tmp_path / "none.gguf", out, kquants.TYPES["q4_k_m"])
    base = converted(llama, tmp_path / "base", "f16").gguf

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kquants.quantise_gguf(base, out, kquants.TYPES["q4_k_m"], advance=stop)
    assert not out.exists() and threading.active_count() < 50 and sys.executable


# ---------------------------------------------------------------------------------------------- whole bundles


@pytest.mark.parametrize(("family", "method"), [("gemma3", "mindmerger"), ("gemma2", "st-merge")])
def test_bundles(family: str, method: str, tmp_path: Path) -> None:
    """Gemma multiplies token embeddings, in torch inside the layer: mapped rows and the gate's prompt must follow."""
    encoder = tiny_torch.encoder_folder(tmp_path / "encoder", "bert")
    folder = tiny_llms.llm_folder(tmp_path / "llm", family)
    gate = (
        GateSpec(languages=("en", "es"), heads=4, language_width=8, hidden_width=32) if method == "st-merge" else None
    )
    merger = tiny_torch.random_merger(encoder.output_width, method=method, gate=gate)
    prompt = PromptSpec("Question: {question}\nAnswer:", 1, 2, (2,))
    checkpoint = Checkpoint(merger, encoder, spec_of(folder), prompt, name="tiny", languages=("en", "es"))
    save_checkpoint(checkpoint, tmp_path / "checkpoint")
    golden = (("es", "¿Cuánto es 15 + 27?"), ("en", "What is 15 + 27?"))
    request = Request(str(tmp_path / "checkpoint"), tmp_path / "bundle", "fp32", llm_type="f16", golden=golden)
    manifest = mindmerger.read_manifest(export_bundle(request))
    assert manifest.parity["answers"]["kl_max"] < 1e-3
    assert manifest.parity["injection"]["scale"] == (8.0 if family == "gemma3" else 1.0)
    assert manifest.prompt.normaliser is None
    assert manifest.parity["llm_conversion"]["tokenizer"]["different"] == 0


def test_text_in_nfc(tmp_path: Path) -> None:
    """Qwen's tokenizer composes characters before it cuts; llama.cpp does not, so the prompt of a bundle says it."""
    folder = tiny_llms.llm_folder(tmp_path / "llm", "qwen2")
    made = converted(folder, tmp_path / "out", "q8_0")
    assert made.normaliser == "NFC"
    encode = llms.load_llm_tokenizer(spec_of(folder)).encode
    prompt = PromptInfo("Q: {question}\n", None, (2,), normaliser=made.normaliser)
    around = replace(prompt, before_ids=(1,), after_ids=(2,))
    with LLM(made.gguf, context=64, threads=1) as llm:
        for question in ("Cafe\u0301", "র\u09df", "한국"):  # the second falls apart in NFC
            assert prompt.ids(question, llm.tokenise) == encode(f"Q: {question}\n")
            assert around.ids(question, llm.tokenise) == [1, *encode(question), 2]
        assert llm.tokenise("Cafe\u0301") != encode("Cafe\u0301")


def test_options_that_exclude_each_other(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for options in ({"mode": "package"}, {"ready": tmp_path / "x.gguf"}):
        with pytest.raises(MindMergerError, match="--tensor-type"):
            prepare_llm(
                checkpoint_of(llama), out, options.get("mode", "embed"), None, cast(Any, options.get("ready")),
                LLMOptions(("ffn=q8_0",)),
            )  # fmt: skip
    assert open_hf(llama).parameters > 100_000
