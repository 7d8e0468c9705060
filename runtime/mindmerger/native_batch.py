"""What llama_decode is given: buffers that are made once, and two llama_batches over them, of tokens and of rows.

llama.cpp takes token ids or embedding rows in a call, never both. Everything is checked here, because native code answers
a wrong id by reading beyond a table, and a NaN by NaN everywhere. Knows nothing about contexts or positions that are free.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.errors import InputError, ModelError
from mindmerger.i18n import _

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def checked_ids(ids: Sequence[int], vocabulary: int) -> Ids:
    """Token ids as an array; InputError where one is outside the vocabulary."""
    array = np.asarray(ids, dtype=np.int64)
    if array.ndim != 1 or (array.size and (array.min() < 0 or array.max() >= vocabulary)):
        raise InputError(f"token ids must be a list of numbers from 0 to {vocabulary - 1}")
    return array


def checked_rows(rows: Floats, width: int) -> Floats:
    """Rows (n, width) as contiguous float32; ModelError where they have another width or are not finite."""
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ModelError(
            _("rows of shape {shape} do not fit an LLM of width {width}: the merger is for another LLM").format(
                shape=rows.shape, width=width
            )
        )
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise ModelError(_("the rows for the LLM are not finite numbers: the merger or injection_scale is damaged"))
    return rows


class NativeBatch:
    """Room for `size` positions of a call: `ids` or `rows`, and for each its place, sequence, and whether logits are wanted.

    Filled through numpy views on the native memory: a chunk is one copy, not a loop.
    """

    def __init__(self, native: ModuleType, size: int, width: int) -> None:
        self.size = size
        self.ids = np.zeros(size, np.int32)
        self.rows = np.zeros((size, width), np.float32)
        self.places = np.zeros(size, np.int32)
        self.owners = np.zeros(size, np.int32)
        self.outputs = np.zeros(size, np.int8)
        self._counts = np.ones(size, np.int32)  # each position belongs to one sequence
        pointer = ctypes.POINTER(ctypes.c_int32)
        first = self.owners.ctypes.data
        self._owner_pointers = (pointer * size)(
            *(ctypes.cast(first + i * self.owners.itemsize, pointer) for i in range(size))
        )
        self.tokens: Any = native.llama_batch()
        self.embedded: Any = native.llama_batch()
        for batch in (self.tokens, self.embedded):
            batch.pos = ctypes.cast(self.places.ctypes.data, type(batch.pos))
            batch.n_seq_id = ctypes.cast(self._counts.ctypes.data, type(batch.n_seq_id))
            batch.seq_id = ctypes.cast(self._owner_pointers, type(batch.seq_id))
            batch.logits = ctypes.cast(self.outputs.ctypes.data, type(batch.logits))
        self.tokens.token = ctypes.cast(self.ids.ctypes.data, type(self.tokens.token))
        self.embedded.embd = ctypes.cast(self.rows.ctypes.data, type(self.embedded.embd))

    def fill(self, values: Ids | Floats, sequence: int, position: int, logits: bool) -> Any:
        """Put tokens (1-dimensional) or rows (2-dimensional) of one sequence here, at most `size`; with `logits` of the last.

        Returns the batch for llama_decode.
        """
        count = len(values)
        batch = self.tokens if values.ndim == 1 else self.embedded
        (self.ids if values.ndim == 1 else self.rows)[:count] = values
        self.places[:count] = np.arange(position, position + count, dtype=np.int32)
        self.owners[:count] = sequence
        self.outputs[:count] = 0
        self.outputs[count - 1] = logits
        batch.n_tokens = count
        return batch
