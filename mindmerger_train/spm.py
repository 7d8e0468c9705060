"""SentencePiece files (`spiece.model`, `sentencepiece.bpe.model`) → a fast tokenizer with the encoder's ids.

Many encoders are published with the SentencePiece file alone, and the ids of most are not the file's: fairseq models move the
special tokens, M2M100 has a `vocab.json`. The result is compared with SentencePiece itself on texts in several scripts before
it is used. What this module does not know: where encoders are, what they compute.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mindmerger.errors import CheckpointError

FILES = ("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "tokenizer.model")
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
# What every script and every kind of white space does must be what SentencePiece does.
PROBES = (
    "Natalia sold clips to 48 of her friends in April, and then half as many in May.",
    "  Wie  viel kostet das?\tÄpfel ﬁnden ",
    "¿Cuántos años tiene María? — 15 € …",
    "Сколько яблок у Анны?",
    "小明有３个苹果，吃了1个。",
    "রহিমের কাছে ১২টি আম আছে।",
    "كم عدد التفاحات؟",
    "มีแอปเปิ้ลกี่ผล",
)


def find_model(folder: Path) -> Path | None:
    """The SentencePiece file in a Hugging Face folder, or None."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def fast_tokenizer(path: Path, family: str, language_tokens: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of a SentencePiece file as `tokenizers` runs it.

    `family` is the tokenizer's class without `Tokenizer` (`T5`, `XLMRoberta`, `Nllb`, `M2M100`, …); `language_tokens` are
    appended to the vocabulary, in the order of their ids (NLLB; M2M100's follow from its codes).
    Raises CheckpointError when the file is damaged, of a kind that is not known, or not reproduced exactly.
    """
    proto, processor = _read(path)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    kind = family.lower().removesuffix("fast").removesuffix("tokenizer")
    if kind in ("t5", "mt5", "umt5"):
        vocabulary, unknown = pieces, proto.trainer_spec.unk_id
        template, tail = "$A </s>", []
    elif kind in ("xlmroberta", "nllb"):
        unknown = _FAIRSEQ.index("<unk>")
        vocabulary = [(token, 0.0) for token in _FAIRSEQ] + pieces[3:]
        template, tail = "<s> $A </s>", [*language_tokens, "<mask>"]
    elif kind == "m2m100":
        ids = _vocabulary_file(path.with_name("vocab.json"))
        scores = dict(pieces)
        vocabulary = [(token, scores.get(token, 0.0)) for token in sorted(ids, key=ids.__getitem__)]
        if [ids[token] for token, _ in vocabulary] != list(range(len(ids))) or "<unk>" not in ids:
            raise CheckpointError(f"{path.with_name('vocab.json')} does not number its tokens from 0")
        unknown, template, tail = ids["<unk>"], "$A </s>", list(language_tokens)
    else:
        raise CheckpointError(f"{path.parent} has {path.name} and no tokenizer.json, and {family!r} is not known")
    tokenizer = Tokenizer(_model(proto, pieces, vocabulary, unknown))
    spec = proto.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    prefix: Any = "always" if spec.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prefix)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=prefix)
    present = {token for token, _ in vocabulary}
    specials = [piece.piece for piece in proto.pieces if piece.type == 3 and piece.piece in present]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in dict.fromkeys([*specials, *tail])])
    tokenizer.add_tokens(
        [AddedToken(p.piece, normalized=False) for p in proto.pieces if p.type == 4 and p.piece in present]
    )
    names = [token for token in ("<s>", "</s>") if f"{token} " in f"{template} "]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in names]
    )
    _compare(tokenizer, processor, path, vocabulary[unknown][0])
    return tokenizer


def language_tokens_of(family: str, folder: Path) -> list[str]:
    """The language tokens that a class appends to its vocabulary in the order of their ids; empty for others."""
    kind = family.lower().removesuffix("fast").removesuffix("tokenizer")
    if kind == "nllb":
        from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

        return list(FAIRSEQ_LANGUAGE_CODES)
    if kind == "m2m100":
        from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M_CODES

        try:
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            config = {}
        return [f"__{code}__" for code in M2M_CODES[config.get("language_codes") or "m2m100"]]
    return []


def _read(path: Path) -> tuple[Any, Any]:
    try:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    except ImportError as error:
        raise CheckpointError(
            f"{path} has to be converted, which needs the package sentencepiece: pip install sentencepiece protobuf"
        ) from error
    proto = cast(Any, sentencepiece_model_pb2).ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
        processor = SentencePieceProcessor(model_file=str(path))
    except Exception as error:  # protobuf's DecodeError, SentencePiece's RuntimeError and OSError
        raise CheckpointError(f"{path} is no SentencePiece file: {error}") from error
    return proto, processor


def _vocabulary_file(path: Path) -> dict[str, int]:
    try:
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} is missing: the SentencePiece file beside it does not say the ids") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return {str(token): int(number) for token, number in vocabulary.items()}


def _model(proto: Any, pieces: list[tuple[str, float]], vocabulary: list[tuple[str, float]], unknown: int) -> Any:
    fallback = bool(proto.trainer_spec.byte_fallback)
    if proto.trainer_spec.model_type == 1:
        return models.Unigram(vocabulary, unk_id=unknown, byte_fallback=fallback)
    if proto.trainer_spec.model_type != 2:
        raise CheckpointError("a SentencePiece file of the kind word or char cannot be converted")
    ids = {token: index for index, (token, _) in enumerate(vocabulary)}
    # SentencePiece merges the pair whose joined piece has the best score; scores fall with the order of the merges.
    merges = [
        (score, (piece[:cut], piece[cut:]))
        for piece, score in pieces
        if piece in ids
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges.sort(key=lambda entry: (-entry[0], ids[entry[1][0]], ids[entry[1][1]]))
    return models.BPE(
        ids,
        [pair for _, pair in merges],
        unk_token=vocabulary[unknown][0],
        fuse_unk=True,
        byte_fallback=fallback,
        ignore_merges=False,
    )


def _compare(tokenizer: Tokenizer, processor: Any, path: Path, unknown: str) -> None:
    """Raises CheckpointError when a probe is cut otherwise than by SentencePiece."""
    known = set(tokenizer.get_vocab())
    for text in PROBES:
        expected = [
            unknown if piece not in known or processor.is_unknown(number) else piece
            for piece, number in zip(processor.encode(text, out_type=str), processor.encode(text), strict=True)
        ]
        found = [tokenizer.id_to_token(number) for number in tokenizer.encode(text, add_special_tokens=False).ids]
        if found != expected and _merged(found, unknown) != _merged(expected, unknown):
            raise CheckpointError(
                f"{path} cannot be converted exactly ({text!r} is cut otherwise): give a tokenizer.json beside it"
            )


def _merged(tokens: Sequence[str | None], unknown: str) -> list[str | None]:
    """Runs of unknown pieces count as one: M2M100 knows fewer pieces than its SentencePiece file."""
    return [
        token for index, token in enumerate(tokens) if token != unknown or index == 0 or tokens[index - 1] != unknown
    ]
