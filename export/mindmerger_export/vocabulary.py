"""The bundle's tokenizer: the encoder's as it is, or pruned to what given texts or languages need; with its frames.

What this module does not know: how pieces are chosen (prune.py), graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.errors import CheckpointError, DataError
from mindmerger.frames import DEFAULT
from mindmerger.manifest import FrameInfo
from mindmerger_export import letters
from mindmerger_export.prune import Pruned, is_unigram, prune, read_texts
from mindmerger_export.request import Request
from mindmerger_export.samples import SENTENCES
from mindmerger_export.talk import Talk
from mindmerger_train import encoders
from mindmerger_train.encoders import EncoderSpec

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    """`keep[new id] = old id` (None: nothing was pruned); `rows` of the table; frames in new ids; figures for the report."""

    rows: int
    keep: npt.NDArray[np.int64] | None = None
    frames: dict[str, FrameInfo] | None = None
    report: dict[str, Any] | None = None


def check_languages(request: Request, encoder: EncoderSpec) -> None:
    """Before any work: InputError or DataError where there is nothing to choose the pieces of a language by.

    And CheckpointError where the encoder has no tokenizer: a large LLM takes minutes, and its turn comes first.
    """
    source = encoders.tokenizer_path(encoder)
    if request.prune_texts:
        texts_of(request.prune_texts, request.languages)
    elif request.languages and not request.whole_vocabulary and is_unigram(source):
        letters.check_known(request.languages)


def write_tokenizer(request: Request, encoder: EncoderSpec, rows: int, folder: Path, talk: Talk) -> Vocabulary:
    """Write the tokenizer of a bundle into `folder`; `rows` is the length of the encoder's table."""
    source = encoders.tokenizer_path(encoder)
    target = folder / TOKENIZER_FILE
    pruned = _pruned(request, source, rows, talk)
    text = pruned.tokenizer_json if pruned is not None else source.read_text(encoding="utf-8")
    frames = _frames(encoder, pruned)
    if frames:
        text = _in_default_frame(text, frames[DEFAULT])
    target.write_text(text, encoding="utf-8")
    if pruned is None:
        return Vocabulary(rows, frames=frames)
    return Vocabulary(len(pruned.keep), np.asarray(pruned.keep), frames, pruned.report)


def _pruned(request: Request, source: Path, rows: int, talk: Talk) -> Pruned | None:
    """By the text that was given, else by the letters of the languages that were named; None: whole."""
    languages = request.languages
    if not request.prune_texts:
        if not languages or request.whole_vocabulary:
            return None
        if not is_unigram(source):
            talk("the encoder's vocabulary stays whole: it is no Unigram (SentencePiece) one, which can be pruned")
            return None
    talk("choosing the pieces of the encoder's vocabulary")
    sentences = _sentences(languages)
    if request.prune_texts:
        texts = read_texts(texts_of(request.prune_texts, languages))
        for code, sentence in sentences.items():
            texts[code] = [*texts.get(code, ()), sentence]
        pruned, of = prune(source, texts, rows, request.max_pieces), "the text's tokens"
    else:
        pruned, of = (
            prune(source, {code: [text] for code, text in sentences.items()}, rows, request.max_pieces, languages),
            "the tokens of a sentence in each language",
        )
    kept = pruned.report
    least = "".join(f"; least of {name}, {100 * share:.2f} %" for name, share in [*kept["least_covered"].items()][:1])
    talk(f"vocabulary: {kept['pieces']} of {kept['of']} pieces, {100 * kept['token_coverage']:.2f} % of {of}{least}")
    return pruned


def _sentences(languages: Sequence[str]) -> dict[str, str]:
    """What parity is measured on keeps its pieces: every language's sentence, or those of the languages that were chosen."""
    return {code: text for code, text in SENTENCES.items() if not languages or code in languages}


def texts_of(paths: Sequence[Path], languages: Sequence[str]) -> list[Path]:
    """The files to prune by. Of a folder with files named by language (`sw.txt`), those of `languages` alone.

    A file that is given itself counts whatever its name. Raises DataError when a language has no file in any such folder
    and no other text was given.
    """
    if not languages:
        return list(paths)
    found: list[Path] = []
    named: set[str] = set()
    other = False
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else []
        chosen = [file for file in files if file.is_file() and file.stem in languages]
        named |= {file.stem for file in chosen}
        other |= not chosen
        found += chosen or [path]
    lacking = sorted(set(languages) - named)
    if lacking and not other:
        raise DataError(
            f"there is no text in {', '.join(lacking)} to prune the vocabulary by: give --prune-text files named "
            f"{', '.join(f'{code}.txt' for code in lacking[:3])}, or leave these languages out"
        )
    return found


def _frames(encoder: EncoderSpec, pruned: Pruned | None) -> dict[str, FrameInfo] | None:
    if not encoder.frames:
        return None
    new = None if pruned is None else {int(old): index for index, old in enumerate(pruned.keep)}

    def moved(ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids if new is None else tuple(new[token] for token in ids)

    try:
        return {
            language: FrameInfo(moved(frame.prefix), moved(frame.suffix)) for language, frame in encoder.frames.items()
        }
    except KeyError as error:
        raise CheckpointError(f"the encoder's language token {error} is not among its tokenizer's own") from None


def _in_default_frame(text: str, frame: FrameInfo) -> str:
    """The tokenizer with a post-processor that puts `frame` around a text, whatever it had before."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    before, after = ([tokenizer.id_to_token(token) for token in ids] for ids in (frame.before_ids, frame.after_ids))
    ids = (*frame.before_ids, *frame.after_ids)
    if None in (*before, *after):
        raise CheckpointError(f"the encoder's tokenizer lacks one of the language tokens {list(ids)}")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*(f"{token}:0" for token in before), "$A:0", *(f"{token}:0" for token in after)],
        special_tokens=list(dict(zip((*before, *after), ids, strict=True)).items()),
    )
    return str(tokenizer.to_str())
