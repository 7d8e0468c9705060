"""The merger graph (encoder + merger) in ONNX Runtime: token ids in, rows of the soft prompt out.

Knows nothing about the LLM but its width. Rows leave here checked: right shape, all finite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.errors import BundleError, InputError, ModelError

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "soft_prompt"


class MergerGraph:
    """An ONNX Runtime session of the merger graph."""

    def __init__(self, path: Path, *, width: int, vocabulary: int, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle ONNX Runtime threads would spin on the cores that llama.cpp works on: 8.2 ms instead of 3.9 ms measured.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong comes back as an exception; stderr is ours
        self.path = path
        self.width = width
        self.vocabulary = vocabulary
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except MemoryError:
            raise ModelError("there is not enough memory for the encoder: close other programs") from None
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise BundleError(
                f"{path} cannot be loaded by ONNX Runtime ({_first_line(error)}): export the bundle again"
            ) from None
        self._check_signature()

    def _check_signature(self) -> None:
        inputs = {item.name: item.type for item in self._session.get_inputs()}
        outputs = {item.name: (item.type, item.shape) for item in self._session.get_outputs()}
        if set(inputs) != set(INPUTS) or set(inputs.values()) != {"tensor(int64)"} or OUTPUT not in outputs:
            raise BundleError(
                f"{self.path} is not a merger graph (inputs {sorted(inputs)}, outputs {sorted(outputs)}): "
                "export the bundle again"
            )
        kind, shape = outputs[OUTPUT]
        if kind != "tensor(float)" or len(shape) != 3 or (isinstance(shape[2], int) and shape[2] != self.width):
            raise BundleError(
                f"{self.path} gives {kind} rows of shape {shape} and the LLM takes float rows of width {self.width}: "
                "the merger was made for another LLM, export the bundle again"
            )

    def rows(self, ids: list[int]) -> npt.NDArray[np.float32]:
        """The soft prompt of one question: one mapped row for each id, then the boundary row."""
        array = np.asarray(ids, dtype=np.int64).reshape(1, -1)
        if array.size == 0 or array.min() < 0 or array.max() >= self.vocabulary:
            raise InputError(f"the encoder takes at least one id, each from 0 to {self.vocabulary - 1}")
        try:
            (output,) = self._session.run([OUTPUT], {"input_ids": array, "attention_mask": np.ones_like(array)})
        except MemoryError:
            raise ModelError("there is not enough memory to encode the question: shorten it") from None
        except Exception as error:
            raise BundleError(
                f"{self.path} failed on {array.size} tokens ({_first_line(error)}): export the bundle again"
            ) from None
        if output.shape != (1, array.size + 1, self.width) or output.dtype != np.float32:
            raise BundleError(
                f"{self.path} gave {output.dtype} rows of shape {output.shape} instead of float32 "
                f"{(1, array.size + 1, self.width)}: export the bundle again"
            )
        rows: npt.NDArray[np.float32] = np.ascontiguousarray(output[0])
        # llama.cpp takes a NaN row without a word and answers with NaN logits.
        if not np.isfinite(rows).all():
            raise BundleError(f"{self.path} gave rows that are not finite: the bundle is damaged, export it again")
        return rows

    def close(self) -> None:
        """Release the session. Harmless when called twice."""
        self._session = None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
