"""Does the bundle answer as torch answers? Every figure here is measured on the files that will be shipped.

Three comparisons, beside that of the graph (rows.py): embedding rows injected into llama.cpp against its own token path,
which also finds `injection_scale`; the logits of the first token; greedy continuations. A figure outside its bound raises
ParityError, which ends the export. Figures are rounded to three digits, so that equal bundles have equal reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mindmerger.embeddings import EmbeddingTable
from mindmerger.errors import ParityError
from mindmerger.graph import GraphInput
from mindmerger.llama import LLM
from mindmerger.manifest import Manifest
from mindmerger.model import MergedModel
from mindmerger.steering import Steered, Wish, steer, wished_sources
from mindmerger_export.graph import MergerModule
from mindmerger_export.rows import three, torch_merge
from mindmerger_export.talk import Talk
from mindmerger_train.checkpoint import Checkpoint

Floats = npt.NDArray[np.float32]

INJECTION_KL = 1e-3
# Mean KL of the first token's distribution. The loose one only finds gross errors: what quantisation costs is reported.
LOGITS_KL_FLOAT, LOGITS_KL_QUANTISED = 0.01, 0.5
GREEDY_TOKENS = 32


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
        embeddings = EmbeddingTable(gguf).rows(ids)

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
    """The papers' way of running: torch computes rows, weights, logits and greedy tokens for a question.

    The rules of steering (which weights, what is filtered) are the runtime's; what they work on is torch's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        module: MergerModule,
        llm: nn.Module,
        encoder_tokenizer: Any,
        filter_threshold: float = 0.1,
    ) -> None:
        self.prompt = checkpoint.prompt
        self._module = module
        self._llm = cast(Any, llm)
        self._tokenizer = encoder_tokenizer
        self._threshold = filter_threshold
        self._scale = module.embedding_scale

    @torch.no_grad()
    def _embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Rows as they are in the LLM's table, like the module's."""
        rows = self._llm.get_input_embeddings()(torch.tensor([list(ids)], dtype=torch.int64))
        return cast(torch.Tensor, rows if self._scale == 1.0 else rows / self._scale)

    def steered(self, question: str, prompt_ids: Sequence[int], wish: Wish | None = None) -> Steered:
        """Both sources of `question` as the LLM is given them."""
        wish = wish or Wish()
        prompt = cast(Floats, self._embed(prompt_ids)[0].float().numpy())
        gate = self._module.merger.gate
        language = None if gate is None else gate.spec.distribution([wish.language])[0].numpy()
        ids = self._tokenizer.encode(question, wish.language or "").ids
        merged = torch_merge(self._module, GraphInput(ids, prompt, language))
        sources = wished_sources(wish, self._threshold, self._module.merger.method != "langbridge")
        return steer(merged.rows, prompt, merged.opinion, wish, self._threshold, sources)

    @torch.no_grad()
    def _prefill(self, steered: Steered, prompt_ids: Sequence[int]) -> Any:
        bos = [] if self.prompt.bos_id is None else [self.prompt.bos_id]
        parts = [self._embed(bos)]
        if steered.soft_prompt is not None:
            parts.append(torch.from_numpy(steered.soft_prompt).unsqueeze(0))
        if steered.prompt is not None:
            parts.append(torch.from_numpy(steered.prompt).unsqueeze(0))
        elif steered.question:
            parts.append(self._embed(prompt_ids))
        rows = torch.cat([part.to(parts[0].dtype) for part in parts], dim=1)
        return self._llm(inputs_embeds=rows * self._scale, use_cache=True)

    def logits(self, steered: Steered, prompt_ids: Sequence[int]) -> Floats:
        """Logits of the first token, given these sources."""
        return cast(Floats, self._prefill(steered, prompt_ids).logits[0, -1].float().numpy())

    @torch.no_grad()
    def answer(
        self, question: str, prompt_ids: Sequence[int], n: int, wish: Wish | None = None
    ) -> tuple[Floats, list[int], list[float]]:
        """Logits of the first token, greedy ids (up to `n`, a stop id last), and each one's margin over the second."""
        output = self._prefill(self.steered(question, prompt_ids, wish), prompt_ids)
        first: Floats = output.logits[0, -1].float().numpy()
        tokens: list[int] = []
        margins: list[float] = []
        while True:
            top = output.logits[0, -1].float().topk(2)
            tokens.append(int(top.indices[0]))
            margins.append(float(top.values[0] - top.values[1]))
            if tokens[-1] in self.prompt.stop_ids or len(tokens) >= n:
                return first, tokens, margins
            output = self._llm(
                input_ids=torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True
            )


@dataclass(frozen=True)
class Answer:
    """One question, torch beside the bundle. `kl` is end to end, `llm_kl` of the LLM alone: both given the bundle's rows.

    `margin` is how far torch's token at the first differing place (None: no difference) was ahead of its second. The
    weights are the bundle's means (0: left out); `weight_distance` is how far they are from torch's, the larger of both.
    """

    kl: float
    llm_kl: float
    top1: bool
    place: int | None
    margin: float | None
    encoder_weight: float
    llm_weight: float
    weight_distance: float


