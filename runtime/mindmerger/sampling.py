"""How the next token is drawn: checked options, and the native sampler chain made of them.

Sampling in Python costs more than decoding on a small LLM; the chain runs in llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mindmerger.errors import InputError

MAX_SEED = 2**32 - 2  # 2^32 - 1 means "any" to llama.cpp


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; checked when made. Temperature 0 is greedy; 0, 1 and 0 switch the filters off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0, 10)
        _check_range("top_p", self.top_p, 0, 1)
        _check_range("min_p", self.min_p, 0, 1)
        _check_whole("top_k", self.top_k, 2**31 - 1)
        if self.seed is not None:
            _check_whole("seed", self.seed, MAX_SEED)


class Sampler:
    """A native sampler chain: top-k, top-p, min-p, temperature, draw."""

    def __init__(self, native: ModuleType, sampling: Sampling) -> None:
        self._native = native
        parameters = native.llama_sampler_chain_default_params()
        parameters.no_perf = True
        self.pointer: Any = native.llama_sampler_chain_init(parameters)
        if sampling.temperature == 0:
            chain = [native.llama_sampler_init_greedy()]
        else:
            chain = [native.llama_sampler_init_top_k(sampling.top_k)] if sampling.top_k else []
            if sampling.top_p < 1:
                chain.append(native.llama_sampler_init_top_p(sampling.top_p, 1))
            if sampling.min_p > 0:
                chain.append(native.llama_sampler_init_min_p(sampling.min_p, 1))
            chain.append(native.llama_sampler_init_temp(sampling.temperature))
            chain.append(native.llama_sampler_init_dist(MAX_SEED + 1 if sampling.seed is None else sampling.seed))
        for stage in chain:
            native.llama_sampler_chain_add(self.pointer, stage)

    def close(self) -> None:
        pointer, self.pointer = self.pointer, None
        if pointer:
            self._native.llama_sampler_free(pointer)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InputError(f"{name} must be a number from {low} to {high}, not {value!r:.40}")


def _check_whole(name: str, value: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise InputError(f"{name} must be a whole number from 0 to {high}, not {value!r:.40}")
