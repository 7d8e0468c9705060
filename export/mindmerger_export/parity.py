"""Does the bundle compute what torch computed? Every figure here is measured on the files that will be shipped.

Four comparisons: rows of the merger graph; embedding rows injected into llama.cpp against its own token path, which also
finds `injection_scale`; the logits of the first token; greedy continuations. A figure outside its bound raises
ParityError, which ends the export. Figures are rounded to three digits, so that equal bundles have equal reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mindmerger.errors import ParityError
from mindmerger.llama import LLM
from mindmerger.model import MergedModel
from mindmerger.tokenizer import QuestionTokenizer
from mindmerger_export.graph import INPUTS, OUTPUT, MergerModule
from mindmerger_export.llm import embedding_rows
from mindmerger_train.checkpoint import Checkpoint

Floats = npt.NDArray[np.float32]

ROWS_MAX_ABS = 1e-4
# (mean, worst) cosine of a row of the quantised graph with torch's.
ROWS_COSINE = {"w8": (0.999, 0.995), "w4": (0.95, 0.85)}
INJECTION_KL = 1e-3
# Mean KL of the first token's distribution. The loose one only finds gross errors: what quantisation costs is reported.
LOGITS_KL_FLOAT, LOGITS_KL_QUANTISED = 0.01, 0.5
GREEDY_TOKENS = 32


@dataclass(frozen=True)
class Row:
    """How near the graph's rows for one text are to torch's."""

    max_abs: float
    cosine_mean: float
    cosine_min: float
    rows: int


def three(value: float) -> float:
    """Three significant digits: enough to judge by, too few to differ between runs of the same export."""
    return float(f"{value:.3g}")


def cosine(value: float) -> float:
    """A cosine to six places: its distance from 1 is what counts."""
    return round(float(value), 6)


# ---------------------------------------------------------------------------------------------------------- rows


def graph_session(path: Path) -> Any:
    """An ONNX Runtime session of the merger graph; ParityError when the file cannot be run."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise ParityError(f"ONNX Runtime cannot run the exported graph ({str(error).splitlines()[0][:200]})") from None


def compare(reference: Floats, found: Floats) -> Row:
    """Rows of torch and of the graph for one text, boundary included (n + 1, d)."""
    if reference.shape != found.shape or not np.isfinite(found).all():
        return Row(float("inf"), float("-inf"), float("-inf"), len(reference))
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(found, axis=1)
    # A boundary row that was never trained is zero on both sides: equal, but without direction.
    directed = norms > 0
    cosines = (reference * found).sum(axis=1)[directed] / norms[directed]
    low, mean = (float(cosines.min()), float(cosines.mean())) if directed.any() else (1.0, 1.0)
    return Row(float(np.abs(reference - found).max()), mean, low, len(reference))


def check_rows(
    module: MergerModule,
    graph: Path,
    tokenizer: QuestionTokenizer,
    keep: npt.NDArray[np.int64] | None,
    texts: dict[str, str],
    precision: str,
) -> dict[str, Any]:
    """Compare rows for each text alone and for all of them in padded batches.

    `module` has the whole vocabulary; `keep` maps the pruned tokenizer's ids to its ids. Raises ParityError outside the
    bounds of `precision`.
    """
    session = graph_session(graph)
    ids = {key: tokenizer.encode(text) for key, text in texts.items()}
    reference = {key: _torch_rows(module, row, keep) for key, row in ids.items()}
    alone = {key: compare(reference[key], _graph_rows(session, [row])[0]) for key, row in ids.items()}
    padded: list[Row] = []
    keys = list(ids)
    for start in range(0, len(keys), 8):
        batch = keys[start : start + 8]
        found = _graph_rows(session, [ids[key] for key in batch])
        padded += [compare(reference[key], rows) for key, rows in zip(batch, found, strict=True)]
    report = {
        "texts": len(texts),
        **_summary(list(alone.values())),
        "padded_batches": _summary(padded),
        "worst_by_text": {key: cosine(row.cosine_min) for key, row in alone.items()},
    }
    for name, rows in (("rows", list(alone.values())), ("rows of padded batches", padded)):
        _judge_rows(name, rows, precision)
    return report


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    total = sum(row.rows for row in rows)
    return {
        "max_abs": three(max(row.max_abs for row in rows)),
        "cosine_mean": cosine(sum(row.cosine_mean * row.rows for row in rows) / total),
        "cosine_min": cosine(min(row.cosine_min for row in rows)),
    }


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


