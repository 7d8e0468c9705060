"""Pruning a vocabulary: the texts keep their segmentation, ids are remapped everywhere, the unseen still has pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from mindmerger.errors import CheckpointError, DataError, InputError
from mindmerger_export.prune import prune, read_texts
from mindmerger_export.samples import SENTENCES
from tests import tiny_torch


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tiny_torch.unigram_tokenizer(path, 900)
    # XLM-R's <mask> is the last piece: a special token whose id moves.
    document = json.loads(path.read_text(encoding="utf-8"))
    document["added_tokens"].append(
        {**document["added_tokens"][0], "id": len(document["model"]["vocab"]), "content": "<mask>"}
    )
    document["model"]["vocab"].append(["<mask>", 0.0])
    document["padding"] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1,
                           "pad_type_id": 0, "pad_token": "<pad>"}  # fmt: skip
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def rows(path: Path) -> int:
    return len(json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"])


def test_segmentation_of_counted_texts_is_kept(tokenizer: Path) -> None:
    texts = [SENTENCES[code] for code in ("es", "sw", "bn", "zh")]
    pruned = prune(tokenizer, texts, rows(tokenizer))
    assert len(pruned.keep) < rows(tokenizer)
    assert pruned.report["texts_with_same_segmentation"] == 4
    assert pruned.report["token_coverage"] == 1.0
    before, after = Tokenizer.from_file(str(tokenizer)), Tokenizer.from_str(pruned.tokenizer_json)
    for text in texts:
        old, new = before.encode(text), after.encode(text)
        assert old.ids == pruned.keep[new.ids].tolist()
        assert old.tokens == new.tokens


def test_special_tokens_have_their_new_ids(tokenizer: Path) -> None:
    pruned = prune(tokenizer, [SENTENCES["es"]], rows(tokenizer))
    after = Tokenizer.from_str(pruned.tokenizer_json)
    assert [after.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert after.token_to_id("<mask>") == len(pruned.keep) - 1
    ids = after.encode("hola <mask> ☃").ids
    assert (ids[0], ids[-1]) == (0, 2)
    assert after.token_to_id("<mask>") in ids
    assert 3 in ids  # the snowman


def test_unseen_words_fall_apart_into_characters(tokenizer: Path) -> None:
    after = Tokenizer.from_str(prune(tokenizer, [SENTENCES["es"]], rows(tokenizer)).tokenizer_json)
    assert 3 not in after.encode("banana 2 + 5, melon ratona").ids


def test_max_pieces_keeps_the_frequent_ones(tokenizer: Path) -> None:
    texts = [SENTENCES["es"]] * 2 + [SENTENCES["es"] + " hermano hermano", SENTENCES["fi"]]
    everything = len(prune(tokenizer, texts, rows(tokenizer)).keep)
    pruned = prune(tokenizer, texts, rows(tokenizer), everything - 5)
    assert len(pruned.keep) == everything - 5
    assert pruned.report["token_coverage"] <= 1.0
    with pytest.raises(InputError, match="--max-pieces must be at least"):
        prune(tokenizer, texts, rows(tokenizer), 10)


def test_tokenizers_and_tables_that_do_not_fit_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rows"):
        prune(tokenizer, [SENTENCES["es"]], 20)
    tiny_torch.bpe_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="Unigram"):
        prune(tmp_path / "tokenizer.json", ["x"], 1000)
    with pytest.raises(DataError):
        prune(tokenizer, [], 1000)


def test_read_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("uno\n\ndos\n", encoding="utf-8")
    (tmp_path / "b.tsv").write_text("tres\tfour\n", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"n": 1, "q": "cinco"}\n', encoding="utf-8")
    (tmp_path / "d.bin").write_bytes(b"\xff\xfe")
    assert list(read_texts([tmp_path])) == ["uno", "dos", "tres", "four", "cinco"]
    for bad in (tmp_path / "d.bin", tmp_path / "missing.txt"):
        with pytest.raises(DataError):
            list(read_texts([bad]))


def test_post_processors_of_roberta_are_remapped(tokenizer: Path, tmp_path: Path) -> None:
    document: dict[str, Any] = json.loads(tokenizer.read_text(encoding="utf-8"))
    last = len(document["model"]["vocab"]) - 1
    document["post_processor"] = {"type": "RobertaProcessing", "sep": ["<mask>", last], "cls": ["<s>", 0],
                                  "trim_offsets": True, "add_prefix_space": False}  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    pruned = prune(path, [SENTENCES["en"]], rows(path))
    ids = Tokenizer.from_str(pruned.tokenizer_json).encode(SENTENCES["en"]).ids
    assert np.array_equal(pruned.keep[ids], Tokenizer.from_file(str(path)).encode(SENTENCES["en"]).ids)
