"""The tokenizer of a Hugging Face LLM → the tokenizer keys of its GGUF.

Two kinds are known: byte-level BPE (`gpt2` in GGUF), whose splitting of text llama.cpp knows by a name, and SentencePiece's
BPE with bytes (`llama`), which merges by scores. The truth is what transformers runs, because the LLM was trained on its
ids. Whether llama.cpp gives the same ids is proved elsewhere (tokenizer_proof.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindmerger.errors import CheckpointError
from mindmerger_train.llms import LLMSpec, load_hf_tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_READY = "(or give a ready GGUF with --llm-gguf)"

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's name → how tokenizer.json describes the same splitting: steps before the bytes, and the pattern of a Split.
PRE_TOKENIZERS: dict[str, tuple[tuple[str, ...], str]] = {
    "gpt-2": (("ByteLevel:regex",), ""),
    "smollm": (("Digits:single", "ByteLevel:regex"), ""),
    "llama-bpe": (("Split:isolated", "ByteLevel"), _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")),
    "qwen2": (("Split:isolated", "ByteLevel"), _QWEN2),
    "qwen35": (
        ("Split:isolated", "ByteLevel"),
        _QWEN2.replace(r"\p{L}+|", r"[\p{L}\p{M}]+|").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),
    ),
    "tekken": (("Split:isolated", "ByteLevel"), _TEKKEN),
}


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF says about a tokenizer.

    `pre`: the name of a byte-level BPE's splitting, or all names where tokenizer.json describes none of them (not
    `described`). `normaliser`: NFC where transformers brings text into that form first; llama.cpp never does.
    """

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] = field(default_factory=list)
    pre: tuple[str, ...] = ("default",)
    described: bool = True
    space_prefix: bool | None = None
    normaliser: str | None = None
    special_ids: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    chat_template: str | None = None
    spelled: tuple[str, ...] = ()

    def add_to(self, writer: Any, pre: str, stop_ids: tuple[int, ...] = ()) -> None:
        """Write the tokenizer's keys to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        ids = dict(self.special_ids)
        # llama.cpp has one key for each way of ending an answer; it finds further ones by their names.
        ids |= dict(zip(("eos", "eot", "eom"), stop_ids, strict=False))
        for name, index in sorted(ids.items()):
            if 0 <= index < len(self.tokens):
                getattr(writer, f"add_{name}_token_id")(index)
        # For other programs: whoever assembles a sequence here adds BOS by id.
        writer.add_add_bos_token(self.add_bos and "bos" in ids)
        writer.add_add_eos_token(False)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The tokenizer of the LLM in `folder`, whose embedding table has `rows` rows.

    Raises CheckpointError when there is none, when its kind is not known, or when it has more pieces than rows.
    """
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
    ):
        raise CheckpointError(f"{folder} has no tokenizer: tokenizer.json or tokenizer.model is missing")
    tokenizer = load_hf_tokenizer(LLMSpec(str(folder), "", "", 0))
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    model = document["model"]
    if model["type"] != "BPE":
        raise CheckpointError(f"the LLM's tokenizer is of the kind {model['type']}; supported: BPE {_READY}")
    highest = max(model["vocab"].values(), default=-1)
    if highest >= rows:
        raise CheckpointError(
            f"the LLM's tokenizer has {highest + 1} pieces and its embeddings {rows} rows: not its own"
        )
    # Added tokens without a row are for other uses of the same tokenizer (Gemma 3's images).
    added = [token for token in document.get("added_tokens", []) if token["id"] < rows]
    shared = {
        "special_ids": _special_ids(tokenizer),
        "add_bos": _adds_bos(tokenizer),
        "chat_template": tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
        "normaliser": _normaliser(document.get("normalizer")),
        "spelled": tuple(token["content"] for token in added),
    }
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    if _steps(document.get("pre_tokenizer"))[-1:] in (["ByteLevel"], ["ByteLevel:regex"]):
        return _byte_level(document, merges, added, rows, shared)
    return _sentencepiece(folder, document, merges, added, rows, shared)


def _special_ids(tokenizer: Any) -> dict[str, int]:
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unk_token_id", "pad": "pad_token_id"}
    found = {name: getattr(tokenizer, key, None) for name, key in names.items()}
    return {name: int(index) for name, index in found.items() if isinstance(index, int)}


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _normaliser(document: dict[str, Any] | None) -> str | None:
    steps = document.get("normalizers", [document]) if document else []
    return "NFC" if [step["type"] for step in steps] == ["NFC"] else None


def _filled(vocabulary: dict[str, int], rows: int) -> tuple[list[str], list[int]]:
    """Texts and types of all rows; rows that no piece names are padding."""
    from gguf import TokenType

    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for token, index in vocabulary.items():
        tokens[index], types[index] = token, int(TokenType.NORMAL)
    return tokens, types