def _torch_rows(module: MergerModule, ids: Sequence[int], keep: npt.NDArray[np.int64] | None) -> Floats:
    row = np.asarray(ids, dtype=np.int64)
    tensor = torch.from_numpy(row if keep is None else keep[row]).unsqueeze(0)
    with torch.no_grad():
        return cast(Floats, module(tensor, torch.ones_like(tensor))[0].numpy())


def _graph_rows(session: Any, batch: Sequence[Sequence[int]]) -> list[Floats]:
    longest = max(len(row) for row in batch)
    ids = np.zeros((len(batch), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(batch):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    (output,) = session.run([OUTPUT], dict(zip(INPUTS, (ids, mask), strict=True)))
    # The boundary is the last row of the whole length; padded positions lie between.
    return [np.concatenate([output[index, : len(row)], output[index, -1:]]) for index, row in enumerate(batch)]


# ----------------------------------------------------------------------------------------------------- injection


def kl(p_logits: Floats, q_logits: Floats) -> float:
    """KL(p ‖ q) of two rows of logits, in float64."""
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (p_logits, q_logits))
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = x - x.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def find_injection_scale(gguf: Path, text: str, bos_id: int | None, threads: int | None = None) -> dict[str, Any]:
    """Which multiple of `E[id]` reproduces llama.cpp's token path: {"scale", "identical", "kl", "tried"}.

    The same tokens are decoded twice with the same split of batches, as ids and as rows of the table. Raises ParityError
    when neither 1 nor √d does.
    """
    with LLM(gguf, context=256, threads=threads) as llm:
        ids = llm.tokenise(text)[:64]
        embeddings = embedding_rows(gguf, ids)

        def start() -> None:
            llm.clear()
            if bos_id is not None:
                llm.decode_tokens([bos_id], logits=False)

        start()
        llm.decode_tokens(ids)
        wanted = llm.logits()
        tried: dict[float, tuple[float, bool]] = {}
        for scale in (1.0, float(np.sqrt(np.float32(llm.width)))):
            start()
            llm.decode_rows(embeddings * np.float32(scale), logits=True)
            found = llm.logits()
            tried[scale] = kl(wanted, found), bool(np.array_equal(wanted, found))
            if tried[scale][1]:
                break
    best = min(tried, key=lambda scale: tried[scale][0])
    divergence, identical = tried[best]
    if not divergence <= INJECTION_KL:
        raise ParityError(
            f"no injection_scale reproduces the LLM's token path (KL {three(divergence)} at {three(best)}): this LLM cannot "
            "take a soft prompt through llama.cpp"
        )
    return {
        "scale": best,
        "identical": identical,
        "kl": three(max(divergence, 0.0)),
        "tried": {f"{scale:.6g}": three(max(value, 0.0)) for scale, (value, _) in tried.items()},
    }


# ------------------------------------------------------------------------------------------------ logits and text


class TorchAnswers:
    """The papers' way of running: torch computes rows, logits and greedy tokens for a question."""

    def __init__(self, checkpoint: Checkpoint, module: MergerModule, llm: nn.Module, encoder_tokenizer: Any) -> None:
        self._prompt = checkpoint.prompt
        self._module = module
        self._llm = cast(Any, llm)
        self._tokenizer = encoder_tokenizer

    def rows(self, question: str) -> Floats:
        """The soft prompt of `question`, the boundary row last."""
        return _torch_rows(self._module, self._tokenizer.encode(question).ids, None)

    @torch.no_grad()
    def _prefill(self, rows: Floats, prompt_ids: Sequence[int]) -> Any:
        embed = self._llm.get_input_embeddings()
        bos = [] if self._prompt.bos_id is None else [self._prompt.bos_id]
        parts = [
            embed(torch.tensor([bos], dtype=torch.int64)),
            torch.from_numpy(rows).unsqueeze(0).to(embed.weight.dtype),
            embed(torch.tensor([list(prompt_ids)], dtype=torch.int64)),
        ]
        return self._llm(inputs_embeds=torch.cat(parts, dim=1), use_cache=True)

    def logits(self, rows: Floats, prompt_ids: Sequence[int]) -> Floats:
        """Logits of the first token, given these rows."""
        return cast(Floats, self._prefill(rows, prompt_ids).logits[0, -1].float().numpy())

    @torch.no_grad()
    def answer(self, question: str, prompt_ids: Sequence[int], n: int) -> tuple[Floats, list[int], list[float]]:
        """Logits of the first token, greedy ids (up to `n`, a stop id last), and each one's margin over the second."""
        output = self._prefill(self.rows(question), prompt_ids)
        first: Floats = output.logits[0, -1].float().numpy()
        tokens: list[int] = []
        margins: list[float] = []
        while True:
            top = output.logits[0, -1].float().topk(2)
            tokens.append(int(top.indices[0]))
            margins.append(float(top.values[0] - top.values[1]))
            if tokens[-1] in self._prompt.stop_ids or len(tokens) >= n:
                return first, tokens, margins
            output = self._llm(
                input_ids=torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True
            )


@dataclass(frozen=True)
class Answer:
    """One question, torch beside the bundle. `kl` is end to end, `llm_kl` of the LLM alone: both given the bundle's rows.

    `margin` is how far torch's token at the first differing place (None: no difference) was ahead of its second.
    """

    kl: float
    llm_kl: float
    top1: bool
    place: int | None
    margin: float | None


def compare_answer(
    reference: TorchAnswers, model: MergedModel, llm_tokenizer: Any, question: str, tokens: int = GREEDY_TOKENS
) -> Answer:
    """Compare one question's logits and greedy continuation. ParityError when its prompt has other ids."""
    prompt_ids = llm_tokenizer.encode(model.manifest.prompt.render(question))
    if prompt_ids != model.prompt_ids(question):
        raise ParityError(f"llama.cpp and transformers tokenise the prompt of {question[:60]!r} differently")
    wanted_logits, wanted, margins = reference.answer(question, prompt_ids, tokens)
    found_logits, found = model.prefill(question), model.continuation_ids(question, tokens)
    same_rows = reference.logits(model.soft_prompt_rows(question), prompt_ids)
    pairs = enumerate(zip(wanted, found, strict=False))
    place = None if wanted == found else next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(found)) - 1)
    return Answer(
        kl=max(kl(wanted_logits, found_logits), 0.0),
        llm_kl=max(kl(same_rows, found_logits), 0.0),
        top1=bool(wanted_logits.argmax() == found_logits.argmax()),
        place=place,
        margin=None if place is None else margins[place],
    )


