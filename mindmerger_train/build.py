"""Put a stage together from its recipe: encoder, LLM, merger, tokenizers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch

from mindmerger.errors import CheckpointError, InputError
from mindmerger_train import encoders, llms
from mindmerger_train.checkpoint import Checkpoint, file_sha256, load_checkpoint, resolve_checkpoint
from mindmerger_train.data.mixture import Source
from mindmerger_train.fresh import fresh_checkpoint
from mindmerger_train.gate import GateSpec
from mindmerger_train.language_start import start_language_head
from mindmerger_train.merger import Merger
from mindmerger_train.prompts import reworded
from mindmerger_train.recipe import Recipe
from mindmerger_train.ridge import linear_start
from mindmerger_train.stages import MergedTask, ReasonTask, RowMaker, Sources, SteeringTask


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
    checkpoint = stage_checkpoint(recipe, merger)
    if recipe.stage != "reason" or merger:
        checkpoint.encoder.check_languages({example.language for source in sources for example in source.examples})
    if adapter is not None and not adapter.is_file():
        raise CheckpointError(f"no adapter at {adapter}")
    if recipe.stage == "reason":
        llm = llms.load_llm(checkpoint.llm, torch.bfloat16)
        encoder = encoders.load_encoder(checkpoint.encoder) if merger and checkpoint.method != "mono" else None
        return ReasonTask(llm, encoder, checkpoint, recipe.rank, adapter)
    encoder = encoders.load_encoder(checkpoint.encoder)
    if checkpoint.method == "mono":
        raise CheckpointError(f"{merger} is a mono checkpoint, the LLM alone: it has nothing to merge")
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
    llm = llms.load_llm(checkpoint.llm, torch.bfloat16, checkpoint.adapter_path())
    if recipe.stage == "steering":
        new = checkpoint.merger.gate is None
        checkpoint = replace(checkpoint, merger=with_gate(recipe, checkpoint))
        if fresh and new and recipe.steering.head_start:
            _start_head(checkpoint, encoder, sources)
        return SteeringTask(llm, encoder, checkpoint, recipe.steering)
    return MergedTask(llm, encoder, checkpoint)


def with_gate(recipe: Recipe, checkpoint: Checkpoint) -> Merger:
    """The checkpoint's merger with a gate: its own, or a fresh one that leaves everything as it is."""
    merger = checkpoint.merger
    if merger.method == "st-merge":
        if recipe.gate:
            raise InputError(
                "the checkpoint has a gate already: leave out [gate], or start from a mindmerger checkpoint"
            )
        return merger
    if merger.method != "mindmerger":
        raise CheckpointError(f"steering starts from a mindmerger or st-merge checkpoint, not from {merger.method}")
    options = {"languages": list(checkpoint.languages), **recipe.gate}
    steered = Merger(checkpoint.encoder.output_width, checkpoint.llm.width, "st-merge", GateSpec.from_json(options))
    steered.load_state_dict(merger.state_dict(), strict=False)
    return steered


def stage_checkpoint(recipe: Recipe, merger: str | None) -> Checkpoint:
    """The checkpoint that the stage starts from: `merger`, or a fresh one. No weights of encoder or LLM are read."""
    if merger is not None:
        checkpoint = load_checkpoint(resolve_checkpoint(merger))
        if recipe.stage != "steering" and recipe.method not in ("", checkpoint.method):
            raise CheckpointError(f"{merger} is a {checkpoint.method} checkpoint, and the recipe says {recipe.method}")
        checkpoint = replace(checkpoint, prompt=reworded(checkpoint.prompt, recipe.prompt))
    else:
        if recipe.stage == "steering":
            raise InputError("steering needs a checkpoint to start from: --merger runs/augmentation")
        checkpoint = fresh_checkpoint(
            recipe.encoder,
            recipe.llm,
            recipe.prompt,
            recipe.layers,
            method=recipe.method or "mindmerger",
            calculator=recipe.calculator,
        )
    # `reason` teaches the LLM in its own language, whatever languages the merger knows.
    own = () if recipe.stage == "reason" else recipe.languages
    return replace(checkpoint, languages=own or checkpoint.languages)


def _set_linear_start(checkpoint: Checkpoint, encoder: encoders.Encoder, sources: Sequence[Source]) -> None:
    texts = sorted({example.english for source in sources for example in source.examples})
    random.Random(0).shuffle(texts)
    weight, bias = linear_start(
        encoder,
        encoders.load_tokenizer(checkpoint.encoder),
        llms.load_llm(checkpoint.llm, torch.float32),
        llms.load_fast_tokenizer(checkpoint.llm),
        texts[:3000],
    )
    checkpoint.merger.mlp.set_linear(weight, bias)


def _start_head(checkpoint: Checkpoint, encoder: encoders.Encoder, sources: Sequence[Source]) -> None:
    gate = checkpoint.merger.gate
    if gate is None or gate.spec.language_input != "soft":
        return  # nothing asks the head
    examples = (example for source in sources for example in source.examples)
    right = start_language_head(gate, encoder, encoders.load_tokenizer(checkpoint.encoder), examples)
    if not math.isnan(right):
        click.echo(f"mm-train: the language head names {right:.1%} of held-out questions rightly", err=True)


def row_maker(recipe: Recipe, checkpoint: Checkpoint) -> RowMaker:
    """Examples → rows of ids for this recipe.

    Raises InputError when the checkpoint's method has no source that the recipe asks for.
    """
    sources, steering = recipe.sources, recipe.steering
    if checkpoint.method == "langbridge":
        # LangBridge has no prompt part.
        sources = Sources(both=0.0, soft_prompt=1.0, retell=sources.retell, restate=sources.restate)
    elif checkpoint.method == "mono":
        if sources.retell:
            raise InputError("sources.retell is of methods with a soft prompt; mono is the LLM alone")
        sources = Sources(both=0.0, question=1.0, restate=sources.restate)
    gate = checkpoint.merger.gate
    if gate is not None and gate.spec.language_input == "forced":
        steering = replace(steering, told=1.0 - steering.hidden)  # there is no head to ask
    needs_encoder = recipe.stage != "reason" or sources.question < 1
    return RowMaker(
        recipe.stage,
        llms.load_llm_tokenizer(checkpoint.llm),
        checkpoint.prompt,
        encoders.load_tokenizer(checkpoint.encoder) if needs_encoder else None,
        sources,
        calculator=checkpoint.calculator and recipe.stage != "mapping",
        steering=steering,
    )
