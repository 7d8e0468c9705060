"""Make the LLM's GGUF out of a base GGUF and a LoRA adapter: dequantise, add alpha/rank · B A, quantise.

llama.cpp can apply an adapter while it runs, at the cost of a third of a small LLM's decode speed; so it is done once.
`bake` is the recipe (also for mm-export); `baked` keeps the result in the user's cache folder. The name of a baked file
holds the hash of its content: one rename publishes both, no second file can disagree with it, and two processes that
bake at the same time do no harm to each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mindmerger import cache
from mindmerger.blocks import dequantise
from mindmerger.errors import BundleError, ModelError
from mindmerger.gguf_file import (
    MAGIC,
    VERSION,
    GGUFFile,
    Tensor,
    padded,
    quantise,
    read_gguf,
    tensor_bytes,
)
from mindmerger.i18n import _
from mindmerger.manifest_rules import BAKE_TYPES

# Part of the key of a baked file: raise it when the same inputs no longer give the same bytes.
RECIPE = 1
# Rows are worked on in blocks of about this many weights: the arrays between the steps stay in the cache, and
# a large LLM never needs a large tensor in float32.
_BLOCK_WEIGHTS = 1 << 16
# OpenBLAS starts threads above this many multiplications; beside another busy program they spin, five times slower.
_ONE_THREAD = 1 << 18
_SPARE_BYTES = 32 * 1024 * 1024
_STALE_SECONDS = 24 * 3600
_FILE_TYPES = {"q8_0": 7, "q4_1": 3}  # llama_ftype, written to general.file_type


@dataclass(frozen=True)
class _Plan:
    """One tensor of the file to write; `a` and `b` are the halves of its adapter, the scale already in `b`."""

    tensor: Tensor
    type: int
    bytes: int
    a: npt.NDArray[np.float32] | None = None
    b: npt.NDArray[np.float32] | None = None


def baked(base: Path, adapter: Path, type: str, base_sha256: str, adapter_sha256: str) -> Path:
    """The baked GGUF in the cache folder, made if it is not there or not intact."""
    key = _key(type, base_sha256, adapter_sha256)
    for path in kept(type, base_sha256, adapter_sha256):
        try:
            cache.check_file(path, path.stat().st_size, path.name.split(".")[1], "the prepared LLM")
        except (BundleError, OSError):
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            return path
    target = cache.writable_folder("baked")
    if target is None:
        raise ModelError(
            _(
                "the LLM must be prepared once and no cache folder can be written to ({folders}): set "
                "XDG_CACHE_HOME to a folder that can"
            ).format(folders=", ".join(str(folder) for folder in cache.cache_folders()))
        )
    _remove_stale(target)
    temporary = target / f".{key}.{secrets.token_hex(8)}.tmp"
    try:
        digest = _write(base, adapter, temporary, type, _Progress())
        final = target / f"{key}.{digest}.gguf"
        try:
            temporary.replace(final)
        except PermissionError:
            # Windows: another process has baked the same file and holds it open
            if not final.is_file():
                raise
        cache.remember(final, digest, final.stat())
    except OSError as error:
        raise ModelError(
            _("the LLM cannot be prepared in {folder} ({reason}): check space and permissions").format(
                folder=target, reason=error.strerror
            )
        ) from None
    finally:
        # also on Ctrl-C: nothing half-written stays
        with contextlib.suppress(OSError):
            temporary.unlink()
    return final


def kept(type: str, base_sha256: str, adapter_sha256: str) -> list[Path]:
    """The files in the cache folders that claim to be this baked GGUF, unchecked; the second part of a name is its sha256."""
    key = _key(type, base_sha256, adapter_sha256)
    return [path for folder in cache.cache_folders() for path in sorted((folder / "baked").glob(f"{key}.*.gguf"))]


def _key(type: str, base_sha256: str, adapter_sha256: str) -> str:
    return hashlib.sha256(f"{RECIPE} {type} {base_sha256} {adapter_sha256}".encode()).hexdigest()[:24]


def baked_bytes(base: Path, adapter: Path, type: str) -> int:
    """The size that the baked GGUF has or will have."""
    source = read_gguf(base)
    plans = _plans(source, read_gguf(adapter), type)
    return len(_header(source, plans, type)) + sum(padded(plan.bytes, source.alignment) for plan in plans)


def bake(base: Path, adapter: Path, out: Path, type: str) -> str:
    """Write `out`, the LLM of `base` with `adapter` applied, in `type` (q8_0 or q4_1). Returns its sha256.

    `out` appears only when it is whole.
    """
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(8)}.tmp")
    try:
        digest = _write(base, adapter, temporary, type, None)
        temporary.replace(out)
    except OSError as error:
        raise ModelError(
            _("{path} cannot be written ({reason}): check space and permissions").format(
                path=out, reason=error.strerror
            )
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return digest


class _Progress:
    """A notice on stderr for work of more than a second: the first start is the only slow one, and says so."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.said = False

    def at(self, done: int, total: int) -> None:
        if not self.said and done < total and time.monotonic() - self.began > 1.0:
            print("mindmerger: preparing the LLM for this machine, once; a few seconds …", file=sys.stderr, flush=True)
            self.said = True