def check_answers(
    reference: TorchAnswers,
    model: MergedModel,
    llm_tokenizer: Any,
    questions: Sequence[tuple[str, str]],
    float_llm: bool,
    tokens: int = GREEDY_TOKENS,
) -> dict[str, Any]:
    """Compare first-token logits and greedy continuations for each (language, question).

    The rows have their own bounds (`check_rows`), so what is judged here is the LLM given the same rows; `float_llm`: its
    weights are not quantised. Raises ParityError outside the bound.
    """
    answers = [compare_answer(reference, model, llm_tokenizer, question, tokens) for _, question in questions]
    mean = float(np.mean([answer.llm_kl for answer in answers]))
    bound = LOGITS_KL_FLOAT if float_llm else LOGITS_KL_QUANTISED
    if not mean <= bound:
        raise ParityError(
            f"the bundle's LLM differs from torch's by a KL of {three(mean)} on average (at most {bound} is allowed)"
        )
    return {
        "questions": len(questions),
        "kl_mean": three(float(np.mean([answer.kl for answer in answers]))),
        "kl_max": three(max(answer.kl for answer in answers)),
        "llm_kl_mean": three(mean),
        "top1_agreement": three(sum(answer.top1 for answer in answers) / len(answers)),
        "greedy_tokens": tokens,
        "greedy_identical": three(sum(answer.place is None for answer in answers) / len(answers)),
        # Two tokens that torch itself hardly tells apart may swap for any rounding.
        "differences": [
            {"question": question, "position": answer.place, "torch_margin": three(answer.margin)}
            for (_, question), answer in zip(questions, answers, strict=True)
            if answer.margin is not None
        ],
    }
