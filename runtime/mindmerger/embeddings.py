"""The LLM's embedding table, read row by row from its GGUF: what the gate asks with, and what prompts beside rows are made of.

The file is mapped and only the rows asked for are dequantised: the whole table of a large LLM in float32 would be gigabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mindmerger.blocks import dequantise, is_exact
from mindmerger.errors import BundleError, InputError
from mindmerger.gguf_file import read_gguf
from mindmerger.i18n import _

_NAME = "token_embd.weight"


class EmbeddingTable:
    """The table of the GGUF at `path`. Safe to share between threads.

    `exact`: whether its rows have the bits that llama.cpp looks up, so that they can stand for the tokens themselves.
    Raises BundleError when the file is no whole GGUF or has no table.
    """

    def __init__(self, path: Path) -> None:
        table = next((tensor for tensor in read_gguf(path).tensors if tensor.name == _NAME), None)
        if table is None or len(table.shape) != 2:
            raise BundleError(_("{path} has no table of embeddings: it is not a GGUF of an LLM").format(path=path))
        self.vocabulary, self.width = table.shape
        self._type = table.type
        self.exact = is_exact(table.type)
        self._rows = table.data.reshape(self.vocabulary, -1)

    def rows(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The embeddings of `ids`, float32 (n, width), as they are in the file. Raises InputError for an unknown id."""
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
        if array.size and (array.min() < 0 or array.max() >= self.vocabulary):
            raise InputError(f"token ids must be numbers from 0 to {self.vocabulary - 1}")
        if not array.size:
            return np.zeros((0, self.width), dtype=np.float32)
        return dequantise(np.ascontiguousarray(self._rows[array]), self._type).reshape(len(array), self.width)
