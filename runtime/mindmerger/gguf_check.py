"""Whether llama.cpp can be given a GGUF: what in a damaged file makes it end the process instead of refusing the file.

llama.cpp checks most of a file and says no. Found by damaging the header of a small LLM some ten thousand times: it aborts
at a vocabulary in which a token is twice, at a number of blocks that is 0 or beyond its limit, and at a normalisation with a
negative epsilon; what the layout of the file gets wrong is found by gguf_file.py. Weights are numbers: whatever they are,
they do not end the process.

Knows nothing about hashes: a file that has the hash it should have is looked at here once, the first time.
"""

from __future__ import annotations

import math
from pathlib import Path

from mindmerger.errors import BundleError
from mindmerger.gguf_file import GGUFFile, read_gguf
from mindmerger.i18n import _

_MOST_BLOCKS = 512  # LLAMA_MAX_LAYERS
_TOKENS = "tokenizer.ggml.tokens"


def check_llm(path: Path) -> None:
    """Raise BundleError for a GGUF that would end the process, or that is no LLM."""
    try:
        _check(read_gguf(path))
    except (ValueError, OverflowError, TypeError) as error:  # also a number where a text should be, or the reverse
        raise BundleError(
            _("{path} is not the GGUF of an LLM ({reason}): install or export it again").format(path=path, reason=error)
        ) from None


def _check(file: GGUFFile) -> None:
    name = file.text("general.architecture")
    if not name:
        raise ValueError("it names no architecture")
    blocks = file.number(f"{name}.block_count")
    if not 1 <= blocks <= _MOST_BLOCKS:
        raise ValueError(f"{blocks:.0f} blocks")
    for key, value in file.values.items():
        if key.endswith("_epsilon") and not (math.isfinite(value.value) and value.value >= 0):
            raise ValueError(f"{key} is {value.value}")
    # to llama.cpp a token ends at a NUL, and those that are empty then have a name of their own
    tokens = [token for text in file.texts(_TOKENS) if (token := text.partition(b"\0")[0])]
    if len(set(tokens)) != len(tokens):
        raise ValueError("a token is twice in its vocabulary")
