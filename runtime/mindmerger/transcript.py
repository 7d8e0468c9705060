"""The text of one answer while it grows: tokens in; characters, the calculator's tokens and the end of the answer out.

One question and sixteen at once write their answers by the same rules because both do it here. Knows nothing about how
tokens are drawn or decoded.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from mindmerger.calculator import calculate, pending_expression
from mindmerger.generation import FinishReason
from mindmerger.llama import LLM

_TAIL = 256  # characters: where an annotation for the calculator would be


class Transcript:
    """An answer being written. `finish` is None until a token, a stop string or the limit has ended it.

    After `take`, `forced` are the tokens that the calculator puts behind the one taken; they are part of the answer.
    """

    def __init__(
        self, llm: LLM, stop_ids: Collection[int], limit: int, *, calculator: bool, stop: Sequence[str] = ()
    ) -> None:
        self._llm = llm
        self._stop_ids = stop_ids
        self._limit = limit
        self._calculator = calculator
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tail = ""
        self._held = ""
        self._chunks: list[str] = []
        self.ids: list[int] = []
        self.forced: list[int] = []
        self.forced_count = 0
        self.finish: FinishReason | None = None
        self.stop_id: int | None = None

    @property
    def text(self) -> str:
        return "".join(self._chunks)

    def take(self, token: int) -> str:
        """Append a drawn token. Returns the text that can be shown now: whole characters, and no part of a stop string."""
        self.forced = []
        if token in self._stop_ids:
            self.finish, self.stop_id = "stop", token
            return self._show(self._held + self._decoder.decode(b"", True))
        ids = self.ids
        ids.append(token)
        piece = self._llm.piece(token)
        text = self._decoder.decode(piece)
        if self._calculator:
            self._tail = (self._tail + text)[-_TAIL:]
            if piece.endswith(b"=") and (expression := pending_expression(self._tail)) is not None:
                text += self._compute(expression)
        if self._stop:
            text = self._hold_back(text)
            if self.finish is not None:
                return self._show(text)
        if len(ids) >= self._limit:
            self.finish = "length"
            text += self._held + self._decoder.decode(b"", True)
        return self._show(text)

    def cut(self, reason: FinishReason) -> str:
        """End the answer from outside. Returns what was held back; half a character is dropped."""
        if self.finish is not None:
            return ""
        self.finish = reason
        return self._show(self._held)

    def _show(self, text: str) -> str:
        if text:
            self._chunks.append(text)
        return text

    def _compute(self, expression: str) -> str:
        value = calculate(expression)
        if value is None:
            return ""
        self.forced = self._llm.tokenise(value + ">>")[: self._limit - len(self.ids)]
        self.forced_count += len(self.forced)
        self.ids += self.forced
        added = self._decoder.decode(self._llm.detokenise(self.forced))
        self._tail = (self._tail + added)[-_TAIL:]
        return added

    def _hold_back(self, text: str) -> str:
        """What of the held back text and `text` can be shown; keeps back what may be the beginning of a stop string."""
        text = self._held + text
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self._held, self.forced, self.finish = "", [], "stop"
            return text[: min(found)]
        longest = min(max(map(len, self._stop)) - 1, len(text))
        for size in range(longest, 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop if len(stop) > size):
                self._held = text[-size:]
                return text[:-size]
        self._held = ""
        return text
