"""The layout of a GGUF file: its metadata as bytes, and where each tensor lies.

The reader in the `gguf` package makes an object for each of the hundred thousand strings of a vocabulary, which is most
of the time that a bake takes. Here arrays are stepped over. Every number in a file that lies about its size ends in a
BundleError, not in a wrong read.
"""

from __future__ import annotations

import errno
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.blocks import block_size, dequantise
from mindmerger.errors import BundleError, ModelError
from mindmerger.i18n import _

MAGIC = b"GGUF"
VERSION = 3
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 4
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Tensor:
    """One tensor: `shape` in numpy's order (rows first), `type` as ggml numbers it, `data` its bytes, mapped."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: npt.NDArray[np.uint8]

    def values(self) -> npt.NDArray[np.float32]:
        """The dequantised tensor."""
        return dequantise(self.data, self.type).reshape(self.shape)


@dataclass(frozen=True)
class Value:
    """A scalar or string of the metadata, and where it stands relative to the start of the metadata."""

    type: int
    value: Any
    offset: int


@dataclass(frozen=True)
class Array:
    """An array of the metadata: the type and number of its entries, and where they begin."""

    type: int
    count: int
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    """A mapped GGUF file."""

    path: Path
    metadata: bytes
    metadata_count: int
    values: dict[str, Value]
    arrays: dict[str, Array]
    tensors: tuple[Tensor, ...]
    alignment: int

    def text(self, key: str) -> str:
        """A string of the metadata; empty where there is none."""
        value = self.values.get(key)
        return value.value if value is not None and value.type == _STRING else ""

    def number(self, key: str, default: float = 0.0) -> float:
        """A number of the metadata."""
        value = self.values.get(key)
        return float(value.value) if value is not None and value.type != _STRING else default

    def texts(self, key: str) -> list[bytes]:
        """An array of strings, each as its bytes; empty where there is none."""
        array = self.arrays.get(key)
        if array is None or array.type != _STRING:
            return []
        place, found = array.offset, []
        for _entry in range(array.count):
            (length,) = struct.unpack_from("<Q", self.metadata, place)
            found.append(self.metadata[place + 8 : place + 8 + length])
            place += 8 + length
        return found


def read_gguf(path: Path) -> GGUFFile:
    """Map `path` and read its layout; BundleError when it is no whole GGUF file."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise BundleError(_("{path} is missing: install or export it again").format(path=path)) from None
    except (OSError, ValueError) as error:  # ValueError: an empty file
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise ModelError(_("there is not enough memory: close other programs or use a smaller bundle")) from None
        raise BundleError(
            _("{path} cannot be read ({reason}): install or export it again").format(path=path, reason=error)
        ) from None
    try:
        return _Cursor(mapped).file(path)
    except (struct.error, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise BundleError(
            _("{path} is not a whole GGUF file ({reason}): install or export it again").format(path=path, reason=error)
        ) from None


def quantise(values: npt.NDArray[np.float32], type: int) -> npt.NDArray[np.uint8]:
    """The bytes of float32 values whose number is a multiple of the type's block."""
    from gguf import GGMLQuantizationType, quants

    data: npt.NDArray[Any] = quants.quantize(values.reshape(1, -1), GGMLQuantizationType(type))
    return np.ascontiguousarray(data).view(np.uint8).reshape(-1)


def tensor_bytes(count: int, type: int) -> int:
    """How many bytes `count` values take in `type`."""
    block, size = block_size(type)
    if count % block:
        raise ValueError(f"{count} values are no whole blocks of {block}")
    return count // block * size


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // alignment) * alignment


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.place)
        self.place += struct.calcsize("<" + layout)
        return values

    def step(self, size: int) -> None:
        if size > len(self.data) - self.place:
            raise ValueError("it ends too early")
        self.place += size

    def string(self) -> str:
        (length,) = self.take("Q")
        start = self.place
        self.step(length)
        return self.data[start : self.place].decode("utf-8")

    def strings(self, count: int) -> None:
        """Step over so many strings: a vocabulary and its merges are a hundred thousand, and most of a file's reading."""
        data, place, end, length_at = self.data, self.place, len(self.data), _LENGTH.unpack_from
        for _string in range(count):
            place += 8 + length_at(data, place)[0]
            if place > end:
                raise ValueError("it ends too early")
        self.place = place

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.take(_SCALARS[kind])[0]
        inner, count = self.take("IQ")
        if count > len(self.data) or depth > 3:
            raise ValueError("an array is longer than the file")
        if inner == _STRING:
            self.strings(count)
        elif inner == _ARRAY:
            for _ in range(count):
                self.value(inner, depth + 1)
        else:
            self.step(count * struct.calcsize("<" + _SCALARS[inner]))
        return None

    def file(self, path: Path) -> GGUFFile:
        magic, version, tensor_count, metadata_count = self.take("4sIQQ")
        if magic != MAGIC or version not in (2, VERSION):
            raise ValueError(f"magic {magic!r}, version {version}")
        start = self.place
        values: dict[str, Value] = {}
        arrays: dict[str, Array] = {}
        for _entry in range(metadata_count):
            key = self.string()
            (kind,) = self.take("I")
            offset = self.place - start
            value = self.value(kind)
            if kind != _ARRAY:
                values[key] = Value(kind, value, offset)
            else:
                inner, count = struct.unpack_from("<IQ", self.data, start + offset)
                arrays[key] = Array(inner, count, offset + struct.calcsize("<IQ"))
        metadata = self.data[start : self.place]
        alignment = values["general.alignment"].value if "general.alignment" in values else 32
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError("the alignment is no power of two")
        heads = [self.tensor_head() for _ in range(tensor_count)]
        if not heads:
            raise ValueError("it holds no tensors")
        whole = np.frombuffer(self.data, dtype=np.uint8)
        base = padded(self.place, alignment)
        tensors = []
        for name, shape, kind, offset in heads:
            size = tensor_bytes(int(np.prod(shape, dtype=object)), kind)
            if base + offset + size > len(whole):
                raise ValueError(f"it ends before tensor {name}")
            tensors.append(Tensor(name, shape, kind, whole[base + offset : base + offset + size]))
        return GGUFFile(path, metadata, metadata_count, values, arrays, tuple(tensors), alignment)

    def tensor_head(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        (dimensions,) = self.take("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = self.take(f"{dimensions}Q")
        kind, offset = self.take("IQ")
        return name, tuple(reversed(shape)), kind, offset
