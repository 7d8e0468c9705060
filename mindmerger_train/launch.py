"""From a recipe to a running stage, or to its plan: data, task, batches, kept encoder states.

What this module does not know: the command line, the loop.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mindmerger.errors import CheckpointError, DataError, InputError, MindMergerError
from mindmerger_train.build import build_task, row_maker, stage_checkpoint, with_gate
from mindmerger_train.data.mixture import Source, batches, cut_by_length, draw, hold_out
from mindmerger_train.engine import train
from mindmerger_train.layout import Row
from mindmerger_train.recipe import Recipe, load_sources
from mindmerger_train.runstate import Progress, state_file
from mindmerger_train.stages import MergedTask, RowMaker
from mindmerger_train.states import expected_visits, keep_states

if TYPE_CHECKING:
    from mindmerger_train.plan import Plan

# Rows that are looked at to know how long the others are.
SAMPLE = 512


@dataclass(frozen=True)
class Order:
    """What the command line asks for. `adapter`: the LLM's; `merger`: a checkpoint to start from."""

    recipe: Recipe
    data: Path | None
    out: Path | None
    merger: str | None = None
    adapter: Path | None = None
    resume: bool = False
    start_over: bool = False


def check_order(order: Order) -> tuple[Path, Path]:
    """The folders of data and result. Raises InputError where the result's holds a run that nobody said what to do with."""
    if order.data is None or order.out is None:
        raise InputError("training needs --data and --out")
    if state_file(order.out).is_file() and not (order.resume or order.start_over):
        raise InputError(
            f"{order.out} holds the state of a run: go on with --resume, or throw it away with --start-over"
        )
    return order.data, order.out


def run_stage(order: Order) -> Progress:
    """Train the stage. Raises what `check_order` and its parts raise."""
    recipe = order.recipe
    data, out = check_order(order)
    there = state_file(out).is_file()
    schedule = recipe.schedule
    sources, held = hold_out(load_sources(recipe, data))
    task = build_task(recipe, sources, order.merger, order.adapter, fresh=not (order.resume and there))
    maker = row_maker(recipe, task.checkpoint)
    recipe = count_epochs(recipe, maker, sources)
    schedule = recipe.schedule
    _keep(task, recipe, maker, sources)
    held_rows = itertools.islice(maker.rows(draw(held or sources, schedule.seed), schedule.seed), recipe.held_out)
    held_out = cut_by_length(
        [row for row in held_rows if row.length() <= recipe.longest], Row.length, schedule.batch_tokens
    )
    stream = batches(_rows(recipe, maker, sources), Row.length, schedule.batch_tokens, recipe.longest, schedule.seed)
    return train(task, stream, held_out, schedule, out, resume=order.resume)


def plan_stage(order: Order) -> Plan:
    """What the stage would need and take. Data and tokenizers are looked at where they are; weights are not."""
    from mindmerger_train.plan import assumed_shape, make_plan, measured_shape

    recipe, notes = order.recipe, []
    try:
        checkpoint = stage_checkpoint(recipe, order.merger)
    except CheckpointError as error:
        # Only the prompt needs the LLM's tokenizer; what is wrong besides will be found again.
        checkpoint = stage_checkpoint(replace(recipe, prompt={"template": "question", "eos_id": 0}), order.merger)
        notes.append(f"training would stop here: {str(error).splitlines()[0]}")
    if recipe.stage == "steering":
        checkpoint = replace(checkpoint, merger=with_gate(recipe, checkpoint))
        for name, parameter in checkpoint.merger.named_parameters():
            parameter.requires_grad_(name.startswith("gate.") or recipe.steering.train_mapping)
    if recipe.epochs and order.data is None:
        raise InputError(
            "how long an epoch is depends on the data: give --data, or --set epochs=0 --set schedule.tokens=N"
        )
    with_encoder = recipe.stage != "reason" or (order.merger is not None and checkpoint.method != "mono")
    shape, encodings = None, 1.0
    if order.data is not None:
        sources, _ = hold_out(load_sources(recipe, order.data))
        try:
            maker = row_maker(recipe, checkpoint)
        except (MindMergerError, OSError, ValueError) as error:
            notes.append(f"the tokenizers could not be loaded ({str(error).splitlines()[0]})")
        else:
            recipe = count_epochs(recipe, maker, sources)
            shape = measured_shape(_rows(recipe, maker, sources), recipe.schedule, recipe.longest)
            visits = _visits(recipe, sources, shape.length)
            if with_encoder and recipe.states.wanted(visits):
                encodings = 1 / max(1.0, visits)
                size = recipe.schedule.tokens / shape.length * encodings * shape.encoder_tokens
                size *= checkpoint.encoder.output_width * (4 if recipe.states.dtype == "float32" else 2) * 1e-9
                notes.append(
                    f"each text is met {visits:.1f} times: encoder states are kept on disk, about {size:.1f} GB of at most "
                    f"{recipe.states.gigabytes:g}"
                )
    return make_plan(
        recipe.stage,
        recipe.schedule,
        checkpoint.encoder if with_encoder else None,
        checkpoint.llm,
        checkpoint.merger,
        shape or assumed_shape(recipe.schedule, recipe.longest, recipe.stage != "mapping"),
        rank=recipe.rank,
        encodings=encodings,
        out=order.out,
        notes=notes,
    )


def count_epochs(recipe: Recipe, maker: RowMaker, sources: Sequence[Source]) -> Recipe:
    """The recipe with `epochs` as a budget of tokens: examples × epochs × the mean length of a sample of rows."""
    if not recipe.epochs:
        return recipe
    lengths = [row.length() for row in itertools.islice(_rows(recipe, maker, sources), SAMPLE)]
    usable = [length for length in lengths if length <= recipe.longest]
    if not usable:
        raise DataError(
            f"no example of the recipe's sources is at most {recipe.longest} positions long: raise `longest`"
        )
    # Rows over `longest` are drawn and left out: they take their place in an epoch, and no tokens.
    tokens = recipe.epochs * sum(len(source.examples) for source in sources) * sum(usable) / len(lengths)
    return replace(recipe, schedule=replace(recipe.schedule, tokens=max(1, round(tokens))))


def _rows(recipe: Recipe, maker: RowMaker, sources: Sequence[Source]) -> Iterator[Row]:
    return maker.rows(draw(sources, recipe.schedule.seed), recipe.schedule.seed)


def _visits(recipe: Recipe, sources: Sequence[Source], length: float) -> float:
    """How often the run meets each text, at `length` positions a row."""
    return expected_visits(
        recipe.schedule.tokens / length, [(source.weight, len(source.examples)) for source in sources]
    )


def _keep(task: MergedTask, recipe: Recipe, maker: RowMaker, sources: Sequence[Source]) -> None:
    """Give the task's encoder a store for its states, where that pays."""
    if task.encoder is None:
        return
    lengths = [row.length() for row in itertools.islice(_rows(recipe, maker, sources), SAMPLE)]
    if not lengths:
        raise DataError("the recipe's sources have no examples")
    visits = _visits(recipe, sources, sum(lengths) / len(lengths))
    task.encoder = keep_states(task.encoder, recipe.states, recipe.schedule.precision, visits=visits)
    if task.encoder.store is not None:
        print(
            f"encoder states are kept in {task.encoder.store.folder} ({len(task.encoder.store)} texts there, at most "
            f"{recipe.states.gigabytes:g} GB); --set states.keep=off computes them each time",
            file=sys.stderr,
        )
