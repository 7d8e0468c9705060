"""The LLM of a bundle as GGUF: taken as it is, requantised with its adapter added, or named by the package that ships it.

Every way ends in an `LLMFiles`: which files with which roles go into the bundle. What this module does not know:
encoders, mergers, manifests' other fields.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.bake import bake
from mindmerger.cache import sha256_of
from mindmerger.errors import BundleError, CheckpointError, InputError
from mindmerger.manifest import FileInfo
from mindmerger.manifest_rules import BAKE_TYPES
from mindmerger.packages import find_package_file
from mindmerger_train.checkpoint import Checkpoint
from mindmerger_train.llms import PACKAGE_FILE, PACKAGE_SOURCE

LLM_FILE = "llm.gguf"
ADAPTER_FILE = "adapter.gguf"
# llama_ftype of a file whose matrices are mostly of this type.
TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q5_1": 9, "q5_0": 8, "q4_1": 3, "q4_0": 2}
_BLOCK_WEIGHTS = 4_000_000


@dataclass(frozen=True)
class LLMFiles:
    """The LLM's part of a bundle. `gguf` is what the runtime will load, or (bake) what it starts from."""

    entries: tuple[FileInfo, ...]
    gguf: Path
    bake: str | None
    kind: str


def prepare_llm(checkpoint: Checkpoint, folder: Path, mode: str, type: str | None, ready: Path | None) -> LLMFiles:
    """Put the LLM's files into `folder`.

    `ready`: a GGUF that is taken as it is. Mode `package`: the LLM stays in its Python package, its adapter is baked in by
    the runtime at first use. Mode `embed`: one GGUF with the adapter applied, in `type` (default: the runtime's q8_0
    with an adapter, as it is without).
    """
    if type is not None and type not in TYPES:
        raise InputError(f"the LLM cannot be written as {type!r}: the types are {', '.join(TYPES)}")
    adapter = checkpoint.adapter_path()
    out = folder / LLM_FILE
    if ready is not None:
        if not ready.is_file():
            raise CheckpointError(f"there is no GGUF {ready}: check the path of --llm-gguf")
        shutil.copyfile(ready, out)
        return LLMFiles((file_entry("llm", out),), out, None, "ready")
    if mode == "package":
        return _from_package(checkpoint, folder, adapter, type or "q8_0")
    base, temporary = _base_gguf(checkpoint, folder)
    try:
        if adapter is None and type is None:
            shutil.copyfile(base, out)
        elif adapter is not None and (type or "q8_0") in BAKE_TYPES:
            # The runtime's own recipe, so that both ways into a bundle give the same LLM.
            bake(base, adapter, out, type or "q8_0")
        else:
            requantise(base, adapter, out, type or "q8_0")
    finally:
        if temporary:
            base.unlink(missing_ok=True)
    return LLMFiles((file_entry("llm", out),), out, None, type or ("q8_0" if adapter else "as stored"))


def file_entry(role: str, path: Path, package: str | None = None, name: str | None = None) -> FileInfo:
    """The manifest's entry of a file that exists."""
    return FileInfo(role, name or path.name, path.stat().st_size, sha256_of(path), package)


def _from_package(checkpoint: Checkpoint, folder: Path, adapter: Path | None, type: str) -> LLMFiles:
    if checkpoint.llm.source != PACKAGE_SOURCE:
        raise InputError(f"--llm package needs an LLM that a Python package ships, not {checkpoint.llm.source!r}")
    base = find_package_file(PACKAGE_SOURCE, PACKAGE_FILE)
    if adapter is None:
        return LLMFiles((file_entry("llm", base, PACKAGE_SOURCE, PACKAGE_FILE),), base, None, "package")
    if type not in BAKE_TYPES:
        raise InputError(f"the runtime can bake an adapter into {' or '.join(BAKE_TYPES)}, not into {type!r}")
    copy = folder / ADAPTER_FILE
    shutil.copyfile(adapter, copy)
    entries = (file_entry("llm-base", base, PACKAGE_SOURCE, PACKAGE_FILE), file_entry("adapter", copy))
    return LLMFiles(entries, base, type, f"package, baked to {type}")


def _base_gguf(checkpoint: Checkpoint, folder: Path) -> tuple[Path, bool]:
    """The LLM without its adapter as a GGUF, and whether that file is ours to delete."""
    if checkpoint.llm.source == PACKAGE_SOURCE:
        return find_package_file(PACKAGE_SOURCE, PACKAGE_FILE), False
    source = Path(checkpoint.llm.source)
    if source.suffix == ".gguf" and source.is_file():
        return source, False
    from mindmerger_export.hf_gguf import write_gguf

    path = folder / ".base.gguf"
    write_gguf(source, path, checkpoint.llm.name)
    return path, True


