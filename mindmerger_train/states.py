"""The frozen encoder's states, computed once and kept on disk.

`KeptEncoder` stands in for an `Encoder`: same call, same answer, but a text that was seen before is read instead of computed.
What it does not know: LLMs, mergers, data, stages.

The store is a folder per encoder (weights, layers, precision, type on disk). Each process appends to a file of its own: first
a text's states, then a record in the index beside it. So there is nothing to lock, and a process that is killed leaves at
most bytes that no record names; every record carries a checksum, and what does not match is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import secrets
import struct
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mindmerger.cache import writable_folder
from mindmerger.errors import InputError
from mindmerger_train.encoders import Encoder
from mindmerger_train.transfer import device_of, lengths_mask, pad_right, send

FORMAT = 1
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# key, offset in the data file, rows, checksum of the bytes
_RECORD = struct.Struct("<16sQII")
# How often a store looks for what other processes have added, in seconds.
_REFRESH = 2.0
# A text must be met at least so often for keeping its states to pay for writing and reading them.
WORTH_VISITS = 1.5


@dataclass(frozen=True)
class Keeping:
    """`[states]` of a recipe.

    * `keep`: `on`, `off`, or `auto`: on when a run meets each text several times.
    * `dtype`: type on disk, `float16`, `bfloat16` or `float32` (the same numbers as without the store, to the last bit).
    * `gigabytes`: size at which the store takes no more texts.
    * `folder`: where; by default `states` in the user's cache folder.
    """

    keep: str = "auto"
    dtype: str = "float16"
    gigabytes: float = 8.0
    folder: str = ""

    def __post_init__(self) -> None:
        if self.keep not in ("auto", "on", "off"):
            raise InputError(f"states.keep must be auto, on or off, not {self.keep!r}")
        if self.dtype not in DTYPES:
            raise InputError(f"states.dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.gigabytes < 0:
            raise InputError("states.gigabytes must not be negative")

    def wanted(self, visits: float) -> bool:
        """Whether to keep states that a run will ask for `visits` times on average."""
        return self.keep == "on" or (self.keep == "auto" and visits >= WORTH_VISITS)

    def root(self) -> Path | None:
        """The folder of all stores; None when there is no place to write to."""
        return Path(self.folder) if self.folder else writable_folder("states")


def expected_visits(rows: float, sources: Sequence[tuple[float, int]]) -> float:
    """How often a run of `rows` examples meets each text that it meets at all; `sources`: weight and number of examples."""
    total = sum(weight for weight, _ in sources)
    if rows <= 0 or total <= 0:
        return 0.0
    return rows / sum(min(rows * weight / total, size) for weight, size in sources)


def encoder_identity(encoder: Encoder, precision: str) -> str:
    """32 hex digits for what the encoder computes, of its configuration, layers, precision and a sample of each tensor."""
    config = cast(Any, encoder.model).config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"):
        config.pop(volatile, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(f"{FORMAT} {type(encoder.model).__name__} {encoder.layers} {precision}".encode())
    for name, tensor in sorted(encoder.model.state_dict().items()):
        sample = tensor.flatten()[:: max(1, tensor.numel() // 4096)].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:32]


def text_key(ids: Sequence[int]) -> bytes:
    """16 bytes that name a text by its token ids (and so by its tokenizer, special tokens and language code)."""
    return hashlib.blake2b(b"".join(struct.pack("<I", token) for token in ids), digest_size=16).digest()


class StateStore:
    """States on disk, float matrices of `width` columns; many processes may read and add at once."""

    def __init__(self, folder: Path, width: int, dtype: torch.dtype, limit: int) -> None:
        """`limit` in bytes, counted over all stores beside `folder`. Raises OSError when the folder cannot be made."""
        self.folder, self.width, self.dtype, self.limit = folder, width, dtype, limit
        folder.mkdir(parents=True, exist_ok=True)
        self._entries: dict[bytes, tuple[Path, int, int, int]] = {}
        self._read_up_to: dict[Path, int] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        self._own: tuple[Path, RawIOBase, RawIOBase] | None = None
        self._closed_to_new = False
        self._refreshed = -_REFRESH
        self._size = sum(path.stat().st_size for path in folder.parent.glob("*/*.states"))
        self._refresh()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> torch.Tensor | None:
        """The states of a text (rows, width) in the store's type, or None."""
        if key not in self._entries and time.monotonic() - self._refreshed > _REFRESH:
            self._refresh()
        entry = self._entries.get(key)
        if entry is None:
            return None
        path, offset, rows, checksum = entry
        size = rows * self.width * self.dtype.itemsize
        data = self._bytes(path, offset, size)
        if data is None or zlib.crc32(data) != checksum:
            del self._entries[key]  # damaged: computed and added again
            return None
        return torch.frombuffer(data, dtype=self.dtype).reshape(rows, self.width)

    def put(self, key: bytes, states: torch.Tensor) -> None:
        """Add the states of a text. Never fails: when the store is full or the disk is, it says so once and takes no more."""
        if key in self._entries or self._closed_to_new:
            return
        data = states.to(self.dtype).contiguous().view(torch.uint8).numpy().tobytes()
        if self._size + len(data) > self.limit:
            self._close(f"have reached {self.limit / 1e9:g} GB: raise states.gigabytes, or delete the folder")
            return
        try:
            path, values, index = self._own or self._open()
            offset = values.seek(0, os.SEEK_END)
            try:
                _write_all(values, data)
                _write_all(index, _RECORD.pack(key, offset, len(states), zlib.crc32(data)))
            except OSError:
                # Cut what was half written, so that a later record starts on a record's boundary.
                values.truncate(offset)
                index.truncate(index.seek(0, os.SEEK_END) // _RECORD.size * _RECORD.size)
                raise
        except OSError as error:
            self._close(f"cannot be written to ({error.strerror})")
            return
        self._entries[key] = (path, offset, len(states), zlib.crc32(data))
        self._size += len(data)

    def close(self) -> None:
        """Let go of all files."""
        for mapped in self._maps.values():
            mapped.close()
        self._maps.clear()
        if self._own is not None:
            self._own[1].close()
            self._own[2].close()
            self._own = None

    def _open(self) -> tuple[Path, RawIOBase, RawIOBase]:
        path = self.folder / f"{os.getpid()}-{secrets.token_hex(4)}.states"
        # Unbuffered: a write is either with the system, and survives the process, or it is not.
        own = (path, path.open("xb", buffering=0), path.with_suffix(".index").open("xb", buffering=0))
        self._own = own
        self._read_up_to[path.with_suffix(".index")] = sys.maxsize
        return own

    def _close(self, why: str) -> None:
        self._closed_to_new = True
        print(
            f"the kept encoder states in {self.folder.parent} {why}; new texts are encoded each time", file=sys.stderr
        )

    def _refresh(self) -> None:
        """Read the records that were added to the indexes since the last time."""
        self._refreshed = time.monotonic()
        for path in self.folder.glob("*.index"):
            done = self._read_up_to.get(path, 0)
            with contextlib.suppress(OSError), path.open("rb") as stream:
                if path.stat().st_size <= done:
                    continue
                stream.seek(done)
                data = stream.read()
                whole = len(data) // _RECORD.size * _RECORD.size
                for key, offset, rows, checksum in _RECORD.iter_unpack(data[:whole]):
                    self._entries.setdefault(key, (path.with_suffix(".states"), offset, rows, checksum))
                self._read_up_to[path] = done + whole

    def _bytes(self, path: Path, offset: int, size: int) -> bytearray | None:
        mapped = self._maps.get(path)
        if mapped is None or len(mapped) < offset + size:
            try:
                with path.open("rb") as stream:
                    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):
                return None
            self._maps[path] = mapped
        return bytearray(mapped[offset : offset + size]) if len(mapped) >= offset + size else None


