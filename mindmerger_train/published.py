"""The merge in the papers' way, as a contestant of mm-bench: encoder, merger and LLM in torch, `generate` of transformers
on the joined embeddings.

A process that mm-bench starts and talks to (`mindmerger.contestants`); the runtime itself must not import torch.
"""

from __future__ import annotations

import os
from time import perf_counter, process_time
from typing import Any, cast

from mindmerger.child import Document, serve
from mindmerger.contestants import Stage, lap


class Published:
    """A checkpoint in torch on the CPU, in float32 or bfloat16."""

    def __init__(self, checkpoint: str, question: str, threads: int, dtype: str) -> None:
        os.environ["TQDM_DISABLE"] = "1"  # a bar for each tensor that is read
        import torch
        from transformers.utils import logging

        from mindmerger_train import encoders, llms
        from mindmerger_train.checkpoint import load_checkpoint, resolve_checkpoint
        from mindmerger_train.stages import MergedTask

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self.question = question
        self.merged = load_checkpoint(resolve_checkpoint(checkpoint))
        self.tokenizer = encoders.load_tokenizer(self.merged.encoder)
        self.llm_tokenizer = llms.load_llm_tokenizer(self.merged.llm)
        self.llm = cast(Any, llms.load_llm(self.merged.llm, getattr(torch, dtype), self.merged.adapter_path()))
        self.llm.set_attn_implementation("sdpa")
        self.llm.generation_config.eos_token_id = None  # every contestant makes as many tokens as it is asked for
        self.llm.eval()
        self.task = MergedTask(self.llm, encoders.load_encoder(self.merged.encoder), self.merged)

    def facts(self) -> Document:
        return {}

    def run(self, tokens: int) -> Document:
        import torch

        from mindmerger_train.layout import Row, assemble

        marks: list[tuple[float, float]] = []

        def mark(ids: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
            """A stopping criterion that never stops: called after every token."""
            marks.append((perf_counter(), process_time()))
            return torch.zeros(ids.shape[0], dtype=torch.bool)

        with torch.no_grad():
            began = perf_counter()
            encoder_ids = self.tokenizer.encode(self.question).ids
            prompt_ids = self.llm_tokenizer.prompt_ids(self.merged.prompt, self.question)
            tokenised = perf_counter()
            row = Row(encoder_ids, prompt_ids, [])
            soft, prompts, _ = self.task._parts([row])
            encoded = perf_counter()
            embed, bos = self.llm.get_input_embeddings(), self.merged.prompt.bos_id
            batch = assemble([row], soft, embed, bos, prompts)
            self.llm.generate(
                inputs_embeds=batch.embeddings,
                attention_mask=batch.mask,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                stopping_criteria=[mark],
            )
        if len(marks) != tokens:
            raise RuntimeError(f"generate made {len(marks)} tokens instead of {tokens}")
        (first, cpu), (ended, cpu_ended) = marks[0], marks[-1]
        return lap(
            batch.embeddings.shape[1],
            tokens,
            first - encoded,
            first - began,
            ended - first,
            cpu_ended - cpu,
            tokenise_ms=tokenised - began,
            encode_ms=encoded - tokenised,
        )


def main() -> None:
    """The child process of mm-bench."""
    serve(Stage({"published": Published}).answer)
