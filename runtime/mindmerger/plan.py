"""A question on its way to the LLM: checked, tokenised, and known to fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindmerger.steering import Wish


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
