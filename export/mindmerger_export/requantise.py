"""A GGUF of an LLM → the same LLM in another type that `gguf` itself writes, with an adapter added before rounding.

All metadata is copied. A few rows are in memory at a time. What this module does not know: K-quants, Hugging Face folders.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.errors import BundleError
from mindmerger_export.streaming import Floats, Plan, apply_adapter, fitting, write

# llama_ftype of a file whose matrices are mostly of this type.
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q5_1": 9, "q5_0": 8, "q4_1": 3, "q4_0": 2}


def read_gguf(path: Path) -> Any:
    """A `gguf` reader of `path`. Raises BundleError with one sentence when it is no GGUF."""
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # a damaged file ends in any of ValueError, IndexError, KeyError …
        raise BundleError(
            f"{path} is not a readable GGUF file ({str(error)[:100]}): install or export it again"
        ) from None


def requantise(
    base: Path,
    adapter: tuple[Path, dict[str, tuple[Floats, Floats]]] | None,
    out: Path,
    type: str,
    advance: Callable[[int], None] = lambda _bytes: None,
) -> None:
    """Write the LLM of `base` with every matrix in `type`, `adapter` added.

    Vectors stay as they are. A matrix whose rows do not divide into blocks becomes f16. Raises BundleError when a file is no
    GGUF, CheckpointError when the adapter does not fit.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    reader = read_gguf(base)
    wanted = GGMLQuantizationType[type.upper()]
    plans = [_plan(tensor, wanted) for tensor in reader.tensors]
    if adapter is not None:
        plans = apply_adapter(plans, adapter[1], adapter[0])
    writer = GGUFWriter(out, str(reader.get_field("general.architecture").contents()))
    try:
        _copy_fields(reader, writer, FILE_TYPES[type])
        write(writer, plans, advance)
    finally:
        writer.close()


def _plan(tensor: Any, wanted: Any) -> Plan:
    from gguf import quants

    shape = tuple(int(length) for length in reversed(tensor.shape))
    if len(shape) < 2:
        vector = quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        return Plan(tensor.name, shape, tensor.tensor_type, lambda _start, _stop: vector)

    def rows(start: int, stop: int) -> Floats:
        found: npt.NDArray[Any] = quants.dequantize(np.asarray(tensor.data[start:stop]), tensor.tensor_type)
        return np.asarray(found, dtype=np.float32)

    return Plan(tensor.name, shape, fitting(wanted, shape[-1]), rows)


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