class Asked(TypedDict, total=False):
    """Keywords of the runtime's calls."""

    language: str | None


def asked_in(manifest: Manifest, language: str) -> Asked:
    """An encoder that is told the language is told it where it can be; a gate decides for itself, as it does for users."""
    told = language in manifest.encoder.frames and manifest.gate is None
    return {"language": language} if told else {}


def compare_answer(
    reference: TorchAnswers,
    model: MergedModel,
    llm_tokenizer: Any,
    question: str,
    tokens: int = GREEDY_TOKENS,
    language: str = "",
) -> Answer:
    """Compare one question's logits and greedy continuation. ParityError when its prompt has other ids."""
    options = asked_in(model.manifest, language)
    wish = Wish(options.get("language"))
    prompt_ids = llm_tokenizer.prompt_ids(reference.prompt, question)
    if prompt_ids != model.prompt_ids(question):
        raise ParityError(f"llama.cpp and transformers tokenise the prompt of {question[:60]!r} differently")
    wanted_logits, wanted, margins = reference.answer(question, prompt_ids, tokens, wish)
    found_logits = model.prefill(question, **options)
    found = model.continuation_ids(question, tokens, **options)
    wanted_sources = reference.steered(question, prompt_ids, wish)
    found_sources = model.steered(question, **options)
    same_rows = reference.logits(found_sources, prompt_ids)
    pairs = enumerate(zip(wanted, found, strict=False))
    place = None if wanted == found else next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(found)) - 1)
    return Answer(
        kl=max(kl(wanted_logits, found_logits), 0.0),
        llm_kl=max(kl(same_rows, found_logits), 0.0),
        top1=bool(wanted_logits.argmax() == found_logits.argmax()),
        place=place,
        margin=None if place is None else margins[place],
        encoder_weight=found_sources.encoder_weight,
        llm_weight=found_sources.llm_weight,
        weight_distance=max(
            abs(wanted_sources.encoder_weight - found_sources.encoder_weight),
            abs(wanted_sources.llm_weight - found_sources.llm_weight),
        ),
    )


def check_answers(
    reference: TorchAnswers,
    model: MergedModel,
    llm_tokenizer: Any,
    questions: Sequence[tuple[str, str]],
    float_llm: bool,
    tokens: int = GREEDY_TOKENS,
    talk: Talk | None = None,
) -> dict[str, Any]:
    """Compare first-token logits and greedy continuations for each (language, question).

    The rows have their own bounds (`check_rows`), so what is judged here is the LLM given the same rows; `float_llm`: its
    weights are not quantised. Raises ParityError outside the bound.
    """
    asked = (talk or Talk()).each(questions)
    answers = [compare_answer(reference, model, llm_tokenizer, text, tokens, code) for code, text in asked]
    mean = float(np.mean([answer.llm_kl for answer in answers]))
    bound = LOGITS_KL_FLOAT if float_llm else LOGITS_KL_QUANTISED
    if not mean <= bound:
        raise ParityError(
            f"the bundle's LLM differs from torch's by a KL of {three(mean)} on average (at most {bound} is allowed)"
        )
    report: dict[str, Any] = {
        "questions": len(questions),
        "kl_mean": three(float(np.mean([answer.kl for answer in answers]))),
        "kl_max": three(max(answer.kl for answer in answers)),
        "llm_kl_mean": three(mean),
        "top1_agreement": three(sum(answer.top1 for answer in answers) / len(answers)),
        "greedy_tokens": tokens,
        "greedy_identical": three(sum(answer.place is None for answer in answers) / len(answers)),
        "by_language": {
            language: _answers_of([a for a, (code, _) in zip(answers, questions, strict=True) if code == language])
            for language in dict.fromkeys(code for code, _ in questions)
        },
        # Two tokens that torch itself hardly tells apart may swap for any rounding.
        "differences": [
            {"question": question, "position": answer.place, "torch_margin": three(answer.margin)}
            for (_, question), answer in zip(questions, answers, strict=True)
            if answer.margin is not None
        ],
    }
    if model.manifest.gate is not None:
        report["weights"] = {
            "encoder_weight_mean": three(float(np.mean([answer.encoder_weight for answer in answers]))),
            "llm_weight_mean": three(float(np.mean([answer.llm_weight for answer in answers]))),
            "distance_max": three(max(answer.weight_distance for answer in answers)),
            "soft_prompt_left_out": sum(answer.encoder_weight == 0 for answer in answers),
            "question_left_out": sum(answer.llm_weight == 0 for answer in answers),
        }
    return report


def _answers_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """The figures of one language."""
    return {
        "questions": len(answers),
        "kl_mean": three(float(np.mean([answer.kl for answer in answers]))),
        "llm_kl_mean": three(float(np.mean([answer.llm_kl for answer in answers]))),
        "top1_agreement": three(sum(answer.top1 for answer in answers) / len(answers)),
        "greedy_identical": three(sum(answer.place is None for answer in answers) / len(answers)),
    }
