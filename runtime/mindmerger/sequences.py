"""Several sequences side by side in one llama.cpp context, over an LLM that is loaded already.

What `llama.py` is for one sequence: everything is checked here before native code sees it. A step of many sequences
reads the weights once for all of them, which is where the throughput of a batch comes from. Knows nothing about
questions, and nothing about who fills a sequence with what.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.errors import InputError, ModelError
from mindmerger.i18n import _
from mindmerger.llama import ABORTED, LLM, Cancelled, backend
from mindmerger.native_batch import NativeBatch, checked_ids, checked_rows
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
        size = max(min(_BATCH, length), count)
        self._context = llm.new_context(count * length, size, count)
        self._memory: Any = self._native.llama_get_memory(self._context)
        self.count = count
        # llama.cpp rounds up; the smaller number is the one that was promised
        self.length = min(length, int(self._native.llama_n_ctx_seq(self._context)))
        self.positions = [0] * count
        self._batch = NativeBatch(self._native, size, llm.width)

    # -------------------------------------------------------------------------------------------- decoding

    def step(self, entries: Sequence[tuple[int, int, bool]]) -> None:
        """Append one token to each of several sequences: (sequence, token, whether its logits are wanted).

        The logits of entry `i` are then read by `sample(sampler, i)` or `logits(i)`, until the next call. llama.cpp computes
        together what is of sequences that follow one another, in that order; each run of them costs a reading of all weights.
        """
        self._open()
        if not entries or len({entry[0] for entry in entries}) != len(entries):
            raise InputError("a step takes one token for each of at least one sequence")
        batch = self._batch
        for i, (sequence, token, wanted) in enumerate(entries):
            self._check(sequence, 1)
            if not 0 <= token < self._llm.vocabulary:
                raise InputError(f"token id {token} is outside the vocabulary of {self._llm.vocabulary}")
            batch.ids[i] = token
            batch.places[i] = self.positions[sequence]
            batch.owners[i] = sequence
            batch.outputs[i] = wanted
        batch.tokens.n_tokens = len(entries)
        self._decode(batch.tokens)
        for sequence, _token, _wanted in entries:
            self.positions[sequence] += 1

    def append_tokens(self, sequence: int, ids: Sequence[int], logits: bool) -> int:
        """Append tokens to one sequence; returns the index by which the logits of the last one are read."""
        return self._append(sequence, checked_ids(ids, self._llm.vocabulary), logits)

    def append_rows(self, sequence: int, rows: npt.NDArray[np.float32], logits: bool) -> int:
        """Append embedding rows (n × width, float32, finite) to one sequence; as `append_tokens`."""
        return self._append(sequence, checked_rows(rows, self._llm.width), logits)

    def _append(self, sequence: int, values: npt.NDArray[Any], logits: bool) -> int:
        self._check(sequence, len(values))
        if not len(values):
            raise InputError("there is nothing to decode")
        count = 0
        for start in range(0, len(values), self._batch.size):
            chunk = values[start : start + self._batch.size]
            count = len(chunk)
            wanted = logits and start + count == len(values)
            self._decode(self._batch.fill(chunk, sequence, self.positions[sequence], wanted))
            self.positions[sequence] += count
        return count - 1

    def _decode(self, batch: Any) -> None:
        status = self._native.llama_decode(self._context, batch)
        if status:
            # What of the batch is in the cache is not known.
            for sequence in range(self.count):
                self.clear(sequence)
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

    def clear(self, sequence: int) -> None:
        """Forget a sequence: it starts at position 0 again."""
        self._open()
        self._native.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self.positions[sequence] = 0

    def move(self, source: int, target: int) -> None:
        """Let what is in `source` be in `target`, of which everything is forgotten, and `source` be empty.

        Copies the whole part of the cache, to the bit, with the next call: a few milliseconds.
        """
        self._check(source, 0)
        self._check(target, 0)
        if source == target:
            return
        self.clear(target)
        self._native.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.positions[target] = self.positions[source]
        self.clear(source)

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
