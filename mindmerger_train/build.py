"""Put a stage together from its recipe: encoder, LLM, merger, tokenizers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mindmerger.errors import CheckpointError
from mindmerger_train import encoders, llms
from mindmerger_train.checkpoint import Checkpoint, file_sha256, load_checkpoint, resolve_checkpoint
from mindmerger_train.data.mixture import Source
from mindmerger_train.merger import Merger
from mindmerger_train.recipe import Recipe
from mindmerger_train.ridge import linear_start
from mindmerger_train.stages import MergedTask, ReasonTask, RowMaker


def build_task(
    recipe: Recipe, sources: Sequence[Source], merger: str | None, adapter: Path | None, *, fresh: bool = True
) -> MergedTask:
    """The stage's task, ready to train.

    `merger` is the checkpoint to start from; `adapter` the LLM's adapter (for `reason`: where to go on from). A run that is
    not `fresh` will load its weights from its own state, so none are worked out for it here.
    Raises CheckpointError when they do not fit together.
    """
    torch.manual_seed(recipe.schedule.seed)
    random.seed(recipe.schedule.seed)
    checkpoint = _checkpoint(recipe, merger)
    if adapter is not None and not adapter.is_file():
        raise CheckpointError(f"no adapter at {adapter}")
    if recipe.stage == "reason":
        llm = llms.load_llm(checkpoint.llm, torch.bfloat16)
        encoder = encoders.load_encoder(checkpoint.encoder) if merger else None
        return ReasonTask(llm, encoder, replace(checkpoint, languages=()), recipe.rank, adapter)
    encoder = encoders.load_encoder(checkpoint.encoder)
    if recipe.stage == "mapping":
        llm = llms.load_llm(checkpoint.llm, torch.bfloat16)
        if fresh and merger is None and recipe.linear_start:
            _set_linear_start(checkpoint, encoder, sources)
        return MergedTask(llm, encoder, checkpoint)
    if adapter is not None:
        # An absolute path: the checkpoint's folder is only known once it is saved, which copies the adapter there.
        path = adapter.resolve()
        spec = replace(checkpoint.llm, adapter=str(path), adapter_sha256=file_sha256(path))
        checkpoint = replace(checkpoint, llm=spec)
    return MergedTask(llms.load_llm(checkpoint.llm, torch.bfloat16, checkpoint.adapter_path()), encoder, checkpoint)


def _checkpoint(recipe: Recipe, merger: str | None) -> Checkpoint:
    if merger is not None:
        checkpoint = load_checkpoint(resolve_checkpoint(merger))
    else:
        encoder, llm = encoders.default_spec(recipe.layers), llms.default_spec()
        checkpoint = Checkpoint(Merger(encoder.output_width, llm.width), encoder, llm, llms.default_prompt())
    return replace(checkpoint, languages=recipe.languages or checkpoint.languages)


def _set_linear_start(checkpoint: Checkpoint, encoder: encoders.Encoder, sources: Sequence[Source]) -> None:
    from transformers import AutoTokenizer

    texts = sorted({example.english for source in sources for example in source.examples})
    random.Random(0).shuffle(texts)
    fast = AutoTokenizer.from_pretrained(**llms._location(checkpoint.llm), local_files_only=True)
    weight, bias = linear_start(
        encoder,
        encoders.load_tokenizer(checkpoint.encoder),
        llms.load_llm(checkpoint.llm, torch.float32),
        fast.backend_tokenizer,
        texts[:3000],
    )
    checkpoint.merger.mlp.set_linear(weight, bias)


def row_maker(recipe: Recipe, checkpoint: Checkpoint) -> RowMaker:
    """Examples → rows of ids for this recipe."""
    needs_encoder = recipe.stage != "reason" or recipe.sources.question < 1
    return RowMaker(
        recipe.stage,
        llms.load_llm_tokenizer(checkpoint.llm),
        checkpoint.prompt,
        encoders.load_tokenizer(checkpoint.encoder) if needs_encoder else None,
        recipe.sources,
        calculator=checkpoint.calculator and recipe.stage != "mapping",
    )
