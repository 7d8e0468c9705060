"""A Unigram tokenizer (that of XLM-R, e5, mT5) whose vocabulary takes a fifth of the memory.

The `tokenizers` library keeps a vocabulary as a tree of hash tables: 72 MB for the 72,000 pieces of the embedded default,
more than all of Python with numpy. But only pieces that occur in a question can be in its segmentation. So here the
vocabulary is one dictionary, and for each question the library is handed the few hundred pieces that occur in it, and does
everything else: normalising, splitting, the search for the best segmentation, special tokens. Nothing is computed anew
here, so there is nothing that could come out otherwise; where this is not certain the whole library is asked.

Knows nothing about encoders, limits or questions.
"""

from __future__ import annotations

import json
import threading
from array import array
from collections.abc import Callable
from typing import Any

from mindmerger.reclaim import give_memory_back

_KEYS = {"type", "unk_id", "vocab", "byte_fallback"}


class UnigramTokenizer:
    """The text of a `tokenizer.json` → token ids, its special tokens included.

    `whole()` loads the same file by the library alone, for texts that spell a special token. Some exception where the file
    is of another kind or damaged: then the library has to read it, and to say what is wrong.
    """

    def __init__(self, text: bytes, whole: Callable[[], Any]) -> None:
        from tokenizers import Tokenizer, models

        self._whole = whole
        self._new_model = models.Unigram
        document: dict[str, Any] = json.loads(text)
        model: dict[str, Any] = document["model"]
        if model.get("type") != "Unigram" or model.get("byte_fallback") or not model.keys() <= _KEYS:
            raise ValueError("this is no plain Unigram model")
        vocabulary: list[list[Any]] = model.pop("vocab")
        pieces = [piece for piece, _score in vocabulary]
        self._scores = array("d", [score for _piece, score in vocabulary])
        self._unknown = int(model["unk_id"])
        lowest = min(range(len(pieces)), key=self._scores.__getitem__)
        # Whatever the question, these are in: the library's penalty for the unknown is measured from the lowest score.
        self._always = [(pieces[index], self._scores[index]) for index in (self._unknown, lowest)]
        self._special = [token["content"] for token in document["added_tokens"]]
        fixed = {token["content"]: token["id"] for token in document["added_tokens"]}
        post = document["post_processor"]
        if post is not None:
            if post["type"] != "TemplateProcessing":
                raise ValueError("special tokens are added in another way than by a template")
            for name, token in post["special_tokens"].items():
                if token["tokens"] != [name] or token["ids"] != [fixed[name]]:
                    raise ValueError("a special token stands for another or for several")
        model |= {"vocab": self._always, "unk_id": 0}
        document |= {"truncation": None, "padding": None}
        joined, count = "\0".join(pieces), len(pieces)
        small = json.dumps(document)
        # What was parsed lies between the pieces that are kept: all of it goes, and these are made again side by side.
        del document, model, vocabulary, pieces, text
        give_memory_back()
        self._ids = dict(zip(joined.split("\0"), range(count), strict=True))
        if len(self._ids) != count or any(self._ids.get(name) != id for name, id in fixed.items()):
            raise ValueError("a piece is twice in the vocabulary, or a special token is not in it")
        self._longest = max(map(len, self._ids))
        self._tokenizer: Any = Tokenizer.from_str(small)
        self._turn = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """The ids that the library gives for `text`."""
        tokenizer = self._tokenizer
        normaliser, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
        plain: str = text if normaliser is None else normaliser.normalize_str(text)
        if any(special in text or special in plain for special in self._special):
            ids: list[int] = self._whole().encode(text).ids
            give_memory_back()
            return ids
        words = {plain} if splitter is None else {word for word, _place in splitter.pre_tokenize_str(plain)}
        occurring = {piece: self._scores[self._ids[piece]] for word in words for piece in self._pieces_in(word)}
        model = self._new_model([*self._always, *occurring.items()], 0, False)
        with self._turn:  # the library's own lock is for one call, and these are two
            tokenizer.model = model
            tokens: list[str] = tokenizer.encode(text).tokens
        return [self._ids.get(token, self._unknown) for token in tokens]

    def _pieces_in(self, word: str) -> list[str]:
        known, longest, end = self._ids, self._longest, len(word)
        return [
            piece
            for start in range(end)
            for stop in range(start + 1, min(start + longest, end) + 1)
            if (piece := word[start:stop]) in known
        ]
