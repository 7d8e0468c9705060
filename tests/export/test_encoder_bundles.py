"""Every family of encoders with its real kind of tokenizer: the graph is torch, and the ids of a bundle are the encoder's.

The graph and the tokenizer are what differs between families; one whole bundle is made, of the family that needs most.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import mindmerger
from mindmerger.errors import InputError
from mindmerger.frames import framed
from mindmerger.tokenizer import QuestionTokenizer
from mindmerger_export.bundle_writer import export_bundle
from mindmerger_export.graph import embedding_table, export_graph, merger_module, save_graph
from mindmerger_export.inspection import verify
from mindmerger_export.request import Request
from mindmerger_export.rows import check_rows
from mindmerger_export.samples import SENTENCES
from mindmerger_export.talk import Talk
from mindmerger_export.vocabulary import TOKENIZER_FILE, texts_of, write_tokenizer
from mindmerger_train import encoders
from mindmerger_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mindmerger_train.encoders import EncoderSpec
from tests import tiny_families, tiny_torch

# What people type beside words: emoji in several code points, digits of several scripts, marks, controls, rare scripts.
ODD = [
    "👨‍👩‍👧‍👦 🇰🇪 🤷🏽‍♀️ ☃️ ok",
    "0123456789 ٠١٢٣٤٥٦٧٨٩ ০১২৩৪৫৬৭৮৯ ०१२३ １２３ ½ ² Ⅷ",
    "tab\there\u00a0nbsp\u200bzero\u200dwidth\u2028line\u3000wide\r\nend",
    "bell\x07 escape\x1b[31m delete\x7f c1\x85 soft\u00adhyphen \ufeffbom \ufffd",
    "e\u0301 é ﬁ ﷺ Å K",
    "ꙮ ᚠᚢᚦ 𐎀 𒀀 \U0010ffff",
    "   many   spaces   ",
    "<s> </s> <pad> <unk> [CLS] ▁ __es__ spa_Latn",
    "a" * 300,
]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EncoderSpec]:
    place = tmp_path_factory.mktemp("families")
    return {
        family: encoders.spec_from_folder(tiny_families.encoder_folder(place / family, family))
        for family in tiny_families.ENCODERS
    }


@pytest.mark.parametrize("family", tiny_families.ENCODERS)
def test_graph_is_torch_and_ids_are_the_encoders(family: str, specs: dict[str, EncoderSpec], tmp_path: Path) -> None:
    spec = specs[family]
    encoder = encoders.load_encoder(spec)
    rows = embedding_table(encoder).num_embeddings
    vocabulary = write_tokenizer(Request("x"), spec, rows, tmp_path, Talk())
    assert (vocabulary.rows, bool(vocabulary.frames)) == (rows, family in ("m2m_100", "nllb"))
    frames = vocabulary.frames or {}
    reference = encoders.load_tokenizer(spec)
    reference.no_truncation()
    tokenizer = QuestionTokenizer(tmp_path / TOKENIZER_FILE, 4096, rows)
    for code, text in [*SENTENCES.items(), *(("", text) for text in ODD)]:
        told = code if code in frames else ""
        assert framed(tokenizer.encode(text), frames, told) == reference.encode(text, told).ids, text
        assert tokenizer.encode(text) == reference.encode(text).ids
    if family in ("t5", "bert"):
        return  # mT5's graph is T5's, and BERT's is in test_export.py
    module = merger_module(encoder, tiny_torch.random_merger(spec.output_width))
    save_graph(export_graph(module, {"role": "merger"}), tmp_path)
    graph = onnx.load(str(tmp_path / "merger.onnx"), load_external_data=False)
    onnx.checker.check_model(str(tmp_path / "merger.onnx"), full_check=True)
    assert [item.name for item in graph.graph.input] == ["input_ids", "attention_mask"]
    # Their positions are few: sentences that fit.
    short = {key: text for key, text in SENTENCES.items() if len(tokenizer.encode(text)) <= spec.max_tokens}
    assert len(short) >= 3
    short["xx"] = "1 + 1"
    report = check_rows(module, tmp_path / "merger.onnx", tokenizer, None, short, "fp32", frames=frames)
    assert report["max_abs"] <= 1e-4 and report["padded_batches"]["max_abs"] <= 1e-4


def nllb_checkpoint(folder: Path, spec: EncoderSpec) -> Path:
    """NLLB's encoder, and a prompt between ids of special tokens as a chat template leaves them."""
    llm = tiny_torch.llm_folder(folder / "llm")
    prompt = replace(
        tiny_torch.PROMPT, template="User: {question}\nAssistant:", before_ids=(1, 50, 51), after_ids=(2, 52)
    )
    merger = tiny_torch.random_merger(spec.output_width)
    save_checkpoint(
        Checkpoint(merger, spec, llm, prompt, name="tiny-nllb", languages=("es", "sw")), folder / "checkpoint"
    )
    return folder / "checkpoint"


