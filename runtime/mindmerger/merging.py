"""From planned questions to what the LLM is given: the merger graph, the gate's opinion, and the weights at work.

One place for one question and for many, so that both are merged by the same rules. Knows nothing about how the LLM decodes
what comes out of here, nor about text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mindmerger.errors import InputError
from mindmerger.frames import check_framed
from mindmerger.generation import Explanation
from mindmerger.graph import GraphInput, Merged, MergerGraph
from mindmerger.i18n import _
from mindmerger.llama import LLM
from mindmerger.manifest import Manifest
from mindmerger.plan import Plan
from mindmerger.steering import Steered, Wish, given_language, left_out, named_distribution, steer, wished_sources

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ready:
    """What stands before the answer, as the LLM is given it: `parts`, BOS first, each rows or tokens for calls of their own.

    One part wherever the prompt's tokens can be rows too, because a call of many positions costs much less than several of
    few. Rows are multiplied by `injection_scale`. `language` is the gate's distribution by code, the likeliest first (None:
    no gate was asked); the weights are the means at work, 0 where a source is left out.
    """

    parts: tuple[Floats | list[int], ...]
    soft_prompt_rows: int  # the boundary row among them
    prompt_tokens: int
    language: dict[str, float] | None
    encoder_weight: float
    llm_weight: float

    def calls(self) -> Iterator[tuple[Floats | list[int], bool]]:
        """The parts in their order, and whether the logits after it are wanted. Never empty, and no part is."""
        for index, part in enumerate(self.parts, start=1):
            yield part, index == len(self.parts)


class Merging:
    """The encoder's half of a loaded bundle, with the LLM's embedding table. Safe to share between threads."""

    def __init__(self, manifest: Manifest, graph: MergerGraph, llm: LLM) -> None:
        self._manifest = manifest
        self._graph = graph
        self._llm = llm

    def wish(
        self,
        language: str | None,
        encoder_weight: float | None,
        llm_weight: float | None,
        soft_prompt: bool = True,
        question_in_prompt: bool | None = None,
    ) -> tuple[Wish, tuple[bool, bool]]:
        """What the caller wants, and which sources it leaves: (soft prompt, question).

        `soft_prompt=False` is an encoder weight of 0, `question_in_prompt=False` an LLM weight of 0. Raises InputError for
        weights out of range, unknown languages, and options that contradict each other.
        """
        gate, frames = self._manifest.gate, self._manifest.encoder.frames
        if frames and language is not None:
            check_framed(language, frames)
        if gate is not None or not frames:
            given_language(language, gate)
        wish = Wish(language, encoder_weight, llm_weight)
        threshold = self._manifest.filter_threshold
        if not soft_prompt and encoder_weight:
            raise _contradiction("soft_prompt=False", "encoder_weight", encoder_weight)
        if question_in_prompt is not None and llm_weight is not None and question_in_prompt != (llm_weight > 0):
            raise _contradiction(f"question_in_prompt={question_in_prompt}", "llm_weight", llm_weight)
        if not soft_prompt:
            wish = Wish(language, 0.0, wish.llm_weight)
        if question_in_prompt is False:
            wish = Wish(language, wish.encoder_weight, 0.0)
        # LangBridge trains on the soft prompt alone.
        by_default = bool(question_in_prompt) or self._manifest.method != "langbridge"
        return wish, wished_sources(wish, threshold, by_default)

    def merged(self, plans: Sequence[Plan]) -> list[Merged]:
        """Rows and opinions of questions that have encoder ids, in one run of the graph."""
        gate = self._manifest.gate
        return self._graph.merge(
            [
                GraphInput(plan.encoder_ids)
                if gate is None
                else GraphInput(
                    plan.encoder_ids, self.embeddings(plan.prompt_ids), given_language(plan.wish.language, gate)
                )
                for plan in plans
            ]
        )

    def embeddings(self, prompt_ids: Sequence[int]) -> Floats:
        """The LLM's embeddings of a prompt (m, d)."""
        return self._llm.embeddings.rows(prompt_ids)

    def steered(self, plan: Plan, merged: Merged | None) -> Steered:
        """The two sources of a question, weighted; `merged` is None where the plan has no soft prompt."""
        opinion = None if merged is None else merged.opinion
        rows = None if merged is None else merged.rows
        # Without a gate and a wish the weight is 1, and the prompt goes as tokens.
        weighted = opinion is not None or plan.wish.llm_weight not in (None, 1)
        prompt = self.embeddings(plan.prompt_ids) if weighted else None
        return steer(rows, prompt, opinion, plan.wish, self._manifest.filter_threshold, plan.sources)

    def ready(self, plans: Sequence[Plan]) -> list[Ready]:
        """What the LLM is given for each question; the graph runs once, for those with a soft prompt."""
        encoded = [plan for plan in plans if plan.encoder_ids]
        found = iter(self.merged(encoded) if encoded else [])
        return [self._ready(plan, next(found) if plan.encoder_ids else None) for plan in plans]

    def _ready(self, plan: Plan, merged: Merged | None) -> Ready:
        steered = self.steered(plan, merged)
        gate, opinion = self._manifest.gate, None if merged is None else merged.opinion
        prompt_ids = plan.prompt_ids if steered.question else []
        return Ready(
            parts=self._parts(steered, prompt_ids),
            soft_prompt_rows=0 if steered.soft_prompt is None else len(steered.soft_prompt),
            prompt_tokens=len(prompt_ids),
            language=None if gate is None or opinion is None else named_distribution(opinion, gate),
            encoder_weight=steered.encoder_weight,
            llm_weight=steered.llm_weight,
        )

    def _parts(self, steered: Steered, prompt_ids: list[int]) -> tuple[Floats | list[int], ...]:
        """BOS, soft prompt and prompt in as few calls as can be.

        Tokens alone stay tokens. Beside rows they become rows too, which are the same to the LLM to the bit; where the
        table is of a type that is not read to the bit, tokens and rows take turns.
        """
        bos = self._manifest.prompt.bos_id
        head = [] if bos is None else [bos]
        tail = prompt_ids if steered.prompt is None else []
        rows = [part for part in (steered.soft_prompt, steered.prompt) if part is not None]
        if not rows:
            return ([*head, *tail],)
        if self._llm.embeddings.exact:
            return (self._scaled(np.concatenate([self.embeddings(head), *rows, self.embeddings(tail)])),)
        return tuple(part for part in (head, self._scaled(np.concatenate(rows)), tail) if len(part))

    def explain(self, plan: Plan) -> Explanation:
        """What the gate says of a question that has encoder ids."""
        (merged,) = self.merged([plan])
        gate, opinion = self._manifest.gate, merged.opinion
        if gate is None or opinion is None:
            return Explanation(plan.question, None, 1.0, 1.0, None)
        return Explanation(
            plan.question,
            named_distribution(opinion, gate),
            float(opinion.encoder_weight.mean()),
            float(opinion.llm_weight.mean()),
            left_out(opinion, self._manifest.filter_threshold),
        )

    def _scaled(self, rows: Floats) -> Floats:
        scale = self._manifest.injection_scale
        return rows if scale == 1.0 else rows * np.float32(scale)


def _contradiction(switch: str, name: str, weight: float) -> InputError:
    return InputError(
        _("{switch} and {name}={weight} contradict each other: leave one of them out").format(
            switch=switch, name=name, weight=f"{weight:g}"
        )
    )