def _byte_level(
    document: dict[str, Any], merges: list[list[str]], added: list[dict[str, Any]], rows: int, shared: dict[str, Any]
) -> Vocabulary:
    from gguf import TokenType

    tokens, types = _filled(document["model"]["vocab"], rows)
    for token in added:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    pre, described = pre_tokenizer_names(document.get("pre_tokenizer"))
    return Vocabulary(
        "gpt2", tokens, types, merges=[" ".join(merge) for merge in merges], pre=pre, described=described, **shared
    )


def pre_tokenizer_names(document: dict[str, Any] | None) -> tuple[tuple[str, ...], bool]:
    """llama.cpp's name for a splitting, or all names when it is none that is known; and whether it is.

    A known splitting is never replaced by another that happens to give the same ids on the proof's texts.
    """
    steps = _steps(document)
    parts = document.get("pretokenizers", [document]) if document else []
    patterns = [step["pattern"].get("Regex", "") for step in parts if step["type"] == "Split"]
    pattern = patterns[0].replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTION) if patterns else ""
    matching = [name for name, known in PRE_TOKENIZERS.items() if (list(known[0]), known[1]) == (steps, pattern)]
    return tuple(matching or PRE_TOKENIZERS), bool(matching)


def _steps(document: dict[str, Any] | None) -> list[str]:
    """A pre-tokenizer in a few words."""
    words = []
    for step in document.get("pretokenizers", [document]) if document else []:
        kind = step["type"]
        if kind == "Split":
            kind += f":{step['behavior'].lower()}" + (":inverted" if step.get("invert") else "")
        elif kind == "Digits":
            kind += ":single" if step.get("individual_digits") else ""
        elif kind == "ByteLevel":
            # A leading space is never part of the prompt's ids here; what this option would do, the proof finds.
            kind += ":regex" if step.get("use_regex", True) else ""
        words.append(kind)
    return words


def _sentencepiece(
    folder: Path, document: dict[str, Any], merges: list[list[str]], added: list[dict[str, Any]], rows: int, shared: Any
) -> Vocabulary:
    from gguf import TokenType

    model = document["model"]
    vocabulary: dict[str, int] = model["vocab"]
    lacking = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary]
    if not model.get("byte_fallback") or lacking:
        # llama.cpp ends the process when a character is neither a piece nor bytes.
        raise CheckpointError(f"the LLM's tokenizer has no pieces for single bytes, which llama.cpp needs {_READY}")
    tokens, types = _filled(vocabulary, rows)
    for token, index in vocabulary.items():
        if _BYTE.fullmatch(token):
            types[index] = int(TokenType.BYTE)
    scores = _scores(folder, vocabulary, merges, rows)
    for entry in added:
        index = entry["id"]
        if entry["special"]:
            tokens[index], types[index] = entry["content"], int(TokenType.CONTROL)
        else:
            # They are looked for in the text as it is given, before spaces become ▁.
            tokens[index], types[index] = entry["content"].replace("▁", " "), int(TokenType.USER_DEFINED)
        scores[index] = -1000.0
    unknown = vocabulary.get(model.get("unk_token") or "")
    if unknown is not None:
        types[unknown] = int(TokenType.UNKNOWN)
    return Vocabulary("llama", tokens, types, scores, space_prefix=_space_prefix(document), **shared)


def _scores(folder: Path, vocabulary: dict[str, int], merges: list[list[str]], rows: int) -> list[float]:
    """SentencePiece's scores, from its file where that is the same tokenizer, else from the order of the merges.

    `gguf.LlamaHfVocab` gives every piece the same score, with which llama.cpp merges from the left whatever it finds.
    """
    from gguf import SentencePieceVocab

    scores = [-1e6] * rows
    for rank, (left, right) in enumerate(merges):
        index = vocabulary.get(left + right)
        if index is not None and scores[index] == -1e6:
            scores[index] = -float(rank)
    if not (folder / "tokenizer.model").is_file():
        return scores
    try:
        pieces = list(SentencePieceVocab(folder).sentencepiece_tokens())
    except Exception:  # no SentencePiece file, or the package is missing: the merges say the same
        return scores
    if any(
        vocabulary.get(bytes(text).decode("utf-8", "replace")) != index for index, (text, _, _) in enumerate(pieces)
    ):
        return scores
    return [*(float(score) for _, score, _ in pieces), *scores[len(pieces) :]][:rows]


def _space_prefix(document: dict[str, Any]) -> bool:
    """Whether a space is put before the text."""
    pre = document.get("pre_tokenizer") or {}
    normalizer = document.get("normalizer") or {}
    prepends = [step["type"] for step in normalizer.get("normalizers", [normalizer]) if step]
    return "Prepend" in prepends or (
        pre.get("type") == "Metaspace" and pre.get("prepend_scheme") in ("first", "always")
    )
