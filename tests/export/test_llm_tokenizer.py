"""Tokenizers of LLMs: which splitting llama.cpp is told, and that other ids never pass in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mindmerger.errors import CheckpointError
from mindmerger_export.hf_gguf import HFModel, open_hf
from mindmerger_export.llm_tokenizer import PRE_TOKENIZERS, pre_tokenizer_names
from mindmerger_export.tokenizer_proof import probes
from tests import tiny_llms


def folder_with(folder: Path, family: str, **steps: Any) -> HFModel:
    """A tiny LLM whose tokenizer.json has other parts than its family's, read as it stands there."""
    tiny_llms.llm_folder(folder, family)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document |= steps
    path.write_text(json.dumps(document), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return open_hf(folder)


def test_probes_are_what_they_should_be() -> None:
    text = "".join(probes())
    assert len(probes()) > 70 and all(not probe.startswith(" ") for probe in probes())
    for wanted in (
        "😀",
        "\x1b",
        "\u200b",
        "'ve",
        "12345",
        "\r\n",
        "한국" if "한국" in text else "마리아",
        "ꙮ",
        "\U0010ffff",
    ):
        assert wanted in text


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_known_splittings_are_recognised(name: str) -> None:
    steps, pattern = PRE_TOKENIZERS[name]
    parts: list[dict[str, Any]] = []
    for step in steps:
        kind = step.split(":")[0]
        parts.append(
            {
                "Split": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                "Digits": {"type": "Digits", "individual_digits": True},
                "ByteLevel": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": step.endswith(":regex")},
            }[kind]
        )
    document = parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}
    assert pre_tokenizer_names(document) == ((name,), True)
    parts[0]["type"] = "Metaspace"
    assert pre_tokenizer_names({"type": "Sequence", "pretokenizers": parts}) == (tuple(PRE_TOKENIZERS), False)


def test_a_wrong_name_is_noticed(tmp_path: Path) -> None:
    """The splitting of Llama 3 keeps three digits together, that of Qwen one."""
    model = folder_with(tmp_path / "llm", "llama3")
    object.__setattr__(model.vocabulary, "pre", ("qwen2",))
    with pytest.raises(CheckpointError, match=r"does not cut text.*qwen2.*--llm-gguf"):
        model.prove_tokenizer(tmp_path)
    proof = model.prove_tokenizer(tmp_path, strict=False)
    assert proof.pre == "qwen2" and 0 < proof.different < proof.texts and proof.example is not None
    assert not (tmp_path / ".vocabulary.gguf").exists()


def test_a_known_splitting_that_llama_cpp_gets_wrong_is_refused(tmp_path: Path) -> None:
    """Tekken keeps a letter's marks with it, llama.cpp's pattern of that name does not: Hindi would get other ids."""
    model = open_hf(tiny_llms.llm_folder(tmp_path / "llm", "mistral-nemo"))
    assert model.vocabulary.pre == ("tekken",)
    with pytest.raises(CheckpointError, match="tekken"):
        model.prove_tokenizer(tmp_path)


def test_an_unknown_splitting(tmp_path: Path) -> None:
    """A pattern spelled otherwise is found by its ids; one that is another is refused, with the names that were tried."""
    pattern = PRE_TOKENIZERS["llama-bpe"][1].replace(r"\s+(?!\S)|\s+", r"\s+(?!\S)|[\s]+")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    same = folder_with(tmp_path / "a", "llama3", pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]})
    assert not same.vocabulary.described
    assert same.prove_tokenizer(tmp_path).pre == "llama-bpe"
    split = split | {"pattern": {"Regex": r"[aeiou]+|[^aeiou]+"}}
    other = folder_with(tmp_path / "b", "llama3", pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]})
    with pytest.raises(CheckpointError, match="splittings tried: gpt-2, smollm, llama-bpe"):
        other.prove_tokenizer(tmp_path)


def test_scores_from_the_order_of_merges(tmp_path: Path) -> None:
    """Without SentencePiece's own file, as most folders come today."""
    folder = tiny_llms.llm_folder(tmp_path / "llm", "llama2")
    with_file = open_hf(folder).vocabulary
    (folder / "tokenizer.model").unlink()
    model = open_hf(folder)
    assert model.vocabulary.scores != with_file.scores
    proof = model.prove_tokenizer(tmp_path)
    assert proof.different == 0 and proof.pre == "default"


def test_another_sentencepiece_file_is_not_believed(tmp_path: Path) -> None:
    folder = tiny_llms.llm_folder(tmp_path / "llm", "llama2")
    other = tmp_path / "other"
    other.mkdir()
    tiny_llms.tokenizer(other, "spm-gemma")
    shutil.copy(other / "tokenizer.model", folder / "tokenizer.model")
    assert open_hf(folder).prove_tokenizer(tmp_path).different == 0


def test_tokens_without_a_row_and_rows_without_a_token(tmp_path: Path) -> None:
    folder = tiny_llms.llm_folder(tmp_path / "llm", "gemma3")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    rows = open_hf(folder).config.vocabulary
    first, known = document["added_tokens"][0], rows - 3
    document["added_tokens"] += [{**first, "id": known + i, "content": f"<image{i}>"} for i in range(5)]
    path.write_text(json.dumps(document), encoding="utf-8")
    vocabulary = open_hf(folder).vocabulary
    assert vocabulary.tokens[known:] == ["<image0>", "<image1>", "<image2>"]
    document["added_tokens"] = document["added_tokens"][:-5]
    path.write_text(json.dumps(document), encoding="utf-8")
    assert open_hf(folder).vocabulary.tokens[known:] == [f"[PAD{known + i}]" for i in range(3)]


def test_kinds_that_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="single bytes"):
        from tests import tiny_families

        open_hf(tiny_families.llm_folder(tmp_path / "bytes", "llama"))
    folder = tiny_llms.llm_folder(tmp_path / "unigram", "llama2")
    (folder / "tokenizer.model").unlink()
    from tests.tiny_torch import unigram_tokenizer

    unigram_tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="Unigram"):
        open_hf(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        open_hf(folder)
