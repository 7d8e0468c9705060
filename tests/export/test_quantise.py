"""Quantisation: exact where the weights were 4-bit before, near where not, packed as the operators read it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mindmerger_export.quantise import exact_q4, pack, symmetric


def q4_matrix(rows: int = 6, blocks: int = 4, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-8, 8, (rows, blocks, 32)).astype(np.float32)
    scales = rng.standard_normal((rows, blocks, 1)).astype(np.float16).astype(np.float32)
    return (codes * scales).reshape(rows, -1), codes.reshape(rows, -1), scales[..., 0]


def test_q4_0_values_are_found_exactly() -> None:
    values, _, _ = q4_matrix()
    values[0, :32] = 0.0
    found = exact_q4(values)
    assert found is not None
    codes, scales = found
    assert codes.min() >= -8 and codes.max() <= 7
    assert np.array_equal(codes * np.repeat(scales, 32, axis=1), values)


def test_q4_0_blocks_without_their_lowest_code_are_found_too() -> None:
    values, codes, scales = q4_matrix()
    codes = codes.clip(-5, 7)
    codes[:, ::32] = 7
    values = (codes * np.repeat(scales, 32, axis=1)).astype(np.float32)
    values[:4] = q4_matrix(4)[0]
    found = exact_q4(values)
    assert found is not None
    assert np.array_equal(found[0] * np.repeat(found[1], 32, axis=1), values)


def test_other_values_are_not_exact() -> None:
    rng = np.random.default_rng(1)
    assert exact_q4(rng.standard_normal((8, 64)).astype(np.float32)) is None
    values, _, _ = q4_matrix()
    values[3, 40] *= np.float32(1.01)
    assert exact_q4(values) is None
    assert exact_q4(np.ones((2, 33), dtype=np.float32)) is None


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.01), (4, 0.12)])
def test_rounding_error_is_small(bits: int, bound: float) -> None:
    values = np.random.default_rng(2).standard_normal((16, 128)).astype(np.float32)
    values[0, :32] = 0.0
    codes, scales = symmetric(values, bits)
    error = np.linalg.norm(codes * np.repeat(scales, 32, axis=1) - values) / np.linalg.norm(values)
    assert error < bound


@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_reads_the_packing(bits: int) -> None:
    values, _, _ = q4_matrix(rows=24)
    codes, scales = (exact_q4(values) or (None, None)) if bits == 4 else symmetric(values, 8)
    assert codes is not None and scales is not None
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=128, N=24, bits=bits, block_size=32,
        accuracy_level=1,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 128])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 24])],
        [numpy_helper.from_array(pack(codes, bits), "b"), numpy_helper.from_array(scales.reshape(-1), "s")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )
    onnx.checker.check_model(model)
    x = np.random.default_rng(3).standard_normal((5, 128)).astype(np.float32)
    (found,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    wanted = x @ (codes * np.repeat(scales, 32, axis=1)).T
    assert np.abs(found - wanted).max() < 1e-4