def requantise(base: Path, adapter: Path | None, out: Path, type: str) -> None:
    """Write the LLM of `base` with every matrix in `type`, `adapter` added before rounding.

    Vectors stay as they are. A matrix whose rows do not divide into blocks becomes f16. One block of rows is in memory at
    a time. Raises BundleError when a file is no GGUF, CheckpointError when the adapter does not fit.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    reader = read_gguf(base)
    pairs = _adapter_pairs(adapter) if adapter is not None else {}
    wanted = GGMLQuantizationType[type.upper()]
    plans: list[tuple[Any, Any, Callable[[npt.NDArray[np.float32], int], npt.NDArray[np.float32]] | None]] = []
    for tensor in reader.tensors:
        pair = pairs.pop(tensor.name, None)
        if len(tensor.shape) < 2:
            plans.append((tensor, None, None))
            continue
        columns, rows = int(tensor.shape[0]), int(tensor.shape[1])
        fitting = GGMLQuantizationType.F16 if columns % GGML_QUANT_SIZES[wanted][0] else wanted
        if pair is None:
            plans.append((tensor, fitting, None))
            continue
        a, b = pair
        if (b.shape[0], a.shape[1]) != (rows, columns):
            raise CheckpointError(f"the adapter {adapter} does not fit this LLM: {tensor.name} is {rows} × {columns}")

        def add(weights: npt.NDArray[np.float32], start: int, a: Any = a, b: Any = b) -> npt.NDArray[np.float32]:
            return np.asarray(weights + b[start : start + len(weights)] @ a, dtype=np.float32)

        plans.append((tensor, fitting, add))
    if pairs:
        raise CheckpointError(f"the adapter {adapter} does not fit this LLM, which has no tensor {next(iter(pairs))}")
    _write(reader, plans, out, type)


def _write(reader: Any, plans: list[tuple[Any, Any, Any]], out: Path, type: str) -> None:
    from gguf import GGUFWriter

    architecture = str(reader.get_field("general.architecture").contents())
    writer = GGUFWriter(out, architecture, use_temp_file=False)
    try:
        _copy_fields(reader, writer, TYPES[type])
        for tensor, kind, _ in plans:
            # gguf wants the shape of the data as stored: the bytes of a row, where the type is quantised.
            shape, dtype, nbytes, raw = _stored(tensor, kind)
            writer.add_tensor_info(tensor.name, shape, dtype, nbytes, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind, add in plans:
            writer.write_tensor_data(_converted(tensor, kind, add))
    finally:
        writer.close()


def _copy_fields(reader: Any, writer: Any, file_type: int) -> None:
    from gguf import GGUFValueType

    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        if field.name == "general.quantization_version":
            continue  # written below, once
        kind = field.types[0]
        writer.add_key_value(
            field.name, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None
        )
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)


def _stored(tensor: Any, kind: Any) -> tuple[list[int], Any, int, Any]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if kind is None:
        return list(tensor.data.shape), tensor.data.dtype, int(tensor.n_bytes), tensor.tensor_type
    block, size = GGML_QUANT_SIZES[kind]
    nbytes = int(tensor.n_elements) * size // block
    logical = [int(length) for length in reversed(tensor.shape)]
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return logical, np.dtype(np.float32 if kind == GGMLQuantizationType.F32 else np.float16), nbytes, None
    return [*logical[:-1], logical[-1] * size // block], np.dtype(np.uint8), nbytes, kind


def _converted(tensor: Any, kind: Any, add: Any) -> npt.NDArray[Any]:
    from gguf import quants

    if kind is None:
        return np.ascontiguousarray(tensor.data)
    step = max(1, _BLOCK_WEIGHTS // int(tensor.shape[0]))
    pieces = []
    for start in range(0, len(tensor.data), step):
        weights = quants.dequantize(np.asarray(tensor.data[start : start + step]), tensor.tensor_type)
        pieces.append(quants.quantize(add(weights, start) if add is not None else weights, kind))
    return np.ascontiguousarray(np.concatenate(pieces))


def _adapter_pairs(path: Path) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Tensor name → (A, alpha/rank · B) of an adapter in GGUF form."""
    from gguf import quants

    reader = read_gguf(path)
    field = reader.get_field("adapter.lora.alpha")
    if field is None:
        raise CheckpointError(f"{path} is not a LoRA adapter in GGUF form")
    halves: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for tensor in reader.tensors:
        name, _, half = tensor.name.rpartition(".lora_")
        halves.setdefault(name, {})[half] = quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
    alpha = float(field.contents())
    return {
        name: (half["a"], (half["b"] * np.float32(alpha / half["a"].shape[0])).astype(np.float32))
        for name, half in halves.items()
    }


def read_gguf(path: Path) -> Any:
    """A `gguf` reader of `path`. Raises BundleError with one sentence when it is no GGUF."""
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # a damaged file ends in any of ValueError, IndexError, KeyError …
        raise BundleError(
            f"{path} is not a readable GGUF file ({str(error)[:100]}): install or export it again"
        ) from None


@dataclass(frozen=True)
class LLMFacts:
    """What a GGUF says about itself."""

    architecture: str
    width: int
    vocabulary: int
    context: int
    parameters: int


def llm_facts(path: Path) -> LLMFacts:
    """Read architecture and sizes. Raises BundleError when the file lacks them."""
    reader = read_gguf(path)

    def value(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise BundleError(f"{path} does not say its {key!r}: it is not a GGUF of an LLM")
        return field.contents()

    architecture = str(value("general.architecture"))
    return LLMFacts(
        architecture=architecture,
        width=int(value(f"{architecture}.embedding_length")),
        vocabulary=len(value("tokenizer.ggml.tokens")),
        context=int(value(f"{architecture}.context_length")),
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
    )
