"""How the next token is drawn: checked options, and the native sampler chain made of them.

Sampling in Python costs more than decoding on a small LLM; the chain runs in llama.cpp. Only a grammar needs a look from
here: llama.cpp ends the process when a token is accepted that the grammar does not allow, as where it allows none.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.errors import InputError, ModelError
from mindmerger.i18n import _

MAX_SEED = 2**32 - 2  # 2^32 - 1 means "any" to llama.cpp
_PENALTY_WINDOW = 64  # tokens; llama.cpp's own default
_MAX_GRAMMAR = 2**16  # characters
# The native parser recurses, and expands repetitions into rules over which it recurses again.
_MAX_DEPTH = 100
_MAX_REPETITION = 1000
_REPETITION = re.compile(r"\{\s*([0-9]*)\s*,?\s*([0-9]*)\s*\}")
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; checked when made. Temperature 0 is greedy; 0, 1 and 0 switch the filters off.

    `repeat_penalty` divides the logits of the last 64 drawn tokens. `grammar` is GBNF with a rule `root`; whether it
    parses, llama.cpp says when the sampler is made.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repeat_penalty: float = 1.0
    grammar: str | None = None

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0, 10)
        _check_range("top_p", self.top_p, 0, 1)
        _check_range("min_p", self.min_p, 0, 1)
        _check_range("repeat_penalty", self.repeat_penalty, 0.1, 10)
        _check_whole("top_k", self.top_k, 2**31 - 1)
        if self.seed is not None:
            _check_whole("seed", self.seed, MAX_SEED)
        if self.grammar is not None:
            _check_grammar(self.grammar)


class Sampler:
    """A native sampler chain: grammar, penalties, top-k, top-p, min-p, temperature, draw. The caller closes it."""

    def __init__(self, native: ModuleType, vocab: Any, vocabulary: int, sampling: Sampling) -> None:
        self._native = native
        self._vocabulary = vocabulary
        self._grammar: Any = None
        parameters = native.llama_sampler_chain_default_params()
        parameters.no_perf = True
        self.pointer: Any = native.llama_sampler_chain_init(parameters)
        chain = []
        if sampling.repeat_penalty != 1:
            chain.append(
                native.llama_sampler_init_penalties(vocabulary, _PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0)
            )
        if sampling.temperature == 0:
            chain.append(native.llama_sampler_init_greedy())
        else:
            if sampling.top_k:
                chain.append(native.llama_sampler_init_top_k(sampling.top_k))
            if sampling.top_p < 1:
                chain.append(native.llama_sampler_init_top_p(sampling.top_p, 1))
            if sampling.min_p > 0:
                chain.append(native.llama_sampler_init_min_p(sampling.min_p, 1))
            chain.append(native.llama_sampler_init_temp(sampling.temperature))
            chain.append(native.llama_sampler_init_dist(MAX_SEED + 1 if sampling.seed is None else sampling.seed))
        for stage in chain:
            native.llama_sampler_chain_add(self.pointer, stage)
        self.sample: Callable[[Any, int], int] = self._sample
        if sampling.temperature == 0 and len(chain) == 1:
            self.sample = self._sample_likeliest
        if sampling.grammar is not None:
            self._open_grammar(vocab, sampling.grammar)

    def _sample(self, context: Any, index: int) -> int:
        """Draw a token from the logits of `index`, and accept it."""
        return int(self._native.llama_sampler_sample(self.pointer, context, index))

    def _sample_likeliest(self, context: Any, index: int) -> int:
        """As `_sample`, where greedy is all there is: the chain first copies the vocabulary into records of its own.

        Ten times as fast, which counts where one thread draws for many sequences while the others wait.
        """
        pointer = self._native.llama_get_logits_ith(context, index)
        if not pointer:
            raise ModelError("llama.cpp has no logits there: they were not asked for")
        logits: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))
        return int(logits.argmax())

    def accept(self, token: int) -> None:
        """Take note of a token that was not drawn from here. Not with a grammar, which may forbid it."""
        self._native.llama_sampler_accept(self.pointer, token)

    # --------------------------------------------------------------------------------------------- grammar

    def _open_grammar(self, vocab: Any, grammar: str) -> None:
        self._grammar = self._native.llama_sampler_init_grammar(vocab, grammar.encode("utf-8"), b"root")
        if not self._grammar:  # llama.cpp has written the place and the reason to stderr
            self.close()
            raise InputError(
                _("the grammar does not parse as GBNF, has no rule 'root', or begins a rule with itself: correct it")
            )
        self._candidates = np.zeros(self._vocabulary, _CANDIDATE)
        self._array = self._native.llama_token_data_array()
        self.sample = self._sample_by_grammar

    def _sample_by_grammar(self, context: Any, index: int) -> int:
        """As `_sample`, among what the grammar allows.

        The grammar looks at every token of the vocabulary in turn; so the chain draws first, and only where the grammar
        refuses that token does it sort out all.
        """
        native = self._native
        pointer = native.llama_get_logits_ith(context, index)
        logits: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))
        token = self._draw(logits, filtered=False)
        if not self._allows(token):
            token = self._draw(logits, filtered=True)
        native.llama_sampler_accept(self._grammar, token)
        native.llama_sampler_accept(self.pointer, token)
        return token

    def _draw(self, logits: npt.NDArray[np.float32], filtered: bool) -> int:
        candidates = self._candidates
        candidates["id"] = np.arange(self._vocabulary, dtype=np.int32)
        candidates["logit"] = logits
        candidates["p"] = 0.0
        array = self._view(candidates)
        if filtered:
            self._native.llama_sampler_apply(self._grammar, ctypes.byref(array))
            if not np.isfinite(candidates["logit"]).any():
                raise InputError(_("the grammar allows no further token and no end: correct it"))
        self._native.llama_sampler_apply(self.pointer, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise InputError(_("no token can be drawn under these options: loosen them"))
        return int(array.data[array.selected].id)

    def _allows(self, token: int) -> bool:
        one = np.zeros(1, _CANDIDATE)
        one["id"] = token
        array = self._view(one)
        self._native.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(np.isfinite(one["logit"][0]))

    def _view(self, candidates: npt.NDArray[Any]) -> Any:
        array = self._array
        array.data = ctypes.cast(candidates.ctypes.data, type(array.data))
        array.size = len(candidates)
        array.selected = -1
        array.sorted = False
        return array

    # ------------------------------------------------------------------------------------------- life time

    def close(self) -> None:
        """Free the chain and the grammar. Harmless when called twice."""
        pointer, self.pointer = self.pointer, None
        if pointer:
            self._native.llama_sampler_free(pointer)
        grammar, self._grammar = self._grammar, None
        if grammar:
            self._native.llama_sampler_free(grammar)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_grammar(grammar: object) -> None:
    if not isinstance(grammar, str) or not grammar.strip():
        raise InputError("grammar must be a text in GBNF with a rule 'root'")
    try:
        grammar.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(_("the grammar is not valid Unicode: check its encoding")) from None
    if "\0" in grammar or len(grammar) > _MAX_GRAMMAR:
        raise InputError(_("the grammar must have no NUL and at most {most} characters").format(most=_MAX_GRAMMAR))
    depth = deepest = 0
    for character in grammar:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH:
        raise InputError(
            _("the grammar has more than {most} open parentheses: use rules instead").format(most=_MAX_DEPTH)
        )
    for match in _REPETITION.finditer(grammar):
        if any(int(number[:9]) > _MAX_REPETITION for number in match.groups() if number):
            raise InputError(_("the grammar repeats more than {most} times: use * or +").format(most=_MAX_REPETITION))


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InputError(
            _("{name} must be a number from {low} to {high}, not {value}").format(
                name=name, low=low, high=high, value=f"{value!r:.40}"
            )
        )


def _check_whole(name: str, value: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise InputError(
            _("{name} must be a whole number from 0 to {high}, not {value}").format(
                name=name, high=high, value=f"{value!r:.40}"
            )
        )
