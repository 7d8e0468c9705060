"""The merger graph (encoder + merger) in ONNX Runtime: token ids in, rows of the soft prompt and the gate's opinion out.

Knows nothing about the LLM but its width. What leaves here is checked: right shape, all finite, weights in [0, 2].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.devices import CPU
from mindmerger.errors import BundleError, InputError, ModelError
from mindmerger.i18n import _
from mindmerger.manifest import GateInfo
from mindmerger.reclaim import give_memory_back
from mindmerger.steering import MAX_WEIGHT, Opinion

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "soft_prompt"
GATE_INPUTS = (*INPUTS, "prompt_embeddings", "prompt_mask", "language")
GATE_OUTPUTS = (OUTPUT, "encoder_weight", "llm_weight", "language_distribution")
_TYPES = {"prompt_embeddings": "tensor(float)", "language": "tensor(float)"}

# Ids of one run above which it leaves so much behind that giving it back is worth a millisecond.
_LARGE = 128

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GraphInput:
    """One question. With a gate: `prompt` (m, d), the LLM's embeddings of the prompt, and `language` (1 + languages)."""

    ids: Sequence[int]
    prompt: Floats | None = None
    language: Floats | None = None


@dataclass(frozen=True)
class Merged:
    """`rows` (n + 1, d) float32, unweighted, the boundary row last; what the gate says, if there is one."""

    rows: Floats
    opinion: Opinion | None


