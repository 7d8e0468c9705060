"""Does the exported graph compute what torch computed? Rows of the soft prompt and, for ST-Merge, the gate's opinion.

Every figure is measured on the files that will be shipped, through the runtime's own reader of them. One outside its
bound raises ParityError, which ends the export. Figures are rounded, so that equal bundles have equal reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mindmerger.errors import BundleError, ParityError
from mindmerger.frames import framed
from mindmerger.graph import GraphInput, Merged, MergerGraph
from mindmerger.manifest import FrameInfo, GateInfo
from mindmerger.steering import Opinion
from mindmerger.tokenizer import QuestionTokenizer
from mindmerger_export.graph import MergerModule
from mindmerger_export.talk import Talk

Floats = npt.NDArray[np.float32]
Keep = npt.NDArray[np.int64]
T = TypeVar("T")

ROWS_MAX_ABS = 1e-4
# (mean, worst) cosine of a row of the quantised graph with torch's.
ROWS_COSINE = {"w8": (0.999, 0.995), "w4": (0.95, 0.85)}
# (mean, worst) distance of a weight from torch's, out of a range of 2; and of a language's probability. Measured on the
# embedded default with a trained gate, w8: weights 0.0002 (worst 0.0004), languages 0.0009 (0.002); w4 about tenfold.
GATE_DISTANCE = {"fp32": (1e-4, 1e-4), "w8": (0.01, 0.1), "w4": (0.1, 1.0)}
_OPINION = ("encoder_weight", "llm_weight", "language")


@dataclass(frozen=True)
class Row:
    """How near the graph's rows for one text are to torch's, and the gate's opinion (None: no gate) to the torch gate's.

    `encoder_weight`, `llm_weight` and `language`: mean and largest absolute difference.
    """

    max_abs: float
    cosine_mean: float
    cosine_min: float
    rows: int
    encoder_weight: tuple[float, float] | None = None
    llm_weight: tuple[float, float] | None = None
    language: tuple[float, float] | None = None


def three(value: float) -> float:
    """Three significant digits: enough to judge by, too few to differ between runs of the same export."""
    return float(f"{value:.3g}")


def cosine(value: float) -> float:
    """A cosine to six places: its distance from 1 is what counts."""
    return round(float(value), 6)


def torch_merge(module: MergerModule, question: GraphInput, keep: Keep | None = None) -> Merged:
    """What torch computes for one question. `keep` maps a pruned tokenizer's ids to those of `module`."""
    row = np.asarray(question.ids, dtype=np.int64)
    ids = torch.from_numpy(row if keep is None else keep[row]).unsqueeze(0)
    with torch.no_grad():
        if module.merger.gate is None:
            return Merged(module(ids, torch.ones_like(ids))[0].numpy(), None)
        assert question.prompt is not None and question.language is not None
        prompt = torch.from_numpy(question.prompt).unsqueeze(0)
        mask = torch.ones(prompt.shape[:2], dtype=torch.int64)
        language = torch.from_numpy(question.language).unsqueeze(0)
        outputs = module(ids, torch.ones_like(ids), prompt, mask, language)
        soft, encoder, llm, used = (output[0].numpy() for output in outputs)
    return Merged(soft, Opinion(encoder, llm, used))


def compare(reference: Merged, found: Merged) -> Row:
    """Torch and the graph for one text: rows (n + 1, d), boundary included, and opinions."""
    if reference.rows.shape != found.rows.shape or not all(np.isfinite(one.rows).all() for one in (reference, found)):
        return Row(float("inf"), float("-inf"), float("-inf"), len(reference.rows))
    norms = np.linalg.norm(reference.rows, axis=1) * np.linalg.norm(found.rows, axis=1)
    # A boundary row that was never trained is zero on both sides: equal, but without direction.
    directed = norms > 0
    cosines = (reference.rows * found.rows).sum(axis=1)[directed] / norms[directed]
    low, mean = (float(cosines.min()), float(cosines.mean())) if directed.any() else (1.0, 1.0)
    largest = float(np.abs(reference.rows - found.rows).max())
    if reference.opinion is None or found.opinion is None:
        return Row(largest, mean, low, len(reference.rows))
    distances = [np.abs(getattr(reference.opinion, name) - getattr(found.opinion, name)) for name in _OPINION]
    return Row(largest, mean, low, len(reference.rows), *((float(d.mean()), float(d.max())) for d in distances))


