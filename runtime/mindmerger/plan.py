"""A question on its way to the LLM: checked, tokenised, and known to fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """A question that was checked and fits: everything that can be refused has been."""

    question: str
    encoder_ids: list[int]
    prompt_ids: list[int]
    max_new_tokens: int
    tokenise_ms: float

    @property
    def soft_prompt_rows(self) -> int:
        """Rows of the soft prompt, the boundary row among them."""
        return len(self.encoder_ids) + 1 if self.encoder_ids else 0

    @property
    def positions(self) -> int:
        """Positions of the LLM that the question takes, without BOS."""
        return self.soft_prompt_rows + len(self.prompt_ids)
