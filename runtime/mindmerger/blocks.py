"""The blocks that ggml packs numbers in: their sizes, and their values, bit for bit those that llama.cpp computes.

The types that an LLM's embedding table and our own files have are read here, by numpy alone: importing the `gguf` package
takes longer than a short question's prefill. It is asked for the rest. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16 = 0, 1, 2, 3, 6, 7, 8, 30
# type: (values, bytes) of a block
_SIZES = {
    F32: (1, 4), F16: (1, 2), BF16: (1, 2), Q4_0: (32, 18), Q4_1: (32, 20), Q5_0: (32, 22), Q5_1: (32, 24), Q8_0: (32, 34)
}  # fmt: skip


def block_size(type: int) -> tuple[int, int]:
    """Values and bytes of one block of `type`, as ggml numbers it. ValueError for a type that nobody knows."""
    known = _SIZES.get(type)
    if known is not None:
        return known
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    count, size = GGML_QUANT_SIZES[GGMLQuantizationType(type)]
    return int(count), int(size)


def is_exact(type: int) -> bool:
    """Whether `dequantise` gives llama.cpp's own bits for this type, and without the `gguf` package."""
    return type in _READERS


def dequantise(data: Bytes, type: int) -> Floats:
    """Flat float32 values of whole blocks, contiguous in `data`. NotImplementedError for a type that cannot be read."""
    reader = _READERS.get(type)
    if reader is not None:
        return reader(data.reshape(-1, _SIZES[type][1])).reshape(-1)
    from gguf import GGMLQuantizationType, quants

    # as one long row: gguf works through 16 rows at a time, and blocks do not care where a row ends
    values: Floats = quants.dequantize(data.reshape(1, -1), GGMLQuantizationType(type))
    return values.reshape(-1)


def _half(blocks: Bytes, place: int) -> Floats:
    """The 16-bit number at `place` of each block, (blocks, 1)."""
    return np.ascontiguousarray(blocks[:, place : place + 2]).view(np.float16).astype(np.float32)


def _nibbles(blocks: Bytes) -> Bytes:
    """The 4-bit numbers in the last 16 bytes of each block: all low halves, then all high ones."""
    packed = blocks[:, -16:]
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifths(blocks: Bytes, place: int) -> Bytes:
    """5-bit numbers: the fifth bits are 32 bits at `place`, the rest as `_nibbles`."""
    fifth = np.unpackbits(np.ascontiguousarray(blocks[:, place : place + 4]), axis=1, bitorder="little")
    return _nibbles(blocks) + fifth * np.uint8(16)


def _f32(blocks: Bytes) -> Floats:
    return np.array(np.ascontiguousarray(blocks).view(np.float32))


def _f16(blocks: Bytes) -> Floats:
    return _half(blocks, 0)


def _bf16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q4_0(blocks: Bytes) -> Floats:
    return (_nibbles(blocks).astype(np.float32) - np.float32(8)) * _half(blocks, 0)


def _q4_1(blocks: Bytes) -> Floats:
    return _nibbles(blocks).astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    return (_fifths(blocks, 2).astype(np.float32) - np.float32(16)) * _half(blocks, 0)


def _q5_1(blocks: Bytes) -> Floats:
    return _fifths(blocks, 4).astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


_READERS: dict[int, Callable[[Bytes], Floats]] = {
    F32: _f32, F16: _f16, BF16: _bf16, Q4_0: _q4_0, Q4_1: _q4_1, Q5_0: _q5_0, Q5_1: _q5_1, Q8_0: _q8_0
}  # fmt: skip
