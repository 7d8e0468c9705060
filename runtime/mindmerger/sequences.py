"""Several sequences side by side in one llama.cpp context, over an LLM that is loaded already.

What `llama.py` is for one sequence: everything is checked here before native code sees it. A step of many sequences
reads the weights once for all of them, which is where the throughput of a batch comes from. Knows nothing about
questions, and nothing about who fills a sequence with what.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.errors import InputError, ModelError
from mindmerger.i18n import _
from mindmerger.llama import ABORTED, LLM, Cancelled, backend
from mindmerger.sampling import Sampler

_BATCH = 512


def max_sequences() -> int:
    """How many sequences llama.cpp holds in one context at most."""
    return int(backend().llama_max_parallel_sequences())


class Sequences:
    """`count` empty sequences of at most `length` positions each. Not thread-safe; closed before its LLM is."""

    def __init__(self, llm: LLM, count: int, length: int) -> None:
        if not 1 <= count <= max_sequences() or length < 1:
            raise InputError(f"a batch has 1 to {max_sequences()} sequences of at least one position")
        self._context: Any = None
        self._llm = llm
        self._native: Any = backend()
        self._batch_size = size = max(min(_BATCH, length), count)
        self._context = llm.new_context(count * length, size, count)
        self._memory: Any = self._native.llama_get_memory(self._context)
        self.count = count
        # llama.cpp rounds up; the smaller number is the one that was promised
        self.length = min(length, int(self._native.llama_n_ctx_seq(self._context)))
        self.positions = [0] * count
        self._make_batches(size)

    def _make_batches(self, size: int) -> None:
        """Two batches over buffers of our own: one of token ids, one of rows. Token and row never share a batch."""
        self._ids = np.zeros(size, np.int32)
        self._rows = np.zeros((size, self._llm.width), np.float32)
        self._places = np.zeros(size, np.int32)
        self._outputs = np.zeros(size, np.int8)
        self._owners = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)
        pointer = ctypes.POINTER(ctypes.c_int32)
        first = self._owners.ctypes.data
        self._owner_pointers = (pointer * size)(
            *(ctypes.cast(first + i * self._owners.itemsize, pointer) for i in range(size))
        )
        self._token_batch = self._native.llama_batch()
        self._row_batch = self._native.llama_batch()
        for batch in (self._token_batch, self._row_batch):
            batch.pos = ctypes.cast(self._places.ctypes.data, type(batch.pos))
            batch.n_seq_id = ctypes.cast(self._counts.ctypes.data, type(batch.n_seq_id))
            batch.seq_id = ctypes.cast(self._owner_pointers, type(batch.seq_id))
            batch.logits = ctypes.cast(self._outputs.ctypes.data, type(batch.logits))
        self._token_batch.token = ctypes.cast(self._ids.ctypes.data, type(self._token_batch.token))
        self._row_batch.embd = ctypes.cast(self._rows.ctypes.data, type(self._row_batch.embd))

    # -------------------------------------------------------------------------------------------- decoding

    def step(self, entries: Sequence[tuple[int, int, bool]]) -> None:
        """Append one token to each of several sequences: (sequence, token, whether its logits are wanted).

        The logits of entry `i` are then read by `sample(sampler, i)` or `logits(i)`, until the next call.
        """
        self._open()
        if not entries or len({entry[0] for entry in entries}) != len(entries):
            raise InputError("a step takes one token for each of at least one sequence")
        for i, (sequence, token, wanted) in enumerate(entries):
            self._check(sequence, 1)
            if not 0 <= token < self._llm.vocabulary:
                raise InputError(f"token id {token} is outside the vocabulary of {self._llm.vocabulary}")
            self._ids[i] = token
            self._places[i] = self.positions[sequence]
            self._owners[i] = sequence
            self._outputs[i] = wanted
        self._decode(self._token_batch, len(entries))
        for sequence, _token, _wanted in entries:
            self.positions[sequence] += 1

    def append_tokens(self, sequence: int, ids: Sequence[int], logits: bool) -> int:
        """Append tokens to one sequence; returns the index by which the logits of the last one are read."""
        array = np.asarray(ids, dtype=np.int64)
        if array.ndim != 1 or (array.size and (array.min() < 0 or array.max() >= self._llm.vocabulary)):
            raise InputError(f"token ids must be a list of numbers from 0 to {self._llm.vocabulary - 1}")
        return self._append(sequence, array, self._ids, self._token_batch, logits)

    def append_rows(self, sequence: int, rows: npt.NDArray[np.float32], logits: bool) -> int:
        """Append embedding rows (n × width, float32, finite) to one sequence; as `append_tokens`."""
        if rows.ndim != 2 or rows.shape[1] != self._llm.width:
            raise ModelError(
                _("rows of shape {shape} do not fit an LLM of width {width}: the merger is for another LLM").format(
                    shape=rows.shape, width=self._llm.width
                )
            )
        if not np.isfinite(rows).all():
            raise ModelError(_("the rows for the LLM are not finite numbers: the merger or injection_scale is damaged"))
        return self._append(sequence, rows, self._rows, self._row_batch, logits)

    def _append(self, sequence: int, values: Any, buffer: Any, batch: Any, logits: bool) -> int:
        self._check(sequence, len(values))
        if not len(values):
            raise InputError("there is nothing to decode")
        count = 0
        for start in range(0, len(values), self._batch_size):
            chunk = values[start : start + self._batch_size]
            count = len(chunk)
            buffer[:count] = chunk
            self._places[:count] = np.arange(self.positions[sequence], self.positions[sequence] + count, dtype=np.int32)
            self._owners[:count] = sequence
            self._outputs[:count] = 0
            self._outputs[count - 1] = logits and start + count == len(values)
            self._decode(batch, count)
            self.positions[sequence] += count
        return count - 1

    def _decode(self, batch: Any, count: int) -> None:
        batch.n_tokens = count
        status = self._native.llama_decode(self._context, batch)
        if status:
            # What of the batch is in the cache is not known.
            for sequence in range(self.count):
                self.rewind(sequence, 0)
            if status == ABORTED and self._llm.cancelled:
                raise Cancelled
            raise ModelError(
                _("llama.cpp failed to decode a batch (status {status}): free memory, or use fewer slots").format(
                    status=status
                )
            )

    def _check(self, sequence: int, count: int) -> None:
        self._open()
        if not 0 <= sequence < self.count:
            raise InputError(f"there is no sequence {sequence}, only {self.count}")
        if self.positions[sequence] + count > self.length:
            raise InputError(f"{self.positions[sequence]} + {count} positions do not fit into a slot of {self.length}")

    def rewind(self, sequence: int, keep: int) -> int:
        """Forget all but the first `keep` positions. Returns how many are kept: `keep`, or 0 where a cache cannot."""
        self._open()
        native, memory = self._native, self._memory
        keep = min(keep, self.positions[sequence])
        if keep:
            kept = native.llama_memory_seq_rm(memory, sequence, keep, -1)
            # a cache with a sliding window may have lost the beginning
            if (
                not kept
                or native.llama_memory_seq_pos_min(memory, sequence) != 0
                or native.llama_memory_seq_pos_max(memory, sequence) != keep - 1
            ):
                keep = 0
        if not keep:
            native.llama_memory_seq_rm(memory, sequence, -1, -1)
        self.positions[sequence] = keep
        return keep

    # --------------------------------------------------------------------------------------------- reading

    def sample(self, sampler: Sampler, index: int) -> int:
        """Draw the next token from the logits of `index`, which the last call was told to make."""
        return sampler.sample(self._context, index)

    def logits(self, index: int) -> npt.NDArray[np.float32]:
        """A copy of the logits of `index`."""
        pointer = self._native.llama_get_logits_ith(self._open(), index)
        if not pointer:
            raise ModelError("llama.cpp has no logits there: they were not asked for")
        return np.array(np.ctypeslib.as_array(pointer, shape=(self._llm.vocabulary,)), dtype=np.float32)

    # ------------------------------------------------------------------------------------------- life time

    def _open(self) -> Any:
        if not self._context:
            raise ModelError("the batch is closed")
        return self._context

    def close(self) -> None:
        """Free the context. Harmless when called twice."""
        context, self._context = self._context, None
        if context:
            self._native.llama_free(context)

    def __enter__(self) -> Sequences:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