class MergerGraph:
    """An ONNX Runtime session of the merger graph. `gate` says whether the graph must have one, and its shapes.

    `providers` are ONNX Runtime's, the preferred first; those that fail to start are passed over, and `provider` says which
    one works. Without `keep` the session is released after each run and opened again at need: slower, and less memory.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        vocabulary: int,
        threads: int,
        gate: GateInfo | None = None,
        providers: Sequence[str] = (CPU,),
        keep: bool = True,
    ) -> None:
        self.path = path
        self.width = width
        self.vocabulary = vocabulary
        self.gate = gate
        self.provider = CPU
        self._threads = threads
        self._providers = tuple(providers)
        self._keep = keep
        self._closed = False
        self._session: Any = self._open()
        self._check_signature()

    def _open(self) -> Any:
        from mindmerger.onnx_runtime import onnx_runtime

        ort = onnx_runtime()

        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # Idle ONNX Runtime threads would spin on the cores that llama.cpp works on: 8.2 ms instead of 3.9 ms measured.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        # Blocks go back as soon as they are not needed. The arena keeps the most that any question took (44 MB after the
        # longest, the default's encoder), and saves no measurable time: 33.9 ms with it, 33.8 without, for 60 tokens.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.log_severity_level = 4  # what goes wrong comes back as an exception; stderr is ours
        for provider in self._providers:
            providers = [provider] if provider == CPU else [provider, CPU]
            try:
                # its own way of falling back prints to stdout, which is for answers
                session = ort.InferenceSession(str(self.path), options, providers=providers, enable_fallback=0)
            except MemoryError:
                raise ModelError(_("there is not enough memory for the encoder: close other programs")) from None
            except Exception as error:  # ONNX Runtime's exceptions share no public base class
                if provider != CPU:
                    continue
                raise BundleError(
                    _("{path} cannot be loaded by ONNX Runtime ({reason}): export the bundle again").format(
                        path=self.path, reason=_first_line(error)
                    )
                ) from None
            # a provider whose libraries are missing is left out without an exception
            if provider in session.get_providers():
                self.provider = provider
                return session
        raise ModelError(_("ONNX Runtime has no provider that works: pip install --force-reinstall onnxruntime"))

    def _check_signature(self) -> None:
        inputs = {item.name: item.type for item in self._session.get_inputs()}
        outputs = {item.name: (item.type, item.shape) for item in self._session.get_outputs()}
        wanted = INPUTS if self.gate is None else GATE_INPUTS
        given = (OUTPUT,) if self.gate is None else GATE_OUTPUTS
        if inputs != {name: _TYPES.get(name, "tensor(int64)") for name in wanted} or not outputs.keys() >= set(given):
            sentence = (
                _(
                    "{path} is not a merger graph without a gate (inputs {inputs}, outputs {outputs}): export "
                    "the bundle again"
                )
                if self.gate is None
                else _(
                    "{path} is not a merger graph with a gate (inputs {inputs}, outputs {outputs}): export "
                    "the bundle again"
                )
            )
            raise BundleError(sentence.format(path=self.path, inputs=sorted(inputs), outputs=sorted(outputs)))
        kind, shape = outputs[OUTPUT]
        if kind != "tensor(float)" or len(shape) != 3 or (isinstance(shape[2], int) and shape[2] != self.width):
            raise BundleError(
                _(
                    "{path} gives {kind} rows of shape {shape} and the LLM takes float rows of width {width}: "
                    "the merger was made for another LLM, export the bundle again"
                ).format(path=self.path, kind=kind, shape=shape, width=self.width)
            )

    def rows(self, ids: Sequence[int]) -> Floats:
        """The soft prompt of one question, for a graph without a gate: one mapped row for each id, then the boundary row."""
        return self.merge([GraphInput(ids)])[0].rows

    def merge(self, questions: Sequence[GraphInput]) -> list[Merged]:
        """Soft prompts and the gate's opinions of several questions in one run, padded to the longest.

        Padding moves results by rounding alone. Raises InputError for ids that the encoder does not have, BundleError when
        the graph gives anything but finite rows, weights in [0, 2] and distributions.
        """
        ids = [np.asarray(question.ids, dtype=np.int64).reshape(-1) for question in questions]
        if not ids or any(row.size == 0 or row.min() < 0 or row.max() >= self.vocabulary for row in ids):
            raise InputError(f"the encoder takes at least one id, each from 0 to {self.vocabulary - 1}")
        feed: dict[str, npt.NDArray[Any]] = dict(zip(INPUTS, _padded(ids), strict=True))
        if self.gate is not None:
            feed |= self._gate_feed(questions)
        outputs = self._run(feed)
        longest = feed["input_ids"].shape[1]
        soft = outputs[0]
        self._check(OUTPUT, soft, (len(ids), longest + 1, self.width))
        # The boundary is the last row of the whole length; padded positions lie between.
        found = [
            np.ascontiguousarray(rows) if len(row) == longest else np.concatenate([rows[: len(row)], rows[-1:]])
            for row, rows in zip(ids, soft, strict=True)
        ]
        # llama.cpp takes a NaN row without a word and answers with NaN logits.
        if not all(np.isfinite(rows).all() for rows in found):
            raise BundleError(
                _("{path} gave rows that are not finite: the bundle is damaged, export it again").format(path=self.path)
            )
        if self.gate is None:
            return [Merged(rows, None) for rows in found]
        opinions = self._opinions(self.gate, outputs[1:], feed)
        return [Merged(rows, opinion) for rows, opinion in zip(found, opinions, strict=True)]

    def _gate_feed(self, questions: Sequence[GraphInput]) -> dict[str, npt.NDArray[Any]]:
        assert self.gate is not None
        prompts = [question.prompt for question in questions if question.prompt is not None]
        languages = [question.language for question in questions if question.language is not None]
        if len(prompts) != len(questions) or len(languages) != len(questions) or not all(len(rows) for rows in prompts):
            raise InputError(
                "the gate of this bundle needs the prompt's embeddings and a language row for each question"
            )
        mask = _padded([np.ones(len(rows), dtype=np.int64) for rows in prompts])[1]
        embeddings = np.zeros((*mask.shape, self.width), dtype=np.float32)
        for row, rows in zip(embeddings, prompts, strict=True):
            row[: len(rows)] = rows
        return {"prompt_embeddings": embeddings, "prompt_mask": mask, "language": np.stack(languages)}

    def _run(self, feed: dict[str, npt.NDArray[Any]]) -> list[Floats]:
        names = [OUTPUT] if self.gate is None else list(GATE_OUTPUTS)
        if self._closed:
            raise ModelError(_("the model is closed: load it again"))
        session = self._session or self._open()
        if self._keep:
            self._session = session
        try:
            outputs: list[Floats] = session.run(names, feed)
        except MemoryError:
            raise ModelError(_("there is not enough memory to encode the question: shorten it")) from None
        except Exception as error:
            raise BundleError(
                _("{path} failed on {size} tokens ({reason}): export the bundle again").format(
                    path=self.path, size=feed["input_ids"].size, reason=_first_line(error)
                )
            ) from None
        finally:
            if not self._keep:
                self._session = session = None
            if not self._keep or feed["input_ids"].size > _LARGE:
                give_memory_back()
        return outputs

    def _check(self, name: str, output: Floats, shape: tuple[int, ...]) -> None:
        if output.shape != shape or output.dtype != np.float32:
            raise BundleError(
                _(
                    "{path} gave {name} as {dtype} of shape {shape} instead of float32 {shape2}: export the "
                    "bundle again"
                ).format(path=self.path, name=name, dtype=output.dtype, shape=output.shape, shape2=shape)
            )

    def _opinions(self, gate: GateInfo, outputs: Sequence[Floats], feed: dict[str, npt.NDArray[Any]]) -> list[Opinion]:
        encoder, llm, language = outputs
        masks = (feed["attention_mask"], feed["prompt_mask"])
        columns = self.width if gate.granularity == "vector" else 1
        opinions = []
        for name, output, mask in zip(GATE_OUTPUTS[1:3], (encoder, llm), masks, strict=True):
            self._check(name, output, (len(mask), mask.shape[1] if gate.granularity == "token" else 1, columns))
        self._check(GATE_OUTPUTS[3], language, (len(masks[0]), len(gate.names)))
        for index in range(len(language)):
            # One weight a row: those of padding mean nothing.
            parts = [
                weight[index, : mask[index].sum()] if gate.granularity == "token" else weight[index]
                for weight, mask in zip((encoder, llm), masks, strict=True)
            ]
            # NaN is in no range
            if (
                not all(((part >= 0) & (part <= MAX_WEIGHT)).all() for part in parts)
                or not (language[index] >= 0).all()
            ):
                raise BundleError(
                    _("{path} gave weights out of range: the bundle is damaged, export it again").format(path=self.path)
                )
            opinions.append(Opinion(parts[0], parts[1], language[index]))
        return opinions

    def close(self) -> None:
        """Release the session for good. Harmless when called twice."""
        self._closed = True
        self._session = None


def _padded(rows: Sequence[npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids and mask (batch, longest), padded with 0 on the right."""
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
