"""What mm-bench compares, each in a process of its own: the runtime, the bare llama.cpp loop, and the `Llama` class.

A contestant answers `run` with what one repetition took. It is measured from outside with one clock, and makes exactly
as many tokens as it is asked for. The bare loop is the limit: decode, sample, nothing else: no text, no stop, no
checks, no cancelling. Knows nothing about statistics or reports; torch is a contestant that lives with the training
(`mindmerger_train.published`), because nothing here may import it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import asdict
from time import perf_counter, process_time
from typing import Any, Protocol

from mindmerger.child import Document, serve
from mindmerger.errors import InputError, ModelError
from mindmerger.i18n import _
from mindmerger.machine import resident

_BATCH = 512


class Contestant(Protocol):
    """Loaded and ready. `facts` are said once, `run` makes `tokens` tokens from a cleared state."""

    def facts(self) -> Document: ...

    def run(self, tokens: int) -> Document: ...


def lap(rows: int, tokens: int, prefill: float, first: float, decode: float, cpu: float, **more: float) -> Document:
    """One repetition: seconds in, milliseconds out. `decode` and `cpu` (processor time) are those after the first token."""
    times = {"prefill_ms": prefill, "first_ms": first, "decode_ms": decode, "cpu_ms": cpu, **more}
    return {"rows": rows, "tokens": tokens, **{key: value * 1e3 for key, value in times.items()}}


class Runtime:
    """`mindmerger.load` and `generate`, the calculator off and no token a stop token."""

    def __init__(self, bundle: str | None, question: str, threads: int, context: int | None = None) -> None:
        import mindmerger

        self.model = mindmerger.load(bundle, threads=threads, context=context)
        self.question = question
        # All contestants make the same number of tokens, whatever these are.
        self.model._stop_ids = frozenset()

    def facts(self) -> Document:
        model = self.model
        prompt = model.prompt_ids(self.question)
        rows = len(model.soft_prompt_rows(self.question))
        bos = model.manifest.prompt.bos_id
        positions = (bos is not None) + rows + len(prompt)
        # The others have no rows; tokens in their number bring them to the same position.
        head = [] if bos is None else [bos]
        filler = (prompt * (positions // max(1, len(prompt)) + 1))[: positions - len(head)]
        return {
            "bundle": model.manifest.name,
            "method": model.manifest.method,
            "llm": str(model.llm.path),
            "context": model.llm.context,
            "gpu_layers": getattr(model.llm, "gpu_layers", 0),
            "plain_attention": model.llm.plain_attention,
            "prompt": head + filler,
        }

    def run(self, tokens: int) -> Document:
        began = perf_counter()
        stream = self.model.generate(self.question, max_new_tokens=tokens, temperature=0.0, calculator=False)
        next(stream, None)
        cpu = process_time()
        for _chunk in stream:
            pass
        cpu = process_time() - cpu
        whole = perf_counter() - began
        result = stream.result
        times = result.timings
        first = (times.first_token_ms or 0.0) / 1e3
        rows = (self.model.manifest.prompt.bos_id is not None) + result.soft_prompt_rows + result.prompt_tokens
        return lap(
            rows,
            len(result.token_ids),
            times.prefill_ms / 1e3,
            first,
            whole - first,
            cpu,
            tokenise_ms=times.tokenise_ms / 1e3,
            encode_ms=times.encode_ms / 1e3,
        )

    def share(self, text: str, encoder_tokens: int) -> Document:
        """How much of the time to the first token is not spent inside llama.cpp, for a question of `encoder_tokens`.

        The question is as much of `text`, in whole words, as has at most so many tokens.
        """
        native = self.model.llm._native
        inside = 0.0
        originals = {name: getattr(native, name) for name in ("llama_decode", "llama_sampler_sample")}

        def timed(call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                nonlocal inside
                began = perf_counter()
                try:
                    return call(*arguments)
                finally:
                    inside += perf_counter() - began

            return run

        question = self._cut(text, encoder_tokens)
        for name, call in originals.items():
            setattr(native, name, timed(call))
        try:
            began = perf_counter()
            stream = self.model.generate(question, max_new_tokens=1, temperature=0.0, calculator=False)
            for _chunk in stream:
                pass
            spent = perf_counter() - began
        finally:
            for name, call in originals.items():
                setattr(native, name, call)
        result = stream.result
        return {
            "first_ms": spent * 1e3,
            "llama_ms": inside * 1e3,
            "tokenise_ms": result.timings.tokenise_ms,
            "encode_ms": result.timings.encode_ms,
            "encoder_tokens": result.soft_prompt_rows - 1,
        }

    def _cut(self, text: str, encoder_tokens: int) -> str:
        words = text.split()
        low, high = 1, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            if self._encoder_tokens(" ".join(words[:middle])) <= encoder_tokens:
                low = middle
            else:
                high = middle - 1
        return " ".join(words[:low])

    def _encoder_tokens(self, question: str) -> float:
        try:
            return len(self.model.soft_prompt_rows(question)) - 1
        except InputError:  # more than the encoder reads
            return float("inf")


class Bare:
    """The low-level loop over the same GGUF, with the parameters that the runtime uses.

    `plain_attention`: by two matrix products, else llama.cpp's own choice.
    """

    def __init__(
        self, llm: str, context: int, threads: int, gpu_layers: int, prompt: list[int], plain_attention: bool
    ) -> None:
        from mindmerger.llama import backend, computed_at_once

        self.native = native = backend()
        parameters = native.llama_model_default_params()
        parameters.load_mode = native.LLAMA_LOAD_MODE_MMAP
        parameters.n_gpu_layers = gpu_layers
        parameters.use_extra_bufts = False
        self.model = native.llama_model_load_from_file(llm.encode(), parameters)
        if not self.model:
            raise ModelError(_("llama.cpp cannot load {path}: free memory").format(path=llm))
        options = native.llama_context_default_params()
        options.n_ctx = context
        options.n_batch = min(_BATCH, context)
        options.n_ubatch = min(computed_at_once(gpu_layers), context)
        options.n_seq_max = options.n_outputs_max = 1
        options.n_threads = options.n_threads_batch = threads
        options.no_perf = True
        if plain_attention:
            options.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = native.llama_init_from_model(self.model, options)
        if not self.context:
            raise ModelError(
                _("llama.cpp cannot open a context of {positions} tokens: ask for less or free memory").format(
                    positions=context
                )
            )
        self.memory = native.llama_get_memory(self.context)
        self.sampler = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        native.llama_sampler_chain_add(self.sampler, native.llama_sampler_init_greedy())
        chunks = [prompt[start : start + _BATCH] for start in range(0, len(prompt), _BATCH)]
        self.rows = len(prompt)
        self.arrays = [(ctypes.c_int32 * len(chunk))(*chunk) for chunk in chunks]

    def facts(self) -> Document:
        return {}

    def run(self, tokens: int) -> Document:
        native, context, sampler = self.native, self.context, self.sampler
        sample, decode = native.llama_sampler_sample, native.llama_decode
        began = perf_counter()
        native.llama_memory_clear(self.memory, False)
        status = 0
        for array in self.arrays:
            status |= decode(context, native.llama_batch_get_one(array, len(array)))
        prefilled = perf_counter()
        one = (ctypes.c_int32 * 1)()
        batch = native.llama_batch_get_one(one, 1)
        one[0] = sample(sampler, context, -1)
        first, cpu = perf_counter(), process_time()
        for _token in range(tokens - 1):
            status |= decode(context, batch)
            one[0] = sample(sampler, context, -1)
        ended, cpu = perf_counter(), process_time() - cpu
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return lap(self.rows, tokens, prefilled - began, first - began, ended - first, cpu)


class LlamaClass:
    """llama-cpp-python's high-level class: its own `generate`, greedy, which is what its completions are made of."""

    def __init__(self, llm: str, context: int, threads: int, gpu_layers: int, prompt: list[int]) -> None:
        from mindmerger.llama import backend, computed_at_once

        native = backend()  # silent
        # The same layout of weights for all; the repacked one ends the process on some processors (mindmerger.llama).
        defaults = native.llama_model_default_params

        def plain() -> Any:
            parameters = defaults()
            parameters.use_extra_bufts = False
            return parameters

        vars(native)["llama_model_default_params"] = plain
        from llama_cpp import Llama

        self.prompt = prompt
        self.llama = Llama(
            llm, n_ctx=context, n_batch=min(_BATCH, context), n_ubatch=min(computed_at_once(gpu_layers), context),
            n_threads=threads, n_threads_batch=threads, n_gpu_layers=gpu_layers, verbose=False,
        )  # fmt: skip

    def facts(self) -> Document:
        return {}

    def run(self, tokens: int) -> Document:
        self.llama.reset()  # or it would find the prompt in its cache and skip the prefill
        began = perf_counter()
        stream = self.llama.generate(self.prompt, temp=0.0)
        next(stream)
        first, cpu = perf_counter(), process_time()
        for _token in range(tokens - 1):
            next(stream)
        ended, cpu = perf_counter(), process_time() - cpu
        stream.close()
        # The class does not say when the prefill ends; what it adds to sample once is in here.
        return lap(len(self.prompt), tokens, first - began, first - began, ended - first, cpu)


KINDS: dict[str, Callable[..., Contestant]] = {"runtime": Runtime, "bare": Bare, "llama": LlamaClass}


class Stage:
    """Answers a parent's requests: `load` (once), `run`, `share`. Every reply carries the memory that is held."""

    def __init__(self, kinds: dict[str, Callable[..., Contestant]]) -> None:
        self.kinds = kinds
        self.contestant: Any = None

    def answer(self, request: Document) -> Document:
        do = request.pop("do")
        if do == "load":
            began = perf_counter()
            self.contestant = self.kinds[request.pop("kind")](**request)
            loaded = perf_counter() - began
            reply = {"load_ms": loaded * 1e3, **self.contestant.facts()}
        else:
            reply = getattr(self.contestant, {"run": "run", "share": "share"}[do])(**request)
        held = resident()
        return {**reply, "memory": None if held is None else asdict(held)}


def main() -> None:
    """The child process of mm-bench."""
    serve(Stage(KINDS).answer)


if __name__ == "__main__":
    sys.exit("this module is run by mm-bench")