def _write(base: Path, adapter: Path, out: Path, type: str, progress: _Progress | None) -> str:
    if type not in BAKE_TYPES:
        raise BundleError(f"the LLM cannot be baked to {type!r}: the types are {', '.join(BAKE_TYPES)}")
    if sys.byteorder != "little":
        raise ModelError("an LLM cannot be baked on a big-endian machine: export a bundle with role 'llm'")
    source, lora = read_gguf(base), read_gguf(adapter)
    plans = _plans(source, lora, type)
    header = _header(source, plans, type)
    total = len(header) + sum(padded(plan.bytes, source.alignment) for plan in plans)
    free = shutil.disk_usage(out.parent).free
    if free < total + _SPARE_BYTES:
        raise ModelError(
            _(
                "preparing the LLM needs {needed} MB in {folder} and {free} MB are free: make room or set "
                "XDG_CACHE_HOME to another disk"
            ).format(needed=(total + _SPARE_BYTES) >> 20, folder=out.parent, free=free >> 20)
        )
    digest = hashlib.sha256()
    done = 0
    with out.open("wb") as file:
        _put(file, digest, header)
        for plan in plans:
            for block in _blocks(plan):
                _put(file, digest, block.data)
                done += block.nbytes
                if progress is not None:
                    progress.at(done, total)
            _put(file, digest, bytes(padded(plan.bytes, source.alignment) - plan.bytes))
        file.flush()
        os.fsync(file.fileno())
        written = file.tell()
    if written != total:
        raise ModelError(f"{out.name} came out with {written} bytes instead of {total}: report this with the bundle")
    return digest.hexdigest()


def _put(file: BinaryIO, digest: Any, data: bytes | memoryview) -> None:
    file.write(data)
    digest.update(data)


def _blocks(plan: _Plan) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of one tensor, a few rows at a time."""
    tensor = plan.tensor
    if plan.a is None or plan.b is None:
        yield tensor.data
        return
    rows, columns = tensor.shape
    stride = tensor.data.size // rows
    step = max(1, _BLOCK_WEIGHTS // columns)
    part = max(1, _ONE_THREAD // plan.a.size)
    delta = np.empty((step, columns), dtype=np.float32)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        for row in range(start, stop, part):
            end = min(row + part, stop)
            np.matmul(plan.b[row:end], plan.a, out=delta[row - start : end - start])
        weights = dequantise(tensor.data[start * stride : stop * stride], tensor.type).reshape(-1, columns)
        yield quantise(weights + delta[: stop - start], plan.type)


def _plans(source: GGUFFile, lora: GGUFFile, type: str) -> list[_Plan]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    pairs = _adapter_pairs(lora)
    names = source.text("general.architecture"), lora.text("general.architecture")
    if names[0] != names[1]:
        raise BundleError(
            f"the adapter {lora.path} is for {names[1]!r} and the LLM is {names[0]!r}: it is for another LLM"
        )
    plans = []
    for tensor in source.tensors:
        pair = pairs.pop(tensor.name, None)
        if pair is None:
            plans.append(_Plan(tensor, tensor.type, tensor.data.size))
            continue
        a, b = pair
        if (b.shape[0], a.shape[1]) != tensor.shape:
            raise BundleError(
                f"the adapter {lora.path} has {b.shape[0]} × {a.shape[1]} for {tensor.name} and the LLM has "
                f"{' × '.join(map(str, tensor.shape))}: it was trained for another LLM"
            )
        wanted = GGMLQuantizationType[type.upper()]
        if tensor.shape[1] % GGML_QUANT_SIZES[wanted][0]:
            wanted = GGMLQuantizationType.F16  # rows that do not divide into blocks; llama.cpp's own fallback
        plans.append(_Plan(tensor, int(wanted), tensor_bytes(tensor.shape[0] * tensor.shape[1], int(wanted)), a, b))
    if pairs:
        raise BundleError(
            f"the adapter {lora.path} has tensors that the LLM lacks ({next(iter(pairs))}): it is for another LLM"
        )
    return plans


def _adapter_pairs(lora: GGUFFile) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Tensor name → (A, B), with alpha/rank already in B."""
    if lora.text("general.type") != "adapter" or lora.text("adapter.type") != "lora":
        raise BundleError(f"{lora.path} is not a LoRA adapter in GGUF form: export the bundle again")
    alpha = lora.number("adapter.lora.alpha")
    halves: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for tensor in lora.tensors:
        name, _, half = tensor.name.rpartition(".lora_")
        if not name or half not in ("a", "b") or len(tensor.shape) != 2:
            raise BundleError(
                f"the adapter {lora.path} has a tensor that is no LoRA half ({tensor.name}): export it again"
            )
        halves.setdefault(name, {})[half] = tensor.values()
    pairs = {}
    for name, both in halves.items():
        if set(both) != {"a", "b"} or both["a"].shape[0] != both["b"].shape[1]:
            raise BundleError(f"the adapter {lora.path} has halves that do not fit for {name}: export it again")
        if not all(np.isfinite(half).all() for half in both.values()):
            raise BundleError(f"the adapter {lora.path} has values that are not finite for {name}: export it again")
        # as llama.cpp: no alpha means a scale of 1
        pairs[name] = (both["a"], both["b"] * np.float32(alpha / both["a"].shape[0] if alpha else 1.0))
    return pairs


def _header(source: GGUFFile, plans: list[_Plan], type: str) -> bytes:
    """Everything before the weights. The metadata is copied as bytes: what is not understood here is not lost."""
    metadata = bytearray(source.metadata)
    kind = source.values.get("general.file_type")
    if kind is not None and isinstance(kind.value, int):
        struct.pack_into("<I", metadata, kind.offset, _FILE_TYPES[type])
    out = bytearray(struct.pack("<4sIQQ", MAGIC, VERSION, len(plans), source.metadata_count)) + metadata
    offset = 0
    for plan in plans:
        name = plan.tensor.name.encode("utf-8")
        shape = plan.tensor.shape[::-1]
        out += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        out += struct.pack("<IQ", plan.type, offset)
        offset += padded(plan.bytes, source.alignment)
    return bytes(out) + bytes(padded(len(out), source.alignment) - len(out))


def _remove_stale(folder: Path) -> None:
    """Remove what a killed process left; a bake takes seconds, so a day is beyond doubt."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
