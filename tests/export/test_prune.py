"""Pruning a vocabulary: the texts keep their segmentation, ids are remapped everywhere, the unseen still has pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from mindmerger.errors import BundleError, CheckpointError, DataError, InputError
from mindmerger_export import letters
from mindmerger_export import prune as prune_module
from mindmerger_export.letters import script_of
from mindmerger_export.prune import prune, read_texts
from mindmerger_export.samples import SENTENCES
from mindmerger_train import encoders
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
    texts = {code: [SENTENCES[code]] for code in ("es", "sw", "bn", "zh")}
    pruned = prune(tokenizer, texts, rows(tokenizer))
    assert len(pruned.keep) < rows(tokenizer)
    assert pruned.report["texts_with_same_segmentation"] == 4
    assert pruned.report["token_coverage"] == 1.0
    before, after = Tokenizer.from_file(str(tokenizer)), Tokenizer.from_str(pruned.tokenizer_json)
    for [text] in texts.values():
        old, new = before.encode(text), after.encode(text)
        assert old.ids == pruned.keep[new.ids].tolist()
        assert old.tokens == new.tokens


def test_special_tokens_have_their_new_ids(tokenizer: Path) -> None:
    pruned = prune(tokenizer, {"es": [SENTENCES["es"]]}, rows(tokenizer))
    after = Tokenizer.from_str(pruned.tokenizer_json)
    assert [after.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert after.token_to_id("<mask>") == len(pruned.keep) - 1
    ids = after.encode("hola <mask> ☃").ids
    assert (ids[0], ids[-1]) == (0, 2)
    assert after.token_to_id("<mask>") in ids
    assert 3 in ids  # the snowman


def test_unseen_words_fall_apart_into_characters(tokenizer: Path) -> None:
    after = Tokenizer.from_str(prune(tokenizer, {"es": [SENTENCES["es"]]}, rows(tokenizer)).tokenizer_json)
    assert 3 not in after.encode("banana 2 + 5, melon ratona").ids


def test_max_pieces_keeps_the_frequent_ones(tokenizer: Path) -> None:
    texts = {"es": [SENTENCES["es"]] * 2 + [SENTENCES["es"] + " hermano hermano"], "fi": [SENTENCES["fi"]]}
    everything = len(prune(tokenizer, texts, rows(tokenizer)).keep)
    pruned = prune(tokenizer, texts, rows(tokenizer), everything - 5)
    assert len(pruned.keep) == everything - 5
    assert pruned.report["token_coverage"] <= 1.0
    with pytest.raises(InputError, match="--max-pieces must be at least"):
        prune(tokenizer, texts, rows(tokenizer), 10)


def of_script(pruned: str, script: str) -> set[str]:
    """The pieces with letters, all of `script`."""
    pieces = [piece for piece, _ in json.loads(pruned)["model"]["vocab"]]
    return {piece for piece in pieces if letters_of(piece) == {script}}


def test_a_small_script_is_kept_whole(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that no text at hand has; where there is room for few pieces, too. Not for a word or two, nor of Latin."""
    source = tokenizer.read_text(encoding="utf-8")
    texts = {"th": [SENTENCES["th"][:4]], "es": [SENTENCES["es"]]}
    pruned = prune(tokenizer, texts, rows(tokenizer))
    assert of_script(pruned.tokenizer_json, "THAI") == of_script(source, "THAI")
    assert of_script(pruned.tokenizer_json, "LATIN") < of_script(source, "LATIN")
    fewer = prune(tokenizer, texts, rows(tokenizer), len(pruned.keep) - 2)
    assert of_script(fewer.tokenizer_json, "THAI") == of_script(source, "THAI")
    for name, value in (("WRITTEN_IN", 0.9), ("SMALL_SCRIPT", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(prune_module, name, value)
            some = prune(tokenizer, texts, rows(tokenizer))
        assert of_script(some.tokenizer_json, "THAI") < of_script(source, "THAI")


def test_the_least_covered_language_is_named(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_module, "ENOUGH", 5)
    texts = {"es": [SENTENCES["es"]], "fi": [SENTENCES["fi"]]}
    everything = prune(tokenizer, texts, rows(tokenizer))
    assert set(everything.report["least_covered"].values()) == {1.0}
    covered = prune(tokenizer, texts, rows(tokenizer), len(everything.keep) - 10).report["least_covered"]
    assert [*covered.values()] == sorted(covered.values()) and 0 < min(covered.values()) < 1


def test_tokenizers_and_tables_that_do_not_fit_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rows"):
        prune(tokenizer, {"es": [SENTENCES["es"]]}, 20)
    tiny_torch.bpe_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="Unigram"):
        prune(tmp_path / "tokenizer.json", {"en": ["x"]}, 1000)
    with pytest.raises(DataError):
        prune(tokenizer, {}, 1000)


def test_read_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("uno\n\ndos\n", encoding="utf-8")
    (tmp_path / "b.tsv").write_text("tres\tfour\n", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"n": 1, "q": "cinco"}\n', encoding="utf-8")
    (tmp_path / "d.bin").write_bytes(b"\xff\xfe")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.tsv").write_text("seis\n", encoding="utf-8")
    assert read_texts([tmp_path]) == {"a": ["uno", "dos", "seis"], "b": ["tres", "four"], "c": ["cinco"]}
    for bad in (tmp_path / "d.bin", tmp_path / "missing.txt"):
        with pytest.raises(DataError):
            read_texts([bad])


def test_post_processors_of_roberta_are_remapped(tokenizer: Path, tmp_path: Path) -> None:
    document: dict[str, Any] = json.loads(tokenizer.read_text(encoding="utf-8"))
    last = len(document["model"]["vocab"]) - 1
    document["post_processor"] = {"type": "RobertaProcessing", "sep": ["<mask>", last], "cls": ["<s>", 0],
                                  "trim_offsets": True, "add_prefix_space": False}  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    pruned = prune(path, {"en": [SENTENCES["en"]]}, rows(path))
    ids = Tokenizer.from_str(pruned.tokenizer_json).encode(SENTENCES["en"]).ids
    assert np.array_equal(pruned.keep[ids], Tokenizer.from_file(str(path)).encode(SENTENCES["en"]).ids)


def letters_of(text: str) -> set[str]:
    return {script_of(letter) for letter in text if letter.isalpha()}


def test_languages_alone_decide_by_their_letters(tokenizer: Path) -> None:
    pruned = prune(tokenizer, {}, rows(tokenizer), languages=("bn", "es", "ru"))
    pieces = [piece for piece, _ in json.loads(pruned.tokenizer_json)["model"]["vocab"]]
    assert set().union(*map(letters_of, pieces)) <= {"LATIN", "BENGALI", "CYRILLIC"}
    before, after = Tokenizer.from_file(str(tokenizer)), Tokenizer.from_str(pruned.tokenizer_json)
    # A script of its own is kept whole, so what is written in it keeps its ids.
    assert before.encode(SENTENCES["bn"]).ids == pruned.keep[after.encode(SENTENCES["bn"]).ids].tolist()
    for code in ("bn", "es", "ru"):
        assert 3 not in after.encode(SENTENCES[code]).ids
    assert 3 in after.encode(SENTENCES["th"]).ids
    assert pruned.report["chosen_by"] == "letters" and pruned.report["texts"] == 0
    assert pruned.keep.tolist() == prune(tokenizer, {}, rows(tokenizer), languages=("ru", "bn", "es")).keep.tolist()


def test_letters_of_a_language_leave_out_those_of_others(tokenizer: Path) -> None:
    """Of one script, too: a Swahili vocabulary has no Vietnamese or Polish words, but their letters."""
    pruned = prune(tokenizer, {"sw": [SENTENCES["sw"]]}, rows(tokenizer), languages=("sw",))
    kept = [piece for piece, _ in json.loads(pruned.tokenizer_json)["model"]["vocab"]]
    everything = [piece for piece, _ in json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]]
    foreign = [piece for piece in everything if len(piece) > 2 and set(piece) & set("łężąşğ")]
    assert foreign and not set(foreign) & set(kept)
    assert {letter for piece in foreign for letter in piece if letter in everything} <= set(kept)
    assert pruned.report["texts_with_same_segmentation"] == 1
    assert 0.5 < pruned.report["token_coverage"] <= 1.0


