"""Decode speed of `generate` against a bare low-level loop over the same GGUF, in one process.

    python tests/bench/decode_speed.py [--bundle DIR_OR_NAME] [--torch CHECKPOINT]

The bare loop is the limit: sample, decode, nothing else: no text, no stop, no checks, no cancelling. Both sides take
turns, in changing order, from the same number of positions; each pair gives a ratio, and the median of the ratios is
reported. `ratio_median` is of wall time. On a machine that is busy with something else that is mostly noise; there,
`--threads 1` and `cpu_ratio_median`, of the processor time of this process, still say what the runtime adds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import mindmerger
from mindmerger.llama import backend, default_threads

QUESTION = "María tiene 15 manzanas y compra 27 más. ¿Cuántas manzanas tiene ahora?"


@contextmanager
def bare_loop(path: Path, context: int, threads: int) -> Iterator[Any]:
    """A function (ids of the prompt, tokens to make) → wall seconds and processor seconds after the first token."""
    native = backend()
    parameters = native.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.use_extra_bufts = False  # as the runtime, which says why
    model = native.llama_model_load_from_file(str(path).encode(), parameters)
    options = native.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = context, min(512, context), min(512, context)
    options.n_threads = options.n_threads_batch = threads
    options.no_perf = True
    llama = native.llama_init_from_model(model, options)
    sampler = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
    native.llama_sampler_chain_add(sampler, native.llama_sampler_init_greedy())
    memory = native.llama_get_memory(llama)

    def run(prompt: list[int], tokens: int) -> tuple[float, float]:
        native.llama_memory_clear(memory, False)
        for start in range(0, len(prompt), 512):
            chunk = prompt[start : start + 512]
            array = (ctypes.c_int32 * len(chunk))(*chunk)
            assert native.llama_decode(llama, native.llama_batch_get_one(array, len(chunk))) == 0
        one = (ctypes.c_int32 * 1)()
        batch = native.llama_batch_get_one(one, 1)
        sample, decode = native.llama_sampler_sample, native.llama_decode
        one[0] = sample(sampler, llama, -1)
        began, cpu = perf_counter(), process_time()
        for _ in range(tokens - 1):
            decode(llama, batch)
            one[0] = sample(sampler, llama, -1)
        return perf_counter() - began, process_time() - cpu

    try:
        yield run
    finally:
        native.llama_sampler_free(sampler)
        native.llama_free(llama)
        native.llama_model_free(model)


def measure(bundle: str | None, question: str, tokens: int, repeats: int, threads: int) -> dict[str, Any]:
    """The measurement as a document."""
    pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
    with mindmerger.load(bundle, threads=threads) as model:
        model._stop_ids = frozenset()  # both sides make exactly `tokens` tokens
        prompt = model.prompt_ids(question)
        positions = len(prompt) + len(model.soft_prompt_rows(question)) + 1
        # the bare loop has no rows; tokens in their number bring it to the same position
        stand_in = (prompt * (positions // len(prompt) + 1))[:positions]

        def generated() -> tuple[float, float]:
            stream = model.generate(question, max_new_tokens=tokens, temperature=0.0, calculator=False)
            next(stream)
            made = 1  # chunks may hold several tokens, or wait for the rest of a character; the result counts
            began, cpu = perf_counter(), process_time()
            for _ in stream:
                made += 1
            spent = perf_counter() - began, process_time() - cpu
            assert len(stream.result.token_ids) == tokens and made > tokens // 2
            return spent

        with bare_loop(model.llm.path, model.llm.context, threads) as bare:
            generated(), bare(stand_in, tokens)  # warm up
            for i in range(repeats):
                if i % 2:
                    ours = generated()
                    pairs.append((ours, bare(stand_in, tokens)))
                else:
                    limit = bare(stand_in, tokens)
                    pairs.append((generated(), limit))
        return {
            "bundle": model.manifest.name,
            "llm": model.llm.path.name,
            "threads": threads,
            "tokens": tokens,
            "positions_before": positions,
            "repeats": repeats,
            "generate_tokens_per_second": round(statistics.median((tokens - 1) / ours[0] for ours, _ in pairs), 1),
            "bare_tokens_per_second": round(statistics.median((tokens - 1) / limit[0] for _, limit in pairs), 1),
            "ratio_median": round(statistics.median(limit[0] / ours[0] for ours, limit in pairs), 4),
            "cpu_ratio_median": round(statistics.median(limit[1] / ours[1] for ours, limit in pairs), 4),
            "ratios": [round(limit[0] / ours[0], 3) for ours, limit in pairs],
            "cpu_ratios": [round(limit[1] / ours[1], 3) for ours, limit in pairs],
        }


def torch_reference(checkpoint: str, question: str, tokens: int, repeats: int, threads: int) -> dict[str, Any]:
    """The papers' way: encoder, mapping and LLM in torch, `generate` of transformers on the joined embeddings.

    In float32 and in bfloat16; `tokens_per_second` is of the decode after the first token, as above, and `seconds` of the
    whole question. Loading is not counted.
    """
    import torch

    from mindmerger_train import encoders, llms
    from mindmerger_train.checkpoint import load_checkpoint, resolve_checkpoint
    from mindmerger_train.layout import Row, assemble
    from mindmerger_train.stages import MergedTask

    torch.set_num_threads(threads)
    merged = load_checkpoint(resolve_checkpoint(checkpoint))
    encoder = encoders.load_encoder(merged.encoder)
    encoder_ids = encoders.load_tokenizer(merged.encoder).encode(question).ids
    prompt_ids = llms.load_llm_tokenizer(merged.llm).encode(merged.prompt.render(question))
    figures: dict[str, Any] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        llm: Any = llms.load_llm(merged.llm, dtype, merged.adapter_path())
        llm.set_attn_implementation("sdpa")
        task = MergedTask(llm, encoder, merged)

        def ask(count: int, llm: Any = llm, task: MergedTask = task) -> float:
            began = perf_counter()
            row = Row(encoder_ids, prompt_ids, [])
            batch = assemble([row], task.soft_prompts([row]), llm.get_input_embeddings(), merged.prompt.bos_id)
            llm.generate(
                inputs_embeds=batch.embeddings,
                attention_mask=batch.mask,
                min_new_tokens=count,
                max_new_tokens=count,
                do_sample=False,
            )
            return perf_counter() - began

        with torch.no_grad():
            ask(4)
            whole = [ask(tokens) for _ in range(repeats)]
            first = [ask(1) for _ in range(repeats)]
        seconds = statistics.median(whole)
        figures[name] = {
            "tokens_per_second": round((tokens - 1) / (seconds - statistics.median(first)), 1),
            "seconds": round(seconds, 2),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="folder or name (default: the default bundle)")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--torch", metavar="CHECKPOINT", help="also the papers' way, with this checkpoint")
    arguments = vars(parser.parse_args())
    checkpoint = arguments.pop("torch")
    figures = measure(**arguments)
    if checkpoint:
        arguments.pop("bundle")
        figures["torch"] = torch_reference(checkpoint, **{**arguments, "repeats": min(3, arguments["repeats"])})
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
