"""A question on its way to the LLM: checked, tokenised, and known to fit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import perf_counter

from mindmerger.errors import InputError
from mindmerger.frames import framed
from mindmerger.i18n import _
from mindmerger.llama import LLM
from mindmerger.manifest import Manifest
from mindmerger.steering import Wish
from mindmerger.tokenizer import QuestionTokenizer, check_question


@dataclass(frozen=True)
class Plan:
    """A question that was checked and fits: everything that can be refused has been.

    `sources` says whether the soft prompt and the question may be in the sequence; the gate may leave one of them out yet.
    `prompt_ids` are there without the question too where the gate has to be asked.
    """

    question: str
    encoder_ids: list[int]
    prompt_ids: list[int]
    max_new_tokens: int
    tokenise_ms: float
    wish: Wish = field(default_factory=Wish)
    sources: tuple[bool, bool] = (True, True)

    @property
    def soft_prompt_rows(self) -> int:
        """Rows of the soft prompt, the boundary row among them."""
        return len(self.encoder_ids) + 1 if self.encoder_ids else 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt in the sequence."""
        return len(self.prompt_ids) if self.sources[1] else 0

    @property
    def positions(self) -> int:
        """Positions of the LLM that the question takes at most, without BOS."""
        return self.soft_prompt_rows + self.prompt_tokens


class Planner:
    """The front of a loaded bundle: both tokenisers and the prompt. Safe to share between threads."""

    def __init__(self, manifest: Manifest, tokenizer: QuestionTokenizer, llm: LLM) -> None:
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._llm = llm

    def read(self, question: str, wish: Wish | None = None, sources: tuple[bool, bool] = (True, True)) -> Plan:
        """Check and tokenise a question; whether it fits is not looked at. InputError where it cannot be asked."""
        began = perf_counter()
        soft_prompt, in_prompt = sources
        question = check_question(question)
        self._tokenizer.check_length(question)
        encoder_ids = self._tokenizer.encode(question) if soft_prompt else []
        if soft_prompt and wish is not None:
            encoder_ids = framed(encoder_ids, self._manifest.encoder.frames, wish.language)
        # The gate reads the prompt, whether or not the LLM will.
        asked = in_prompt or (soft_prompt and self._manifest.gate is not None)
        prompt_ids = self._manifest.prompt.ids(question, self._llm.tokenise) if asked else []
        tokenise_ms = (perf_counter() - began) * 1e3
        return Plan(question, encoder_ids, prompt_ids, 1, tokenise_ms, wish or Wish(), sources)

    def plan(self, question: str, max_new_tokens: int | None, wish: Wish, sources: tuple[bool, bool]) -> Plan:
        """`read`, and everything else that can be refused is refused here, by InputError.

        Without `max_new_tokens` the answer gets the bundle's number of tokens, or what room there is.
        """
        plan = self.read(question, wish, sources)
        length = (self._manifest.prompt.bos_id is not None) + plan.positions
        wanted = 1 if max_new_tokens is None else max_new_tokens
        if length + wanted > self._llm.context:
            raise InputError(
                _(
                    "the question takes {length} positions ({rows} of the soft prompt, {prompt} of the prompt) "
                    "and {wanted} new tokens do not fit beside it into the context of {context}: shorten the "
                    "question, ask for fewer new tokens or load with a larger context"
                ).format(
                    length=length,
                    rows=plan.soft_prompt_rows,
                    prompt=plan.prompt_tokens,
                    wanted=wanted,
                    context=self._llm.context,
                )
            )
        if max_new_tokens is None:
            max_new_tokens = min(self._manifest.generation.max_new_tokens, self._llm.context - length)
        return replace(plan, max_new_tokens=max_new_tokens)