class _Counted:
    """Several loops as steps of one stage."""

    def __init__(self, talk: Talk, total: int) -> None:
        self._talk = talk
        self._total = total
        self._done = 0

    def each(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            yield item
            self._done += 1
            self._talk.at(self._done, self._total)


def check_rows(
    module: MergerModule,
    path: Path,
    tokenizer: QuestionTokenizer,
    keep: Keep | None,
    texts: Mapping[str, str],
    precision: str,
    *,
    gate: GateInfo | None = None,
    prompts: Mapping[str, Floats] | None = None,
    frames: Mapping[str, FrameInfo] | None = None,
    talk: Talk | None = None,
) -> dict[str, Any]:
    """Compare rows and opinions for each text alone and for all of them in padded batches.

    `module` has the whole vocabulary; `keep` maps the pruned tokenizer's ids to its ids. With a gate, `prompts` has the LLM's
    embeddings of each text's prompt (m, d); alone, a text's language is left to the head, in batches the gate is told one.
    `texts` are named by their language, which an encoder with `frames` is told where it knows it.
    Raises ParityError outside the bounds of `precision`.
    """
    talk = talk or Talk()
    try:
        graph = MergerGraph(
            path, width=module.width, vocabulary=tokenizer.vocabulary, threads=torch.get_num_threads(), gate=gate
        )
        ids = {
            key: framed(tokenizer.encode(text), frames or {}, key if key in (frames or {}) else None)
            for key, text in texts.items()
        }
        alone_inputs = _inputs(ids, gate, prompts, told=False)
        batch_inputs = _inputs(ids, gate, prompts, told=True)
        keys = list(ids)
        batches = [keys[start : start + 8] for start in range(0, len(keys), 8)]
        counted = _Counted(talk, len(keys) * (2 if gate is None else 3) + len(batches))
        alone = {key: graph.merge([alone_inputs[key]])[0] for key in counted.each(keys)}
        together: dict[str, Merged] = {}
        for batch in counted.each(batches):
            together |= zip(batch, graph.merge([batch_inputs[key] for key in batch]), strict=True)
        graph.close()
    except BundleError as error:
        raise ParityError(f"the exported graph cannot be used: {error}") from None
    wanted = {key: torch_merge(module, alone_inputs[key], keep) for key in counted.each(keys)}
    compared = {key: compare(wanted[key], found) for key, found in alone.items()}
    if gate is not None:  # which is told a language in batches, and only there
        wanted = {key: torch_merge(module, batch_inputs[key], keep) for key in counted.each(keys)}
    padded = [compare(wanted[key], found) for key, found in together.items()]
    for name, rows in (("rows", list(compared.values())), ("rows of padded batches", padded)):
        _judge_rows(name, rows, precision)
        _judge_gate(name, rows, precision)
    return {
        "texts": len(texts),
        **_summary(list(compared.values())),
        "padded_batches": _summary(padded),
        "worst_by_text": {key: cosine(row.cosine_min) for key, row in compared.items()},
        "max_abs_by_text": {key: three(row.max_abs) for key, row in compared.items()},
    }


def _inputs(
    ids: Mapping[str, list[int]], gate: GateInfo | None, prompts: Mapping[str, Floats] | None, told: bool
) -> dict[str, GraphInput]:
    if gate is None or prompts is None:
        return {key: GraphInput(row) for key, row in ids.items()}
    languages = np.eye(len(gate.names), dtype=np.float32) if told else np.zeros((1, len(gate.names)), dtype=np.float32)
    return {
        key: GraphInput(row, prompts[key], languages[index % len(languages)])
        for index, (key, row) in enumerate(ids.items())
    }


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    total = sum(row.rows for row in rows)
    summary: dict[str, Any] = {
        "max_abs": three(max(row.max_abs for row in rows)),
        "cosine_mean": cosine(sum(row.cosine_mean * row.rows for row in rows) / total),
        "cosine_min": cosine(min(row.cosine_min for row in rows)),
    }
    if rows[0].encoder_weight is not None:
        summary["gate"] = {
            name: dict(zip(("mean", "max"), map(three, _distance(rows, name)), strict=True)) for name in _OPINION
        }
    return summary


def _distance(rows: Sequence[Row], name: str) -> tuple[float, float]:
    values = [getattr(row, name) for row in rows]
    return sum(mean for mean, _ in values) / len(values), max(largest for _, largest in values)


def _judge_rows(name: str, rows: Sequence[Row], precision: str) -> None:
    summary = _summary(rows)
    # `not (x <= bound)`: NaN fails too.
    if precision == "fp32":
        if not summary["max_abs"] <= ROWS_MAX_ABS:
            raise ParityError(
                f"the exported graph's {name} differ from torch's by up to {summary['max_abs']} (at most {ROWS_MAX_ABS} "
                "is allowed): nothing was written"
            )
        return
    mean, worst = ROWS_COSINE[precision]
    if not (summary["cosine_mean"] >= mean and summary["cosine_min"] >= worst):
        raise ParityError(
            f"the {precision} graph's {name} have cosine {summary['cosine_mean']} on average and {summary['cosine_min']} "
            f"at worst with torch's (at least {mean} and {worst} are asked): export with a higher --precision"
        )


def _judge_gate(name: str, rows: Sequence[Row], precision: str) -> None:
    if rows[0].encoder_weight is None:
        return
    most, worst = GATE_DISTANCE[precision]
    for output in _OPINION:
        mean, largest = _distance(rows, output)
        if not (mean <= most and largest <= worst):
            raise ParityError(
                f"with the {name}, the {precision} graph's {output.replace('_', ' ')} differs from torch's by {three(mean)} on "
                f"average and {three(largest)} at worst (at most {most} and {worst} are allowed): "
                + ("nothing was written" if precision == "fp32" else "export with a higher --precision")
            )
