"""Prune the encoder's vocabulary to what given texts or languages need, and remap its tokenizer.

Kept: special and added tokens, every piece that the tokenizer uses on the texts, small scripts whole, what languages need by
their letters (letters.py), and single characters (those that occur, ASCII, digits, punctuation, and the rest of every script
that occurs), so that an unseen word falls apart into pieces that the encoder knows instead of into `<unk>`. A Unigram
tokenizer picks the best path through all pieces that match; a subset that holds the best path cannot have a better one, so
text whose pieces are kept keeps its segmentation. That is checked, not trusted. What this module does not know: encoders,
ONNX.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.errors import CheckpointError, DataError, InputError, ParityError
from mindmerger_export import letters
from mindmerger_export.letters import SPACE, script_of

Ids = npt.NDArray[np.int64]

_BATCH = 2000
# Scripts of at most so many pieces are kept whole where at least this share of the texts' tokens is written in them.
SMALL_SCRIPT, WRITTEN_IN = 5000, 0.01
# Tokens of a language from which its own coverage says something.
ENOUGH = 1000


@dataclass(frozen=True)
class Pruned:
    """A pruned vocabulary: `keep[new id] = old id`, and the text of its tokenizer.json."""

    keep: Ids
    tokenizer_json: str
    report: dict[str, Any]


def read_texts(paths: Iterable[Path]) -> dict[str, list[str]]:
    """Lines of text of files, and of all such files in folders, in order of name; by the file's name without its ending.

    So `a/sw.txt` and `b/sw.tsv` are one language. `.jsonl` gives every string value of each line's object, `.tsv` and `.csv`
    every field, anything else whole lines. Raises DataError when a path is missing or not text.
    """
    found: dict[str, list[str]] = {}
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".tsv", ".csv", ".jsonl"))
            if not files:
                raise DataError(f"{path} has no .txt, .tsv, .csv or .jsonl files to prune the vocabulary by")
        else:
            files = [path]
        for file in files:
            found.setdefault(file.stem, []).extend(_read_file(file))
    return found


def _read_file(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                line = line.strip()
                if path.suffix == ".jsonl" and line:
                    record = json.loads(line)
                    values = record.values() if isinstance(record, dict) else [record]
                    yield from (value for value in values if isinstance(value, str) and value)
                elif path.suffix in (".tsv", ".csv"):
                    yield from (field for field in line.split("\t" if path.suffix == ".tsv" else ",") if field)
                elif line:
                    yield line
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error})") from None


def is_unigram(tokenizer: Path) -> bool:
    """Whether a tokenizer.json is of the kind that can be pruned."""
    return bool(json.loads(tokenizer.read_text(encoding="utf-8")).get("model", {}).get("type") == "Unigram")


def prune(
    tokenizer: Path,
    texts: Mapping[str, Sequence[str]],
    rows: int,
    max_pieces: int | None = None,
    languages: Sequence[str] = (),
) -> Pruned:
    """Choose the pieces that `texts` and `languages` need out of the tokenizer's and remap it; `rows`: length of the table.

    `texts` are by language, or any other name; of small scripts that they are written in, every piece is kept. With
    `languages` pieces are chosen by their letters, and those of `texts` are kept too; the coverage that is reported is what
    the letters alone have of the texts. `max_pieces` keeps the most frequent pieces beside the single characters and small
    scripts. Raises CheckpointError for tokenizers that are not Unigram, ParityError when a text that is wholly covered is
    segmented otherwise afterwards.
    """
    from tokenizers import Tokenizer

    document = json.loads(tokenizer.read_text(encoding="utf-8"))
    model = document.get("model", {})
    if model.get("type") != "Unigram":
        raise CheckpointError(
            f"the encoder's vocabulary can be pruned for Unigram (SentencePiece) tokenizers, not {model.get('type')!r}"
        )
    if not any(texts.values()) and not languages:
        raise DataError("there is no text to prune the vocabulary by")
    original = _plain(Tokenizer.from_file(str(tokenizer)))
    pieces: list[tuple[str, float]] = model["vocab"]
    lines = list(dict.fromkeys(text for group in texts.values() for text in group))
    before = dict(zip(lines, (ids.astype(np.int32) for ids in _encode(original, lines)), strict=True))
    counts = np.zeros(len(pieces), dtype=np.int64)
    for ids in before.values():
        np.add.at(counts, ids, 1)
    ranks = letters.needed(pieces, languages) if languages else None
    characters = _characters(original, lines)
    must = _must_keep(document, pieces, characters)
    scripts = {script_of(character) for character in characters if character.isalpha()}
    scripts |= {script for code in languages for script in letters.SCRIPTS[code]}
    if max_pieces is not None and max_pieces < must.sum():
        raise InputError(
            f"--max-pieces must be at least {must.sum()}: so many are special tokens or characters in the texts"
        )
    whole = _small_scripts(pieces, counts) if ranks is None else np.zeros(len(pieces), dtype=bool)
    chosen = _choose(pieces, counts, must, whole, scripts, max_pieces, ranks)
    keep = np.flatnonzero(chosen)
    if keep[-1] >= rows:
        raise CheckpointError(f"the encoder's table has {rows} rows and its tokenizer uses piece {keep[-1]}")
    text = json.dumps(_remap(document, keep), ensure_ascii=False, separators=(",", ":"))
    same = _check(_plain(Tokenizer.from_str(text)), before, keep, chosen)
    by_rule = (
        chosen if ranks is None else _choose(pieces, np.zeros_like(counts), must, whole, scripts, max_pieces, ranks)
    )
    report = {
        "chosen_by": "text" if ranks is None else "letters",
        "pieces": len(keep),
        "of": rows,
        "used_by_texts": int((counts > 0).sum()),
        "token_coverage": round(float(counts[by_rule].sum() / max(1, counts.sum())), 6),
        "least_covered": _least_covered(texts, before, by_rule),
        "texts": len(lines),
        "texts_with_same_segmentation": same,
    }
    return Pruned(keep, text, report)


def _least_covered(
    texts: Mapping[str, Sequence[str]], before: Mapping[str, npt.NDArray[np.int32]], kept: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """What share of its tokens is kept, of the five languages of which it is least."""
    covered = {}
    for name, group in texts.items():
        ids = [before[text] for text in dict.fromkeys(group)]
        if sum(map(len, ids)) >= ENOUGH:
            covered[name] = round(float(kept[np.concatenate(ids)].mean()), 6)
    return dict(sorted(covered.items(), key=lambda found: found[1])[:5])


def _small_scripts(pieces: list[tuple[str, float]], counts: Ids) -> npt.NDArray[np.bool_]:
    """Which pieces are of a script that the texts are written in, few languages share and few pieces are of.

    Such a script is kept whole: no text that is at hand has all its words. 2,000 lines of Thai news and 500 sentences use a
    third of its 4,299 pieces, and a quarter of the tokens of Thai word problems are among the others.
    """
    kinds = [{script_of(character) for character in piece if character.isalpha()} for piece, _ in pieces]
    sizes = Counter(script for found in kinds for script in found)
    tokens: Counter[str] = Counter()
    for index in np.flatnonzero(counts):
        tokens.update(dict.fromkeys(kinds[index], int(counts[index])))
    small = {
        script
        for script, count in tokens.items()
        if script not in letters.LARGE and sizes[script] <= SMALL_SCRIPT and count >= WRITTEN_IN * counts.sum()
    }
    return np.array([bool(found) and found <= small for found in kinds])


def _plain(tokenizer: Any) -> Any:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _encode(tokenizer: Any, texts: Sequence[str]) -> Iterator[Ids]:
    """Ids of each text, without special tokens; in batches, which the library encodes on all cores."""
    for start in range(0, len(texts), _BATCH):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False):
            yield np.asarray(encoding.ids, dtype=np.int64)


def _characters(tokenizer: Any, texts: Sequence[str]) -> set[str]:
    """The characters that occur after normalisation."""
    normalizer = tokenizer.normalizer
    found: set[str] = set()
    for text in texts:
        found.update(normalizer.normalize_str(text) if normalizer is not None else text)
    return found


def _must_keep(
    document: dict[str, Any], pieces: list[tuple[str, float]], characters: set[str]
) -> npt.NDArray[np.bool_]:
    must = np.zeros(len(pieces), dtype=bool)
    if document["model"].get("unk_id") is not None:
        must[document["model"]["unk_id"]] = True
    must[[token["id"] for token in document["added_tokens"]]] = True
    must[list(_special_ids(document.get("post_processor")))] = True
    if document.get("padding"):
        must[document["padding"]["pad_id"]] = True
    byte_fallback = bool(document["model"].get("byte_fallback"))
    for index, (piece, _) in enumerate(pieces):
        bare = piece[1:] if piece.startswith(SPACE) and len(piece) > 1 else piece
        if len(bare) == 1:
            # "▁a" too: a word of one character, or the start of a word that falls apart.
            basic = bare.isascii() or bare == SPACE or unicodedata.category(bare)[0] in "PN"
            must[index] |= basic or (bare in characters and len(piece) == 1)
        elif byte_fallback and len(piece) == 6 and piece.startswith("<0x"):
            must[index] = True
    return must


def _choose(
    pieces: list[tuple[str, float]],
    counts: Ids,
    must: npt.NDArray[np.bool_],
    whole: npt.NDArray[np.bool_],
    scripts: set[str],
    max_pieces: int | None,
    ranks: npt.NDArray[np.float32] | None,
) -> npt.NDArray[np.bool_]:
    """What must be kept; then single characters of `scripts`, `whole`, pieces that were counted, those that have a rank.

    Characters come before pieces: a word that falls apart is a little worse understood, an `<unk>` is lost.
    """
    single = np.array([len(piece) == 1 and script_of(piece) in scripts for piece, _ in pieces])
    chosen = must.copy()
    unranked = np.full(len(pieces), -np.inf, dtype=np.float32)
    by_rank = unranked if ranks is None else ranks
    order = np.lexsort((-by_rank, -counts, ~whole, ~single))
    wanted = order[(single | whole | (counts > 0) | (by_rank > -np.inf))[order] & ~must[order]]
    room = len(wanted) if max_pieces is None else max_pieces - int(must.sum())
    chosen[wanted[:room]] = True
    return chosen


def _special_ids(processor: Any) -> set[int]:
    """Ids that a post-processor adds, wherever its kind keeps them."""
    found: set[int] = set()
    if isinstance(processor, dict):
        for key, value in processor.items():
            if key in ("sep", "cls"):
                found.add(int(value[1]))
            elif key == "special_tokens":
                found.update(int(token) for entry in value.values() for token in entry["ids"])
            else:
                found |= _special_ids(value)
    elif isinstance(processor, list):
        for value in processor:
            found |= _special_ids(value)
    return found


def _remap_special(processor: Any, new: dict[int, int]) -> Any:
    if isinstance(processor, list):
        return [_remap_special(value, new) for value in processor]
    if not isinstance(processor, dict):
        return processor
    result: dict[str, Any] = {}
    for key, value in processor.items():
        if key in ("sep", "cls"):
            result[key] = [value[0], new[int(value[1])]]
        elif key == "special_tokens":
            result[key] = {name: {**entry, "ids": [new[int(token)] for token in entry["ids"]]}
                           for name, entry in value.items()}  # fmt: skip
        else:
            result[key] = _remap_special(value, new)
    return result


def _remap(document: dict[str, Any], keep: Ids) -> dict[str, Any]:
    """The tokenizer's document with only the kept pieces and their new ids everywhere."""
    new = {int(old): index for index, old in enumerate(keep)}
    model = dict(document["model"])
    # Scores are float32, written with the digits that tell them apart: a quarter of the file less.
    model["vocab"] = [[piece, float(str(np.float32(score)))] for piece, score in (model["vocab"][old] for old in keep)]
    if model.get("unk_id") is not None:
        model["unk_id"] = new[model["unk_id"]]
    result = {**document, "model": model, "truncation": None}
    result["added_tokens"] = [{**token, "id": new[token["id"]]} for token in document["added_tokens"]]
    result["post_processor"] = _remap_special(document.get("post_processor"), new)
    if document.get("padding"):
        result["padding"] = {**document["padding"], "pad_id": new[document["padding"]["pad_id"]]}
    return result


def _check(pruned: Any, before: Mapping[str, npt.NDArray[np.int32]], keep: Ids, chosen: npt.NDArray[np.bool_]) -> int:
    """How many texts keep their segmentation. ParityError when one whose pieces are all kept does not."""
    same = 0
    for (text, old), new in zip(before.items(), _encode(pruned, list(before)), strict=True):
        if np.array_equal(old, keep[new]):
            same += 1
        elif chosen[old].all():
            raise ParityError(f"the pruned tokenizer segments {text[:60]!r} otherwise than the original")
    return same
