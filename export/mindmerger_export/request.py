"""What to export and how: the command line in one object. Knows nothing about how it is done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mindmerger.errors import InputError
from mindmerger_export.samples import QUESTIONS

AUTO = "auto"
# Nats per token, on average over a language's answers.
DEFAULT_MAX_KL = 0.1
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True)
class Judged:
    """A question that quantisations are judged by; `answer` is the right one as a plain number, where it is known."""

    language: str
    question: str
    answer: str | None = None


@dataclass(frozen=True)
class Request:
    """`llm_type` "auto" takes the smallest type within `max_kl`, in every language, and `max_bytes`, the whole bundle.

    `compare`: judge the LLM's type against F16. `reference`: whether torch answers the golden questions too ("torch"), or
    not ("none"), or where the machine has the memory for it ("auto"). `judged`: by default the golden questions.
    `languages` without `prune_texts` prune the encoder's vocabulary by their letters, unless `whole_vocabulary`.
    `tensor_types`, `exact_ids`: see llm.LLMOptions. `llm_adapter`: a PEFT folder or a GGUF adapter for an LLM without one.
    """

    checkpoint: str
    out: Path | None = None
    precision: str = "w8"
    languages: tuple[str, ...] = ()
    prune_texts: tuple[Path, ...] = ()
    max_pieces: int | None = None
    whole_vocabulary: bool = False
    llm: str = "embed"
    llm_type: str | None = None
    llm_gguf: Path | None = None
    context: int = 2048
    golden: tuple[tuple[str, str], ...] = QUESTIONS
    force: bool = False
    max_bytes: int | None = None
    max_kl: float | None = None
    judged: tuple[Judged, ...] = ()
    compare: bool = False
    reference: str = "auto"
    tensor_types: tuple[str, ...] = ()
    exact_ids: bool = True
    llm_adapter: Path | None = None

    def __post_init__(self) -> None:
        bounded = self.max_bytes is not None or self.max_kl is not None
        if bounded and self.llm_type != AUTO:
            raise InputError("--max-size and --max-kl are bounds for --quant auto: give that too")
        if self.llm_type == AUTO and not bounded:
            raise InputError("--quant auto needs a bound: --max-size, --max-kl, or both")
        if self.llm_type == AUTO and self.llm == "package":
            raise InputError("--quant auto chooses the type of a file of the bundle: leave out --llm package")
        if self.llm_gguf is not None and (self.llm_type is not None or self.llm == "package"):
            raise InputError("--llm-gguf takes the file as it is: leave out --quant and --llm package")
        prunes = bool(self.prune_texts or self.languages)
        if self.max_pieces is not None and not prunes:
            raise InputError("--max-pieces needs --languages or --prune-text: by these pieces are chosen")
        if self.whole_vocabulary and (self.prune_texts or self.max_pieces is not None):
            raise InputError("--whole-vocabulary keeps every piece: leave out --prune-text and --max-pieces")


def bytes_of(text: str) -> int:
    """`400MB`, `1.5 GiB`, `250000000` → bytes. Raises InputError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?|)b?\s*", text.lower())
    if match is None or not float(match[1]):
        raise InputError(f"{text!r} is no size: give it as 400MB, 1.5GB or 700MiB")
    return int(float(match[1]) * _UNITS[match[2]])
