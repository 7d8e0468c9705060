"""Checkpoint → mm-export → runtime, on tiny random models: the bundle computes what torch computes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import mindmerger
from mindmerger_export import parity
from mindmerger_export.bundle_writer import Request, export_bundle
from mindmerger_export.graph import MergerModule
from mindmerger_export.samples import QUESTIONS, SENTENCES
from mindmerger_train import encoders, llms
from mindmerger_train.checkpoint import load_checkpoint

QUESTION = "Ana compra 3 libros de 4 euros. ¿Cuánto paga?"


def module_of(checkpoint: Path) -> MergerModule:
    loaded = load_checkpoint(checkpoint)
    return MergerModule(encoders.load_encoder(loaded.encoder), loaded.merger)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_graph_matches_torch_for_every_shape(exact: tuple[Path, Path]) -> None:
    checkpoint, bundle = exact
    module, session = module_of(checkpoint), ort.InferenceSession(str(bundle / "merger.onnx"))
    vocabulary = mindmerger.read_manifest(bundle).encoder.vocabulary
    rng = np.random.default_rng(0)
    for batch, length in ((1, 1), (1, 2), (2, 1), (3, 7), (5, 33), (1, 128), (8, 128)):
        ids = rng.integers(0, vocabulary, (batch, length))
        mask = np.ones_like(ids)
        for row in range(1, batch):
            mask[row, max(1, length - 3 * row) :] = 0
        ids[mask == 0] = 0
        with torch.no_grad():
            wanted = module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        assert found.shape == (batch, length + 1, 64)
        used = np.concatenate([mask, np.ones((batch, 1), dtype=mask.dtype)], axis=1).astype(bool)
        assert np.abs(wanted - found)[used].max() <= 1e-4


def test_padding_changes_nothing(exact: tuple[Path, Path]) -> None:
    session = ort.InferenceSession(str(exact[1] / "merger.onnx"))
    ids = np.arange(4, 14).reshape(1, -1)
    (alone,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    padded, mask = np.zeros((2, 25), dtype=np.int64), np.zeros((2, 25), dtype=np.int64)
    padded[0, :10], mask[0, :10] = ids, 1
    padded[1], mask[1] = 7, 1
    (together,) = session.run(None, {"input_ids": padded, "attention_mask": mask})
    assert np.abs(alone[0, :10] - together[0, :10]).max() <= 1e-5
    assert np.array_equal(alone[0, -1], together[0, -1])


def test_runtime_rows_match_torch(exact: tuple[Path, Path]) -> None:
    checkpoint, bundle = exact
    module, tokenizer = module_of(checkpoint), encoders.load_tokenizer(load_checkpoint(checkpoint).encoder)
    with mindmerger.load(bundle) as model:
        for text in SENTENCES.values():
            ids = torch.tensor([tokenizer.encode(text).ids])
            wanted = module(ids, torch.ones_like(ids))[0].numpy()
            assert np.abs(wanted - model.soft_prompt_rows(text)).max() <= 1e-4


def test_injected_rows_are_bit_identical_to_tokens(exact: tuple[Path, Path]) -> None:
    report = mindmerger.read_manifest(exact[1]).parity["injection"]
    assert report == {"scale": 1.0, "identical": True, "kl": 0.0, "tried": {"1": 0.0}}


def test_greedy_continuation_matches_torch(exact: tuple[Path, Path]) -> None:
    checkpoint, bundle = exact
    loaded = load_checkpoint(checkpoint)
    llm = llms.load_llm(loaded.llm, adapter=loaded.adapter_path())
    reference = parity.TorchAnswers(loaded, module_of(checkpoint), llm, encoders.load_tokenizer(loaded.encoder))
    tokenizer = llms.load_llm_tokenizer(loaded.llm)
    texts = [QUESTION, *(question for _, question in QUESTIONS), *list(SENTENCES.values())[:13]]
    with mindmerger.load(bundle) as model:
        answers = [parity.compare_answer(reference, model, tokenizer, text) for text in texts]
    # llama.cpp keeps keys and values in f16: only a near tie may fall the other way.
    # A random model has many: its logits are noise.
    assert all(answer.margin is None or answer.margin < 0.01 for answer in answers)
    assert sum(answer.place is None for answer in answers) >= 0.6 * len(answers)
    assert max(answer.kl for answer in answers) < 1e-4


def test_adapter_is_applied(exact: tuple[Path, Path]) -> None:
    checkpoint, bundle = exact
    loaded = load_checkpoint(checkpoint)
    plain = llms.load_llm(loaded.llm)
    reference = parity.TorchAnswers(loaded, module_of(checkpoint), plain, encoders.load_tokenizer(loaded.encoder))
    with mindmerger.load(bundle) as model:
        logits, _, _ = reference.answer(QUESTION, model.prompt_ids(QUESTION), 1)
        assert parity.kl(logits, model.prefill(QUESTION)) > 0.01


def test_manifest_says_what_it_is(exact: tuple[Path, Path]) -> None:
    checkpoint, bundle = exact
    manifest, loaded = mindmerger.read_manifest(bundle), load_checkpoint(checkpoint)
    kind = loaded.encoder.architecture
    assert (manifest.name, manifest.languages) == (f"tiny-{kind}", ("en", "es"))
    assert manifest.encoder.layers == ((1, 2) if kind == "bert" else (3,))
    assert manifest.llm.context == 512
    assert manifest.prompt.stop_ids == (2, 0)
    assert [golden.question for golden in manifest.golden] == [question for _, question in QUESTIONS]
    assert all(golden.token_ids for golden in manifest.golden)
    assert {"torch", "onnxruntime", "llama-cpp-python"} <= manifest.tools.keys()
    with mindmerger.load(bundle) as model:
        for golden in manifest.golden:
            assert tuple(model.continuation_ids(golden.question, 32)) == golden.token_ids


def test_graph_file_is_checked_and_describes_itself(exact: tuple[Path, Path]) -> None:
    path = exact[1] / "merger.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties["mindmerger.role"] == "merger"
    assert properties["mindmerger.precision"] == "fp32"
    text = path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in text and b"site-packages" not in text
    located = {
        entry.value for item in model.graph.initializer for entry in item.external_data if entry.key == "location"
    }
    assert located == {"merger.data"}


def test_blocks_above_the_highest_layer_are_left_out(exact: tuple[Path, Path]) -> None:
    checkpoint, bundle = exact
    if load_checkpoint(checkpoint).encoder.architecture != "bert":
        pytest.skip("this encoder's last layer is used")
    model = onnx.load(str(bundle / "merger.onnx"))
    matrices = [tuple(item.dims) for item in model.graph.initializer if tuple(item.dims) in ((64, 96), (96, 64))]
    assert len(matrices) == 4  # two feed-forward matrices in each of two blocks; the third block is not there


@pytest.mark.parametrize("kind", ["bert", "mt5"])
def test_quantised_bundle_is_near_and_the_same_twice(kind: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    request = Request(str(checkpoints[kind]), tmp_path / "first", precision="w8")
    first = export_bundle(request)
    second = export_bundle(Request(str(checkpoints[kind]), tmp_path / "second", precision="w8"))
    assert hashes(first) == hashes(second)
    report = mindmerger.read_manifest(first).parity
    assert report["rows"]["cosine_mean"] >= 0.999
    assert report["rows"]["padded_batches"]["cosine_min"] >= 0.995
    assert report["llm"] == "q5_k_m"
    operators = {node.op_type for node in onnx.load(str(first / "merger.onnx"), load_external_data=False).graph.node}
    assert {"MatMulNBits", "GatherBlockQuantized"} <= operators


def test_w4_and_ready_gguf_and_golden(checkpoints: dict[str, Path], exact: tuple[Path, Path], tmp_path: Path) -> None:
    if exact[0] != checkpoints["bert"]:
        pytest.skip("once is enough")
    request = Request(
        str(exact[0]),
        tmp_path / "w4",
        precision="w4",
        llm_gguf=exact[1] / "llm.gguf",
        languages=("sw", "bn"),
        golden=(("en", "What is 1 + 1?"),),
    )
    manifest = mindmerger.read_manifest(export_bundle(request))
    assert manifest.parity["quantisation"]["4_bit"] > 0
    assert manifest.file("llm").sha256 == mindmerger.read_manifest(exact[1]).file("llm").sha256
    assert manifest.languages == ("bn", "sw")
    assert [golden.question for golden in manifest.golden] == ["What is 1 + 1?"]


def test_pruned_bundle_has_identical_rows(exact: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, bundle = exact
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"id": 1, "question": QUESTION}) + "\n", encoding="utf-8")
    request = Request(str(checkpoint), tmp_path / "pruned", precision="fp32", llm_type="f32", prune_texts=(text,))
    pruned = export_bundle(request)
    before, after = mindmerger.read_manifest(bundle), mindmerger.read_manifest(pruned)
    assert after.encoder.vocabulary < before.encoder.vocabulary
    assert after.parity["vocabulary"]["texts_with_same_segmentation"] == after.parity["vocabulary"]["texts"]
    with mindmerger.load(bundle) as whole, mindmerger.load(pruned) as cut:
        for sentence in (QUESTION, *SENTENCES.values()):
            assert np.array_equal(whole.soft_prompt_rows(sentence), cut.soft_prompt_rows(sentence))
        cut.soft_prompt_rows("ꙮ ᚠᚢ 🦣")  # characters that neither knows
