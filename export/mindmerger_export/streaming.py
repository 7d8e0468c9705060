"""Tensors on their way into a GGUF: read, changed, encoded and written a few rows at a time.

`gguf.GGUFWriter` writes whatever has `nbytes` and `tofile`, so a tensor can be a recipe instead of an array: memory does not
grow with the model. What this module does not know: where rows come from, names, metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from mindmerger.errors import CheckpointError

Floats = npt.NDArray[np.float32]
# Weights worked on at once: 16 MB in float32.
_BLOCK_WEIGHTS = 4_000_000


@dataclass(frozen=True)
class Plan:
    """One tensor of the file to write. `rows(start, stop)` are rows of it in float32; a vector is one row.

    `type` is a `gguf.GGMLQuantizationType`; `group`: rows that must be asked for together (those of a head).
    """

    name: str
    shape: tuple[int, ...]
    type: Any
    rows: Callable[[int, int], Floats]
    group: int = 1

    @property
    def nbytes(self) -> int:
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape, dtype=np.int64)) // int(block) * int(size)

    def tofile(self, file: BinaryIO) -> None:
        """Called by the writer. Raises CheckpointError when a value is no number or does not fit the type."""
        for chunk in self._chunks():
            file.write(encode(chunk, self.type, self.name).data)

    def _chunks(self) -> Iterator[Floats]:
        if len(self.shape) == 1:
            yield self.rows(0, 1)
            return
        step = max(1, _BLOCK_WEIGHTS // self.shape[-1] // self.group) * self.group
        for start in range(0, self.shape[0], step):
            yield self.rows(start, min(start + step, self.shape[0]))


def encode(values: Floats, type: Any, name: str) -> npt.NDArray[Any]:
    """`values` in the bytes of `type`. Raises CheckpointError when they are not finite or too large for it."""
    from gguf import GGMLQuantizationType, quants

    tensor = torch.from_numpy(values)
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"the LLM's weights contain NaN or infinite values ({name}): its files are damaged")
    if type == GGMLQuantizationType.F32:
        return np.ascontiguousarray(values)
    if type == GGMLQuantizationType.F16:
        half = tensor.to(torch.float16)
        if not torch.isfinite(half).all():
            raise CheckpointError(f"the LLM's weights are too large for f16 ({name}): choose the type bf16 or q8_0")
        return np.asarray(half.numpy())
    if type == GGMLQuantizationType.BF16:
        return np.asarray(tensor.to(torch.bfloat16).view(torch.int16).numpy())
    packed: npt.NDArray[Any] = np.ascontiguousarray(quants.quantize(values, type))
    return packed


def fitting(type: Any, columns: int) -> Any:
    """`type`, or F16 where rows of `columns` weights do not divide into its blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGMLQuantizationType.F16 if columns % GGML_QUANT_SIZES[type][0] else type


def with_adapter(plan: Plan, a: Floats, b: Floats) -> Plan:
    """`plan` with `b @ a` added; a (rank, columns), b (rows, rank), the scale already in b."""

    def rows(start: int, stop: int) -> Floats:
        return np.asarray(plan.rows(start, stop) + b[start:stop] @ a, dtype=np.float32)

    return replace(plan, rows=rows)


def apply_adapter(plans: Sequence[Plan], pairs: dict[str, tuple[Floats, Floats]], adapter: object) -> list[Plan]:
    """`plans` with an adapter's updates added. Raises CheckpointError when a name or a size does not fit."""
    left = dict(pairs)
    changed = []
    for plan in plans:
        pair = left.pop(plan.name, None)
        if pair is None:
            changed.append(plan)
            continue
        a, b = pair
        if (b.shape[0], a.shape[1]) != plan.shape:
            shape = " × ".join(map(str, plan.shape))
            raise CheckpointError(f"the adapter {adapter} does not fit this LLM: {plan.name} is {shape}")
        changed.append(with_adapter(plan, a, b))
    if left:
        raise CheckpointError(f"the adapter {adapter} does not fit this LLM, which has no tensor {next(iter(left))}")
    return changed


def write(writer: Any, plans: Sequence[Plan], advance: Callable[[int], None] = lambda _bytes: None) -> None:
    """Write header, metadata and every tensor; `advance` is told the bytes of each one when it is written."""
    for plan in plans:
        # Any dtype but uint8, so that the shape is taken as the logical one.
        writer.add_tensor_info(plan.name, plan.shape, np.dtype(np.float32), plan.nbytes, plan.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for plan in plans:
        writer.write_tensor_data(plan)
        advance(plan.nbytes)