def _write_all(stream: RawIOBase, data: bytes) -> None:
    """Write all of `data`: near a full disk a single write may take only a part of it and call that a success."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) or 0 :]


class KeptEncoder(Encoder):
    """An encoder whose answer for a text depends on nothing but the text, and which may keep its answers.

    On a CPU every text is computed by itself, without padding: what else is in the batch would change the last bits (in
    bfloat16 the third digit), and a run with kept states must give the numbers of one without. Elsewhere the texts that are
    not kept are computed together.
    """

    def __init__(self, encoder: Encoder, precision: str, store: StateStore | None = None) -> None:
        """`precision` is the run's: `bf16` (autocast) or `no`. With `bf16` the encoder's linear layers are cast in place."""
        super().__init__(encoder.model, encoder.layers)
        self.store = store
        self.precision = precision
        self.computed, self.read = 0, 0
        if precision == "bf16":
            # What autocast does at each call, done once: the same numbers, without casting 20 million weights a text.
            for module in self.model.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)

    def states(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts in ids → float32 states (batch, longest, output width) and mask, padded on the right with zeros."""
        device = device_of(self.model)
        keys = [text_key(row) for row in rows]
        found: dict[bytes, torch.Tensor] = {}
        missing: dict[bytes, Sequence[int]] = {}
        for key, row in zip(keys, rows, strict=True):
            if key in found or key in missing:
                continue
            kept = self.store.get(key) if self.store is not None else None
            if kept is None:
                missing[key] = row
            else:
                found[key] = kept
        self.read += len(found)
        self.computed += len(missing)
        for key, states in zip(missing, self._compute(list(missing.values())), strict=True):
            found[key] = states if self.store is None else self._keep(self.store, key, states)
        padded = nn.utils.rnn.pad_sequence([found[key].float() for key in keys], batch_first=True)
        return send(padded, device), lengths_mask([len(row) for row in rows], device)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """As `Encoder`: int64 (batch, n) and the mask of it, padded on the right → float32 states, zeros where it is padded."""
        lengths = attention_mask.sum(dim=1).cpu().tolist()
        rows = [ids[:length] for ids, length in zip(input_ids.cpu().tolist(), lengths, strict=True)]
        return self.states(rows)[0]

    def _keep(self, store: StateStore, key: bytes, states: torch.Tensor) -> torch.Tensor:
        # Rounded also when it is new: a text has the same states whether it was met before or not.
        rounded = states.to(store.dtype)
        if not bool(torch.isfinite(rounded).all()):
            return states
        store.put(key, rounded)
        return rounded

    @torch.no_grad()
    def _compute(self, rows: list[Sequence[int]]) -> list[torch.Tensor]:
        """float32 states of each text; with a store on the CPU, where they are kept, else on the encoder's device."""
        device = device_of(self.model)
        batches = [[row] for row in rows] if device.type == "cpu" else [rows] if rows else []
        states: list[torch.Tensor] = []
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            for batch in batches:
                output = super().forward(*pad_right(batch, device)).float()
                if self.store is not None:
                    output = output.cpu()
                states += [part[: len(row)] for part, row in zip(output, batch, strict=True)]
        return states


def keep_states(encoder: Encoder, keeping: Keeping, precision: str, *, visits: float) -> KeptEncoder:
    """The encoder with its store, where the recipe and `visits` (expected visits a text) say that it pays."""
    if not keeping.wanted(visits):
        return KeptEncoder(encoder, precision)
    name = f"{encoder_identity(encoder, precision)}-{keeping.dtype}"
    kept = KeptEncoder(encoder, precision)
    root = keeping.root()
    if root is None:
        print("there is no folder to keep encoder states in: they are computed each time", file=sys.stderr)
        return kept
    config = cast(Any, encoder.model).config
    width = int(getattr(config, "hidden_size", None) or config.d_model) * max(1, len(encoder.layers))
    try:
        kept.store = StateStore(root / name, width, DTYPES[keeping.dtype], int(keeping.gigabytes * 1e9))
    except OSError as error:
        raise InputError(f"states.folder {root} cannot be used ({error.strerror})") from error
    return kept
