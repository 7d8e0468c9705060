"""A checkpoint that answers, in torch: encoder, merger, gate and LLM as they were trained.

How the gate's weights, filters and the caller's wishes become rows is the runtime's own rule (mindmerger.steering). What this
module does not know: benchmarks, scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from mindmerger.errors import InputError
from mindmerger.steering import Opinion, Wish, steer, wished_sources
from mindmerger.tokenizer import check_question
from mindmerger_train import encoders, llms
from mindmerger_train.checkpoint import load_checkpoint, resolve_checkpoint
from mindmerger_train.evaluation.backends import Reply
from mindmerger_train.evaluation.decoding import Rules, decode
from mindmerger_train.gate import UNKNOWN, Weights
from mindmerger_train.language_codes import DEFAULT
from mindmerger_train.steering import embed_prompts, weigh
from mindmerger_train.transfer import CPU, best_device, send, whole_numbers
from mindmerger_train.trunk import embedding_of

SLOTS = 16
# The bundle's default (docs/bundle.md); a checkpoint has no threshold of its own.
FILTER_THRESHOLD = 0.1


@dataclass(frozen=True)
class _Asked:
    """A question that fits. `language`: what encoder and gate are told it is in."""

    index: int
    language: str | None
    encoder_ids: list[int]
    prompt_ids: list[int]

    @property
    def length(self) -> int:
        return len(self.encoder_ids) + len(self.prompt_ids)


class TorchBackend:
    """A loaded checkpoint, on the GPU if there is one. float32, but the LLM in bfloat16 on a GPU."""

    def __init__(self, path: str, threads: int | None = None, slots: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = best_device()
        self._slots = slots or SLOTS
        checkpoint = self._checkpoint = load_checkpoint(resolve_checkpoint(path))
        dtype = torch.float32 if self._device == CPU else torch.bfloat16
        self._llm = llms.load_llm(checkpoint.llm, dtype, checkpoint.adapter_path()).to(self._device)
        self._tokenizer = llms.load_llm_tokenizer(checkpoint.llm)
        self._merger = checkpoint.merger.to(self._device).eval().requires_grad_(False)
        self._encoder: encoders.Encoder | None = None
        if checkpoint.merger.method != "mono":
            self._encoder = encoders.load_encoder(checkpoint.encoder).to(self._device)
            self._encoder_tokenizer = encoders.load_tokenizer(checkpoint.encoder)
            # a question that is cut would be answered as if it were whole
            self._encoder_tokenizer.no_truncation()
        config = cast(Any, self._llm).config.get_text_config()
        self._context = int(getattr(config, "max_position_embeddings", 0) or 2**31)

    def close(self) -> None:
        """Nothing is open but memory."""
        del self._llm, self._encoder

    def generate(
        self,
        questions: Sequence[str],
        *,
        max_tokens: int,
        calculator: bool | None,
        options: Mapping[str, Any],
        languages: Sequence[str | None] = (),
    ) -> Iterator[Reply]:
        wish, sources = self._wishes(**options)
        rules = Rules(
            frozenset(self._checkpoint.prompt.stop_ids),
            max_tokens,
            self._checkpoint.calculator if calculator is None else calculator,
        )
        asked = []
        for index, question in enumerate(questions):
            language = (languages[index] if languages else None) or wish.language
            try:
                asked.append(self._prepare(index, question, sources, max_tokens, language))
            except InputError as error:
                yield Reply(index, error=str(error))
        # of about the same length: padding is work too
        asked.sort(key=lambda one: one.length)
        for start in range(0, len(asked), self._slots):
            part = asked[start : start + self._slots]
            prefixes = self._prefixes(part, wish, sources)
            for answer in decode(self._llm, prefixes, self._tokenizer, rules):
                text = self._tokenizer.decode(answer.ids)
                yield Reply(part[answer.place].index, text, str(answer.finish), len(answer.ids), answer.forced)

    def _wishes(
        self,
        *,
        soft_prompt: bool = True,
        question_in_prompt: bool | None = None,
        language: str | None = None,
        encoder_weight: float | None = None,
        llm_weight: float | None = None,
    ) -> tuple[Wish, tuple[bool, bool]]:
        """The runtime's options → what is wished for, and which sources may be there: (soft prompt, question)."""
        method = self._merger.method
        if not soft_prompt or method == "mono":
            encoder_weight = 0.0
        if question_in_prompt is False:
            llm_weight = 0.0
        wish = Wish(language, encoder_weight, llm_weight)
        by_default = method != "langbridge" or question_in_prompt is True
        return wish, wished_sources(wish, FILTER_THRESHOLD, by_default)

    def _prepare(
        self, index: int, question: str, sources: tuple[bool, bool], max_tokens: int, language: str | None = None
    ) -> _Asked:
        question = check_question(question)
        encoder_ids, prompt_ids = [], []
        if sources[0]:
            spoken = DEFAULT if language in (None, UNKNOWN) else str(language)
            encoder_ids = self._encoder_tokenizer.encode(question, spoken).ids
            limit = self._checkpoint.encoder.max_tokens
            if len(encoder_ids) > limit:
                raise InputError(f"the question has {len(encoder_ids)} tokens; the encoder reads at most {limit}")
        if sources[1]:
            prompt_ids = self._tokenizer.prompt_ids(self._checkpoint.prompt, question)
        length = 2 + len(encoder_ids) + len(prompt_ids) + max_tokens
        if length > self._context:
            raise InputError(f"the question and its answer take {length} positions; the LLM has {self._context}")
        return _Asked(index, language, encoder_ids, prompt_ids)

    @torch.no_grad()
    def _prefixes(self, asked: Sequence[_Asked], wish: Wish, sources: tuple[bool, bool]) -> list[torch.Tensor]:
        """What the LLM is given for each question, (length, d): BOS, soft prompt, prompt."""
        embed = embedding_of(self._llm)
        bos_id = self._checkpoint.prompt.bos_id
        head = embed(whole_numbers([] if bos_id is None else [bos_id], self._device))
        # one text's ids at a time: a padded table of them is for the gate alone
        prompts = [embed(whole_numbers(one.prompt_ids, self._device)).float() for one in asked]
        soft, opinions = self._merged(asked, sources)
        prefixes = []
        for rows, prompt, opinion in zip(soft, prompts, opinions, strict=True):
            steered = steer(
                None if rows is None else rows.cpu().numpy(),
                prompt.cpu().numpy(),
                opinion,
                wish,
                FILTER_THRESHOLD,
                sources,
            )
            parts = [head]
            if steered.soft_prompt is not None:
                parts.append(torch.as_tensor(steered.soft_prompt))
            if steered.question:
                parts.append(prompt if steered.prompt is None else torch.as_tensor(steered.prompt))
            prefixes.append(torch.cat([send(part, self._device).to(head.dtype) for part in parts]))
        return prefixes

    def _merged(
        self, asked: Sequence[_Asked], sources: tuple[bool, bool]
    ) -> tuple[list[torch.Tensor | None], list[Opinion | None]]:
        """The unweighted soft prompt of each question, and what the gate says of it."""
        if not sources[0] or self._encoder is None:
            return [None] * len(asked), [None] * len(asked)
        states, mask = self._encoder.states([one.encoder_ids for one in asked])
        merged = self._merger(states)
        soft: list[torch.Tensor | None] = [
            torch.cat([merged[place, : len(one.encoder_ids)], merged[place, -1:]]) for place, one in enumerate(asked)
        ]
        gate = self._merger.gate
        # alone, the soft prompt has nothing to be weighed against
        if gate is None or not sources[1]:
            return soft, [None] * len(asked)
        prompt, prompt_mask = embed_prompts(embedding_of(self._llm), [one.prompt_ids for one in asked])
        told = [one.language for one in asked]
        weights = weigh(gate, states, mask, merged, prompt.float(), prompt_mask, told)
        return soft, [_opinion(weights, place, one) for place, one in enumerate(asked)]


def _opinion(weights: Weights, place: int, asked: _Asked) -> Opinion:
    return Opinion(
        encoder_weight=weights.encoder[place][: len(asked.encoder_ids)].float().cpu().numpy(),
        llm_weight=weights.llm[place][: len(asked.prompt_ids)].float().cpu().numpy(),
        language=weights.language[place].float().cpu().numpy(),
    )