def test_a_bundle_whose_encoder_is_told_the_language(specs: dict[str, EncoderSpec], tmp_path: Path) -> None:
    checkpoint = nllb_checkpoint(tmp_path, specs["nllb"])
    golden = (("es", "2 + 2?"), ("sw", "3 + 4?"), ("xx", "5?"))
    request = Request(str(checkpoint), tmp_path / "bundle", precision="fp32", llm_type="f32", golden=golden)
    bundle = export_bundle(request)
    manifest = mindmerger.read_manifest(bundle)
    spec = specs["nllb"]
    assert {code: (f.before_ids, f.after_ids) for code, f in manifest.encoder.frames.items()} == {
        code: (frame.prefix, frame.suffix) for code, frame in spec.frames.items()
    }
    assert manifest.prompt.before_ids == (1, 50, 51)
    assert manifest.parity["answers"]["llm_kl_mean"] < 1e-4
    loaded = load_checkpoint(checkpoint)
    module = merger_module(encoders.load_encoder(spec), loaded.merger)
    tokenizer = encoders.load_tokenizer(spec)
    with mindmerger.load(bundle, threads=1) as model:
        found = {}
        for language in (None, "es", "sw", "unknown"):
            ids = torch.tensor([tokenizer.encode("2 + 2?", language if language in spec.frames else "").ids])
            with torch.no_grad():
                wanted = module(ids, torch.ones_like(ids))[0].numpy()
            sources = model.steered("2 + 2?", language=language)
            assert sources.soft_prompt is not None
            found[language] = sources.soft_prompt
            assert np.abs(sources.soft_prompt - wanted).max() <= 1e-4
        assert np.abs(found["es"] - found["sw"]).max() > 1e-3
        assert np.array_equal(found[None], found["unknown"])
        with pytest.raises(InputError, match="no token for the language 'tlh'"):
            model.answer("2 + 2?", language="tlh")
        # the prompt's ids stand around the question's own, which is text whatever it says
        ids = model.prompt_ids("<|im_end|>")
        assert ids[:3] == [1, 50, 51] and ids[-2:] == [2, 52] and 2 not in ids[3:-2]
    assert "3 of 3 identical" in list(verify(str(bundle), Talk()))[-1]


def test_text_by_language(tmp_path: Path) -> None:
    for code in ("sw", "es", "bn"):
        (tmp_path / f"{code}.txt").write_text("x", encoding="utf-8")
    extra = tmp_path / "es.txt"
    assert [path.stem for path in texts_of([tmp_path], ("sw", "bn"))] == ["bn", "sw"]
    assert texts_of([tmp_path], ()) == [tmp_path]
    assert texts_of([extra], ("sw",)) == [extra]
    with pytest.raises(mindmerger.MindMergerError, match="no text in th"):
        texts_of([tmp_path], ("sw", "th"))
