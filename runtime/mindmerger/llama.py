"""llama.cpp through the low-level bindings of llama-cpp-python: one model, one context, one sequence.

Native code answers a wrong input by aborting the process, by NaN, or not at all; so everything is checked here, in
Python, before the call, once per call and not per token. Buffers are made once and used again, because at a few
milliseconds a token the interpreter must not be what is measured.

Knows nothing about bundles, questions or encoders.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.bindings import bindings
from mindmerger.embeddings import EmbeddingTable
from mindmerger.errors import InputError, ModelError
from mindmerger.i18n import _
from mindmerger.native_batch import NativeBatch, checked_ids, checked_rows
from mindmerger.native_callbacks import silence, stop_when_set
from mindmerger.sampling import Sampler, Sampling

BATCH = 512  # positions that llama.cpp is given at once
# Positions that llama.cpp computes at once on a CPU: its buffers are a fifth as large as with 512. Processor time of 512
# positions on one core: 1.00 (512), 0.84 (256), 0.86 (128); 96 take 2 % more than 128, and 3 MB less. The same for one
# sequence and several, for the same bits.
AT_ONCE = 96
_MAX_SCORES = 96 * 2**20  # bytes
ABORTED = 2  # status of llama_decode
_backend_lock = threading.Lock()
_backend: ModuleType | None = None
_log_callbacks: dict[bool, Any] = {}  # by verbosity; kept for ever, llama.cpp holds a pointer to one of them


class Cancelled(Exception):
    """A native call was stopped by `LLM.cancel()`. Not an error; never leaves the runtime."""


def default_threads() -> int:
    """Threads for one answer: the cores this process may use, halved where they are many and likely hyper-threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores <= 4 else max(4, cores // 2)


def computed_at_once(gpu_layers: int) -> int:
    """Positions of what it is given that llama.cpp computes at once: few on a CPU, its own default on a GPU."""
    return BATCH if gpu_layers else AT_ONCE


def backend(verbose: bool = False) -> ModuleType:
    """The low-level bindings, initialised once; llama.cpp's own log goes to stderr only when `verbose`."""
    global _backend
    with _backend_lock:
        if _backend is None:
            try:
                native = bindings()
            except (ImportError, OSError, RuntimeError) as error:
                raise ModelError(
                    _("llama.cpp cannot be loaded ({reason}): pip install --force-reinstall llama-cpp-python").format(
                        reason=error
                    )
                ) from None
            _log_callbacks[True] = native.llama_log_callback(_show)
            _log_callbacks[False] = silence(native)
            native.llama_log_set(_log_callbacks[verbose], None)
            native.llama_backend_init()
            _backend = native
        _backend.llama_log_set(_log_callbacks[verbose], None)
        return _backend


def supports_gpu() -> bool:
    """Whether the installed llama.cpp was built with a backend for some GPU."""
    return bool(backend().llama_supports_gpu_offload())


def _show(_level: int, text: bytes, _data: object) -> None:
    sys.stderr.write(text.decode("utf-8", "replace"))


class LLM:
    """A GGUF and one context. Not thread-safe, except `cancel`, `tokenise` and `piece`.

    `gpu_layers` (-1: all) go to the GPU that llama.cpp was built for; it ignores them where it was built for none. On a GPU
    a native call that has begun is not cancelled, the one after it is.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        threads: int | None = None,
        batch: int = BATCH,
        gpu_layers: int = 0,
        verbose: bool = False,
    ) -> None:
        self._model: Any = None
        self._context: Any = None
        self._native = native = backend(verbose)
        threads = default_threads() if threads is None else threads
        for name, value, limit in (("threads", threads, 512), ("context", context, 2**24), ("batch", batch, 2**16)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
                raise InputError(_("{name} must be a whole number from 1 to {limit}").format(name=name, limit=limit))
        batch = min(batch, context)
        if not path.is_file():
            raise ModelError(_("the LLM {path} is missing: export or install it again").format(path=path))
        parameters = native.llama_model_default_params()
        parameters.load_mode = native.LLAMA_LOAD_MODE_MMAP
        parameters.n_gpu_layers = self.gpu_layers = gpu_layers
        # Weights stay mapped as they are in the file. Repacked copies load fifteen times slower, and the AMX ones of
        # llama-cpp-python 0.3.36 end the process with a general protection fault (Q8_0 and Q4_1, any prompt).
        parameters.use_extra_bufts = False
        self._model = native.llama_model_load_from_file(str(path).encode("utf-8", "surrogateescape"), parameters)
        if not self._model:
            raise ModelError(
                _("llama.cpp cannot load {path}: too little memory, or an architecture that it does not know").format(
                    path=path
                )
            )
        try:
            self._open_context(context, threads, batch)
        except BaseException:
            self.close()
            raise
        self.path = path
        self._vocab: Any = native.llama_model_get_vocab(self._model)
        self.width = int(native.llama_model_n_embd_inp(self._model))
        self.vocabulary = int(native.llama_vocab_n_tokens(self._vocab))
        self.position = 0
        self._pieces: dict[int, bytes] = {}
        self._batch = NativeBatch(native, batch, self.width)

    def _open_context(self, context: int, threads: int, batch: int) -> None:
        self._flag = ctypes.create_string_buffer(2)
        self.threads = threads
        self._context = self.new_context(context, batch)
        self._memory: Any = self._native.llama_get_memory(self._context)
        # llama.cpp rounds the context up; the smaller number is the one that was promised
        self.context = min(context, int(self._native.llama_n_ctx(self._context)))

    def new_context(self, positions: int, batch: int, sequences: int = 1) -> Any:
        """A native context over this model, which `cancel` stops too; the caller frees it before the model.

        `positions` is the sum over all sequences, each of which gets an equal part: with parts of their own, a sequence
        attends to its own positions only, and not to everybody's with a mask over most of it.
        """
        native = self._native
        if not self._model:
            raise ModelError(_("the model is closed: load it again"))
        parameters = native.llama_context_default_params()
        parameters.n_ctx = positions
        parameters.n_batch = batch
        parameters.n_ubatch = rows = min(batch, max(computed_at_once(self.gpu_layers), sequences))
        parameters.n_seq_max = sequences
        parameters.kv_unified = False
        if self.wants_plain_attention(positions // sequences, rows):
            parameters.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        # Logits are wanted at one position of a sequence, never more: without this, room for a whole batch is set aside.
        parameters.n_outputs_max = sequences
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.no_perf = True
        callback = stop_when_set(native)
        if callback is not None:
            parameters.abort_callback = callback
            parameters.abort_callback_data = ctypes.addressof(self._flag)
        context = native.llama_init_from_model(self._model, parameters)
        if not context:
            raise ModelError(
                _("llama.cpp cannot open a context of {positions} tokens: ask for less or free memory").format(
                    positions=positions
                )
            )
        return context

    @property
    def plain_attention(self) -> bool:
        """Whether this LLM's own context computes attention by two matrix products."""
        return self.wants_plain_attention(self.context, min(self._batch.size, computed_at_once(self.gpu_layers)))

    def wants_plain_attention(self, positions: int, batch: int) -> bool:
        """Whether attention by two matrix products is better here than llama.cpp's own choice.

        Its flash attention goes through a batch row by row on a CPU: prefill of 40 positions took 1.6 times as long
        after 100 positions and 2.6 times after 300, a single token 1.02 and 1.15 times. But the products need room for
        all scores of a batch at once, which flash attention does not.
        """
        if self.gpu_layers:
            return False
        heads = int(self._native.llama_model_n_head(self._model))
        return heads * positions * batch * 4 <= _MAX_SCORES

    # -------------------------------------------------------------------------------------------- decoding

    def clear(self) -> None:
        """Forget the sequence: the next call starts at position 0."""
        self._open()
        self._native.llama_memory_clear(self._memory, False)
        self.position = 0

    def decode_tokens(self, ids: Sequence[int], logits: bool = True) -> None:
        """Append tokens; with `logits`, those of the last position can be read afterwards."""
        self._append(checked_ids(ids, self.vocabulary), logits)

    def decode_rows(self, rows: npt.NDArray[np.float32], logits: bool = False) -> None:
        """Append embedding rows (n × width, float32, finite), as if each were a token with that embedding."""
        self._append(checked_rows(rows, self.width), logits)

    def _append(self, values: npt.NDArray[Any], logits: bool) -> None:
        self._check_room(len(values))
        for start in range(0, len(values), self._batch.size):
            chunk = values[start : start + self._batch.size]
            wanted = logits and start + len(chunk) == len(values)
            self._decode(self._batch.fill(chunk, 0, self.position, wanted), len(chunk))

    def step(self, token: int) -> None:
        """Append one token and compute the logits after it: `decode_tokens([token])` without its overhead."""
        position = self.position
        if not 0 <= token < self.vocabulary:
            raise InputError(f"token id {token} is outside the vocabulary of {self.vocabulary}")
        if position >= self.context:
            self._check_room(1)
        batch = self._batch
        batch.ids[0] = token
        batch.places[0] = position
        batch.outputs[0] = 1
        tokens = batch.tokens
        tokens.n_tokens = 1
        self._open()
        self._decode(tokens, 1)

    def _check_room(self, count: int) -> None:
        self._open()
        if count == 0:
            raise InputError("there is nothing to decode")
        if self.position + count > self.context:
            raise InputError(
                _("{used} + {count} positions do not fit into the context of {context}: load with more").format(
                    used=self.position, count=count, context=self.context
                )
            )

    def _decode(self, batch: Any, count: int) -> None:
        status = self._native.llama_decode(self._context, batch)
        if status:
            self._failed(status)
        self.position += count

    def _failed(self, status: int) -> None:
        # Some of the batch may be in the cache: whatever happens next starts from an empty one.
        self._native.llama_memory_clear(self._memory, False)
        self.position = 0
        if status == ABORTED and self.cancelled:
            raise Cancelled
        raise ModelError(
            _("llama.cpp failed to decode (status {status}): free memory, or report this with the bundle").format(
                status=status
            )
        )

    def sampler(self, sampling: Sampling) -> Sampler:
        """A native sampler chain; the caller closes it. InputError where its grammar does not parse."""
        self._open()
        return Sampler(self._native, self._vocab, self.vocabulary, sampling)

    def sample(self, sampler: Sampler) -> int:
        """Draw the next token from the logits of the last position."""
        return sampler.sample(self._context, -1)

    @cached_property
    def embeddings(self) -> EmbeddingTable:
        """The embeddings of the tokens, as they are in the file. BundleError where they cannot be found."""
        return EmbeddingTable(self.path)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text by the GGUF's own word, whatever a bundle stops at."""
        self._open()
        return frozenset(
            token for token in range(self.vocabulary) if self._native.llama_vocab_is_eog(self._vocab, token)
        )

    def logits(self) -> npt.NDArray[np.float32]:
        """A copy of the logits of the last position."""
        pointer = self._native.llama_get_logits_ith(self._open(), -1)
        if not pointer:
            raise ModelError("llama.cpp has no logits: decode with logits=True first")
        return np.array(np.ctypeslib.as_array(pointer, shape=(self.vocabulary,)), dtype=np.float32)

    # ------------------------------------------------------------------------------------------------ text

    def tokenise(self, text: str) -> list[int]:
        """Token ids of plain text: no BOS, no EOS, and special tokens spelled in the text are text."""
        self._open()
        data = text.encode("utf-8")
        if b"\0" in data:
            raise InputError(_("the text contains a NUL character: give plain text"))
        room = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = self._native.llama_tokenize(self._vocab, data, len(data), buffer, room, False, False)
            if count >= 0:
                return list(buffer[:count])
            if count == -(2**31) or -count <= room:
                raise ModelError(_("llama.cpp cannot tokenise this text"))
            room = -count

    def piece(self, token: int) -> bytes:
        """The bytes of one token, which may be part of a character; none for a control token."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token)
        return piece

    def _piece(self, token: int) -> bytes:
        self._open()
        if not 0 <= token < self.vocabulary:
            raise InputError(f"token id {token} is outside the vocabulary of {self.vocabulary}")
        buffer = ctypes.create_string_buffer(64)
        count = self._native.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = self._native.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(count, 0)]

    def detokenise(self, ids: Sequence[int]) -> bytes:
        """The bytes of a sequence of tokens."""
        return b"".join(self.piece(token) for token in ids)

    # ------------------------------------------------------------------------------------------- life time

    def cancel(self) -> None:
        """Stop the native call that is running in another thread, and the ones after it, until `resume`."""
        self._flag[0] = b"\1"

    def resume(self) -> None:
        """Allow native calls again after `cancel`."""
        self._flag[0] = b"\0"

    @property
    def cancelled(self) -> bool:
        return self._flag[0] != b"\0"

    def _open(self) -> Any:
        if not self._context:
            raise ModelError(_("the model is closed: load it again"))
        return self._context

    def close(self) -> None:
        """Free the context, then the model. Harmless when called twice."""
        context, self._context = self._context, None
        if context:
            self._native.llama_free(context)
        model, self._model = self._model, None
        if model:
            self._native.llama_model_free(model)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # an LLM that failed in __init__ may lack everything
        if getattr(self, "_native", None) is not None and not sys.is_finalizing():
            self.close()