def test_max_pieces_keeps_what_languages_need_most(tokenizer: Path) -> None:
    everything = prune(tokenizer, {}, rows(tokenizer), languages=("es",)).keep
    fewer = prune(tokenizer, {}, rows(tokenizer), len(everything) - 20, languages=("es",)).keep
    assert len(fewer) == len(everything) - 20 and set(fewer) < set(everything)


def test_languages_without_letters_are_refused_and_every_sentence_has_some() -> None:
    assert set(SENTENCES) <= set(letters.SCRIPTS)
    assert set(letters.table()) <= {
        code for code, scripts in letters.SCRIPTS.items() if {*scripts} <= {"LATIN", "CYRILLIC"}
    }
    with pytest.raises(InputError, match="tlh needs is not known: give text in it by --prune-text"):
        letters.check_known(("es", "tlh"))


def test_real_vocabulary_by_languages() -> None:
    """The vocabulary that e5 and XLM-R share: how many pieces ten languages take, and sentences that the table has not seen."""
    try:
        source = encoders.tokenizer_path(encoders.default_spec())
    except BundleError as error:
        pytest.skip(str(error))
    ten = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "th", "zh")
    unseen = {code: [SENTENCES[code]] for code in ten}
    pruned = prune(source, unseen, 250_037, languages=ten)
    assert len(pruned.keep) < 97_000
    assert pruned.report["token_coverage"] > 0.95
    before, after = Tokenizer.from_file(str(source)), Tokenizer.from_str(pruned.tokenizer_json)
    before.no_truncation()
    for [text] in unseen.values():
        assert before.encode(text).ids == pruned.keep[after.encode(text).ids].tolist()
