"""The encoder's tokenizer: a fast tokenizer from whatever its folder holds, and the ids around a text that name its language.

What this module does not know: models. It works with `tokenizers` alone once `tokenizer.json` exists, as the runtime does.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mindmerger.cache import writable_folder
from mindmerger.errors import CheckpointError, InputError
from mindmerger_train import spm
from mindmerger_train.language_codes import DEFAULT, Frame, frames_of, names_languages

FILE = "tokenizer.json"
# Raise it when the conversion changes: converted files are kept.
_CONVERSION = "1"


@dataclass(frozen=True)
class Encoded:
    """Ids, special tokens included, and the span of each in the text (0, 0 for special ones)."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class EncoderTokenizer:
    """Text → the encoder's ids, cut to `max_tokens`.

    Without frames the tokenizer's own post-processor adds the special tokens; with frames (translation encoders) the frame
    of the text's language does, so that `es` and `sw` begin with their own language tokens.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, frames: Mapping[str, Frame] | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_tokens: int | None = max_tokens
        self.frames = dict(frames or {})
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if not self.frames:
            tokenizer.enable_truncation(max_tokens)

    def no_truncation(self) -> None:
        """Take texts of any length from now on."""
        self.max_tokens = None
        self.tokenizer.no_truncation()

    def frame(self, language: str) -> Frame:
        """What stands around a text. Raises InputError when the encoder has no token for `language`."""
        found = self.frames.get(language)
        if found is None:
            raise InputError(
                f"the encoder has no source-language token for {language!r}: it has "
                f"{', '.join(sorted(name for name in self.frames if name))}"
            )
        return found

    def encode(self, text: str, language: str = DEFAULT) -> Encoded:
        """The ids of `text`. `language` matters only to encoders that are told it; "" means that it is not known."""
        if not self.frames:
            encoding = self.tokenizer.encode(text)
            return Encoded(encoding.ids, encoding.offsets)
        frame = self.frame(language)
        around = len(frame.prefix) + len(frame.suffix)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        room = None if self.max_tokens is None else max(0, self.max_tokens - around)
        none = (0, 0)
        return Encoded(
            [*frame.prefix, *encoding.ids[:room], *frame.suffix],
            [none] * len(frame.prefix) + encoding.offsets[:room] + [none] * len(frame.suffix),
        )


def tokenizer_file(folder: Path) -> Path:
    """`tokenizer.json` of a Hugging Face folder; made from its SentencePiece or vocabulary files where it has none.

    A converted file is kept in the user's cache folder, named by the content of what it was made from.
    Raises CheckpointError when the folder has nothing that can be converted.
    """
    if (folder / FILE).is_file():
        return folder / FILE
    sources = [folder / name for name in (*spm.FILES, *_VOCABULARIES) if (folder / name).is_file()]
    if not sources:
        names = ", ".join((*spm.FILES, *_VOCABULARIES))
        raise CheckpointError(f"{folder} has no {FILE} and nothing to make one of ({names})")
    sources += [folder / name for name in _SETTINGS if (folder / name).is_file()]
    digest = hashlib.sha256(_CONVERSION.encode())
    for path in sources:
        digest.update(path.name.encode() + path.read_bytes())
    name = f"{digest.hexdigest()[:32]}.json"
    kept = writable_folder("tokenizers") or Path(tempfile.mkdtemp(prefix="mindmerger-tokenizer-"))
    target = kept / name
    if not target.is_file():
        temporary = target.with_name(f".{name}.{secrets.token_hex(4)}")
        temporary.write_text(_converted(folder).to_str(), encoding="utf-8")
        temporary.replace(target)
    return target


_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "config.json")


def _converted(folder: Path) -> Tokenizer:
    model = spm.find_model(folder)
    family = tokenizer_class(folder)
    if model is not None:
        return spm.fast_tokenizer(model, family, spm.language_tokens_of(family, folder))
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be read ({error}): give a {FILE}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder} has a {type(tokenizer).__name__}, which has no fast form: give a {FILE}")
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


# The class that a model type's folders have when they do not say so themselves.
_CLASSES = {"t5": "T5", "mt5": "T5", "umt5": "T5", "xlm-roberta": "XLMRoberta", "m2m_100": "M2M100", "mbart": "MBart"}


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def tokenizer_class(folder: Path) -> str:
    """The tokenizer's class as the folder names it, without `Tokenizer`; of the model's type where it does not."""
    named = _json(folder / "tokenizer_config.json").get("tokenizer_class") or ""
    name = str(named).removesuffix("Fast").removesuffix("Tokenizer")
    kind = str(_json(folder / "config.json").get("model_type", ""))
    # transformers 5 writes its generic class where the tokenizer.json says all.
    if name in ("", "PreTrained", "TokenizersBackend"):
        name = _CLASSES.get(kind, kind)
    # NLLB's models say m2m_100; only M2M100's own folders have a vocab.json beside the SentencePiece file.
    if name == "M2M100" and not (folder / "vocab.json").is_file():
        name = "Nllb"
    return name


def read_frames(folder: Path, default: str = "en") -> dict[str, Frame]:
    """The frames of a translation encoder's folder; empty for other encoders. Raises CheckpointError, see `frames_of`."""
    family = tokenizer_class(folder)
    if not names_languages(family):
        return {}
    tokenizer = Tokenizer.from_file(str(tokenizer_file(folder)))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    legacy = bool(_json(folder / "tokenizer_config.json").get("legacy_behaviour", False))
    return frames_of(family, vocabulary, legacy=legacy, default=default)
